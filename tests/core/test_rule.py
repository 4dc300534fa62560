"""The rule against the oracle, state by state, and against traces worked out by hand."""

import dataclasses
import json
import math
import random

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision, SampleSummary
from batch_sampler_attn.errors import BatchAttentionWarning
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import State, skip, step
from tests.core.helpers import schedule_with_threshold
from tests.core.oracle import Oracle


def random_options(rng):
    return {
        "k": rng.uniform(0.5, 2.0),
        "warmup_epochs": rng.choice([1, 1, 2, 3]),
        "epoch_loss": rng.choice(["first", "last", "all"]),
        "max_visits": rng.choice([None, 1, 2, 3, 10]),
        "epoch_length": rng.choice([None, None, 1, 4]),
        "budget": rng.choice([None, None, 1.0, rng.uniform(0.01, 1.0)]),
        "floor": rng.choice([0.0, 0.0, -0.5, 0.25]),
    }


def random_loss(rng, threshold):
    if rng.random() < 0.1:
        return rng.choice([math.nan, math.inf, -math.inf, 0.0, threshold or 1.0])
    return rng.lognormvariate(0.0, 0.5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_everything_that_may_be_done_to_a_schedule_in_any_order_has_the_outcome_of_the_oracle(seed):
    rng = random.Random(seed)
    for _ in range(50):
        options = random_options(rng)
        schedule, oracle = BatchAttentionSchedule(**options), Oracle(**options)
        for _ in range(rng.randrange(5, 60)):
            loss = random_loss(rng, oracle.threshold())
            assert schedule.decide(loss).value == oracle.decide(loss)
            if options["epoch_length"] is None and oracle.finished and not oracle.current and rng.random() < 0.2:
                summary = schedule.end_epoch()
                assert summary.as_dict() == oracle.end_epoch()
                assert schedule.last_summary is summary
            if rng.random() < 0.05:
                schedule.abandon_epoch()
                oracle.abandon_epoch()
            if rng.random() < 0.1:
                state, schedule = schedule.state_dict(), BatchAttentionSchedule(**options)
                schedule.load_state_dict(state)
                assert schedule.state_dict() == state
            assert schedule.threshold == oracle.threshold()
            assert schedule.summary.as_dict() == oracle.summary()
            assert (schedule.epoch, schedule.batches) == (len(oracle.ended), len(oracle.finished))
            assert schedule.visits == len(oracle.current)
            assert schedule.state_dict()["state"]["strictness"] == oracle.strictness()


def test_a_loss_at_the_threshold_advances_and_one_above_repeats():
    options, state = Options(), State(epoch=1, threshold=2.0)
    assert step(options, state, 2.0)[1] is Decision.ADVANCE
    assert step(options, state, math.nextafter(2.0, 3.0))[1] is Decision.REPEAT


@pytest.mark.parametrize(
    ("epoch_loss", "mean"),
    [("first", (5.0 + 2.0) / 2), ("last", (1.0 + 2.0) / 2), ("all", (5.0 + 4.0 + 1.0 + 2.0) / 4)],
)
def test_epoch_loss_says_which_loss_of_a_repeated_batch_enters_the_mean(epoch_loss, mean):
    schedule = schedule_with_threshold(3.0, epoch_loss=epoch_loss)
    for loss in (5.0, 4.0, 1.0, 2.0):
        decision = schedule.decide(loss)
    assert decision is Decision.ADVANCE
    assert schedule.end_epoch().mean_loss == mean


def test_nonfinite_losses_advance_are_counted_kept_out_and_warned_of_once_an_epoch():
    schedule = schedule_with_threshold()
    schedule.decide(1.0)
    with pytest.warns(BatchAttentionWarning, match="nan in epoch 1 is not finite") as warned:
        decision = schedule.decide(math.nan)
    assert decision is Decision.ADVANCE
    assert warned[0].filename == __file__
    # Warnings are errors in these tests: a second one in the same epoch would raise.
    assert schedule.decide(math.inf) is Decision.ADVANCE
    summary = schedule.end_epoch()
    assert (summary.nonfinite_losses, summary.mean_loss, summary.batches) == (2, 1.0, 3)
    with pytest.warns(BatchAttentionWarning, match="in epoch 2"):
        schedule.decide(math.inf)


def test_an_epoch_that_was_warned_of_before_it_was_saved_is_not_warned_of_again():
    schedule, resumed = BatchAttentionSchedule(1.0), BatchAttentionSchedule(1.0)
    schedule.decide(1.0)
    before = schedule.state_dict()
    with pytest.warns(BatchAttentionWarning, match="in epoch 0"):
        schedule.decide(math.nan)
    resumed.load_state_dict(schedule.state_dict())
    resumed.decide(math.nan)
    resumed.load_state_dict(before)
    with pytest.warns(BatchAttentionWarning, match="in epoch 0"):
        resumed.decide(math.nan)


def test_a_loss_too_large_to_be_added_up_is_kept_out_of_the_mean_and_the_state_stays_plain_json():
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(1e308)
    with pytest.warns(BatchAttentionWarning, match="too large to be averaged"):
        schedule.decide(1e308)
    json.dumps(schedule.state_dict(), allow_nan=False)
    summary = schedule.end_epoch()
    assert (summary.mean_loss, summary.nonfinite_losses, summary.batches) == (1e308, 1, 2)
    assert schedule.threshold == pytest.approx(1.2e308)


def test_a_threshold_too_large_for_a_float_is_none():
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(1.7e308)
    schedule.end_epoch()
    assert schedule.threshold is None
    json.dumps(schedule.state_dict(), allow_nan=False)


@pytest.mark.parametrize(("repeats", "said"), [(0, "0 repeats"), (1, "1 repeat"), (2, "2 repeats")])
def test_a_summary_prints_counts_with_nouns_in_the_right_number(repeats, said):
    schedule = schedule_with_threshold()
    for loss in [2.0] * repeats + [0.5] * 4:
        schedule.decide(loss)
    summary = schedule.end_epoch()
    mean = (2.0 + 1.5) / 4 if repeats else 0.5
    assert str(summary) == f"epoch 1: 4 batches, {said} (overhead {repeats / 4:.0%}), mean loss {mean:.3f}"
    assert str(dataclasses.replace(summary, batches=1)).startswith("epoch 1: 1 batch, ")
    assert summary.as_dict() == dataclasses.asdict(summary)


def test_a_summary_of_samples_prints_what_it_holds():
    counts = {"epoch": 1, "updates": 4, "extra_updates": 1, "pruned": 1, "passes": 1, "nonfinite_losses": 2}
    summary = SampleSummary(**counts, mean_loss=None, threshold=None, is_full=False)
    assert str(summary) == "epoch 1: 4 updates, 1 of them extra, 1 sample pruned, no finite loss, 2 losses not finite"
    assert summary.as_dict() == dataclasses.asdict(summary)


def test_a_repeat_cut_off_by_a_fixed_length_is_skipped_without_being_counted_twice():
    state = skip(State(visits=1))
    assert (state.visits, state.batches, state.repeats, state.most_visits) == (0, 0, 0, 1)
