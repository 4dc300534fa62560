"""Batches that are left out: no visit, in no mean, and never taken for a repeat of another."""

import itertools
import math

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, EmptyEpochError, LossError, ProtocolError
from batch_sampler_attn.recorders import MemoryRecorder
from batch_sampler_attn.schedule import passes_of
from tests.core.test_attend import schedule_with_threshold

SKIP = "skip"


def run(schedule, loader, words):
    """One epoch; a word is a loss, or SKIP. What was yielded, and the index that it was said to have."""
    words = iter(words)
    seen = []
    for batch in schedule.attend(loader):
        seen.append((batch, schedule.batch_index))
        word = next(words)
        if word is SKIP:
            schedule.skip()
        else:
            schedule.decide(word)
        assert schedule.batch_index == seen[-1][1]
    assert next(words, None) is None
    return seen


def test_a_skipped_batch_is_no_visit_and_in_no_mean_and_keeps_its_index():
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
    seen = run(schedule, "abcd", [1.0, SKIP, 3.0, SKIP])
    assert seen == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    summary = schedule.last_summary
    assert (summary.batches, summary.visits, summary.repeats, summary.mean_loss) == (2, 2, 0, 2.0)
    assert schedule.threshold == 2.0
    assert [(record.batch, record.loss) for record in recorder.visits] == [(0, 1.0), (2, 3.0)]


@pytest.mark.parametrize(
    ("epoch_loss", "mean"), [("first", (5.0 + 1.0) / 2), ("last", 1.0), ("all", (5.0 + 4.0 + 1.0) / 3)]
)
def test_a_batch_skipped_in_mid_repeat_is_done_with_the_visits_it_had(epoch_loss, mean):
    schedule = schedule_with_threshold(epoch_loss=epoch_loss)
    seen = run(schedule, "abc", [5.0, 4.0, SKIP, 1.0, SKIP])
    assert [batch for batch, _ in seen] == list("aaabc")
    summary = schedule.last_summary
    assert (summary.batches, summary.visits, summary.repeats, summary.most_visits) == (2, 3, 1, 2)
    assert summary.overhead == 0.5
    assert summary.mean_loss == mean


def test_skipping_in_a_hand_written_loop_forgets_the_batch_whose_repeat_is_due():
    schedule = schedule_with_threshold()
    assert schedule.decide(2.0) is Decision.REPEAT
    schedule.skip()
    assert schedule.visits == 0
    assert schedule.decide(3.0) is Decision.REPEAT
    assert schedule.visits == 1
    assert schedule.decide(1.0) is Decision.ADVANCE
    summary = schedule.end_epoch()
    assert (summary.batches, summary.repeats, summary.visits) == (2, 1, 3)


def test_a_loop_by_hand_that_runs_out_of_memory_in_mid_repeat_goes_on_after_skip():
    schedule = schedule_with_threshold()
    steps = iter([1.0, 2.0, MemoryError, 3.0, 1.0, MemoryError, 1.0])

    def train_step():
        step = next(steps)
        if step is MemoryError:
            raise MemoryError
        return step

    for _ in "abcde":
        try:
            while schedule.decide(train_step()) is Decision.REPEAT:
                pass
        except MemoryError:
            schedule.skip()
    summary = schedule.end_epoch()
    # b is left after one visit, d before any: a, b, c, c, e.
    assert (summary.batches, summary.visits, summary.repeats) == (4, 5, 1)
    assert summary.mean_loss == (1.0 + 2.0 + 3.0 + 1.0) / 4


@pytest.mark.parametrize("is_after", ["decide", "skip"])
def test_one_call_a_visit_is_enough(is_after):
    schedule = schedule_with_threshold()
    for _ in schedule.attend("a"):
        schedule.decide(1.0)
        with pytest.raises(ProtocolError, match=r"skip\(\) was called after decide\(\)"):
            schedule.skip()
    with pytest.raises(EmptyEpochError, match="skipped"):
        skip_and_decide(schedule)


def skip_and_decide(schedule):
    for _ in schedule.attend("a"):
        schedule.skip()
        with pytest.raises(ProtocolError, match="had been skipped"):
            schedule.decide(1.0)
        with pytest.raises(ProtocolError, match="had been skipped"):
            schedule.skip()


def test_a_loss_of_none_is_told_of_skip():
    with pytest.raises(LossError, match=r"schedule\.skip\(\)"):
        BatchAttentionSchedule().decide(None)


def test_an_epoch_of_fixed_length_counts_batches_that_were_trained_on():
    schedule = BatchAttentionSchedule(1.0, epoch_length=2)
    run(schedule, "abc", [1.0, SKIP, 2.0])
    assert (schedule.epoch, schedule.batches, schedule.threshold) == (1, 0, 1.5)
    run(schedule, "abc", [2.0, SKIP, 1.0, SKIP])
    assert (schedule.epoch, schedule.last_summary.visits, schedule.last_summary.batches) == (2, 2, 2)


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_an_epoch_with_skipped_batches_goes_on_where_it_was_stopped(stop_after):
    words = [1.0, SKIP, 2.0, 2.0, SKIP, 1.0, 3.0, 1.0]
    whole = schedule_with_threshold()
    expected = run(whole, "abcde", words)
    schedule, seen, saved = schedule_with_threshold(), [], None
    for batch, word in zip(schedule.attend("abcde"), words, strict=False):
        seen.append((batch, schedule.batch_index))
        if word is SKIP:
            schedule.skip()
        else:
            schedule.decide(word)
        if len(seen) == stop_after:
            saved = schedule.state_dict()
            break
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(saved)
    seen += run(resumed, itertools.islice("abcde", resumed.batch_index, None), words[stop_after:])
    assert seen == expected
    assert resumed.state_dict() == whole.state_dict()


def test_a_control_keeps_its_counts_where_batches_are_skipped_in_both_runs_or_in_its_own():
    counts = [[1, 3, 2]]
    both = EqualComputeControl(counts, seed=1)
    seen = run(both, "abcd", [1.0, SKIP, *[1.0] * 5])
    visits = [sum(batch == letter for batch, _ in seen) for letter in "acd"]
    assert visits == passes_of(both).criterion.draw(0)
    assert both.last_summary.visits == 6
    own = EqualComputeControl(counts, seed=1)
    drawn = passes_of(own).criterion.draw(0)
    run(own, "abc", [SKIP, *[1.0] * sum(drawn[:2])])
    assert own.last_summary.batches == 2


def test_a_loss_that_is_not_finite_and_a_skip_do_not_warn_twice():
    schedule = BatchAttentionSchedule()
    with pytest.warns(BatchAttentionWarning):
        schedule.decide(math.nan)
    schedule.skip()
    schedule.decide(1.0)
    assert schedule.end_epoch().batches == 2


def test_skipped_batches_give_a_budget_nothing_to_spend():
    schedule = schedule_with_threshold(budget=0.5)
    for _ in range(9):
        schedule.skip()
    assert [schedule.decide(loss) for loss in (2.0, 2.0)] == [Decision.ADVANCE, Decision.REPEAT]
    schedule.decide(1.0)
    assert schedule.end_epoch().repeats == 1
