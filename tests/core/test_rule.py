"""The rule against the oracle, state by state, and against traces worked out by hand."""

import math
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from batch_sampler_attn import BatchAttentionSchedule, Decision, EpochSummary
from batch_sampler_attn.errors import BatchAttentionWarning, ProtocolError
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import State, skip, step
from tests.core.oracle import Oracle

OPTIONS = st.fixed_dictionaries(
    {
        "k": st.floats(0.5, 2.0),
        "warmup_epochs": st.integers(1, 3),
        "epoch_loss": st.sampled_from(["first", "last", "all"]),
        "max_visits": st.none() | st.integers(1, 6),
    }
)
LOSSES = st.floats(0.0, 10.0) | st.sampled_from([math.inf, -math.inf, math.nan])


def random_options(rng):
    return {
        "k": rng.choice([0.8, 1.0, 1.2, 1.5]),
        "warmup_epochs": rng.choice([1, 1, 2, 3]),
        "epoch_loss": rng.choice(["first", "last", "all"]),
        "max_visits": rng.choice([None, 1, 2, 3, 10]),
        "epoch_length": rng.choice([None, None, 1, 4]),
    }


def random_loss(rng):
    return rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < 0.05 else rng.lognormvariate(0.0, 0.5)


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_decisions_thresholds_and_summaries_equal_the_oracles_on_random_traces():
    rng = random.Random(0)
    for _ in range(500):
        options = random_options(rng)
        schedule, oracle = BatchAttentionSchedule(**options), Oracle(**options)
        for _ in range(rng.randrange(5, 60)):
            loss = random_loss(rng)
            assert schedule.decide(loss).value == oracle.decide(loss)
            assert schedule.threshold == oracle.threshold()
            assert schedule.epoch == len(oracle.ended)
            assert schedule.visits == len(oracle.current)
            assert schedule.batches == len(oracle.finished)
            assert schedule.summary.as_dict() == oracle.summary()
            if options["epoch_length"] is None and oracle.finished and not oracle.current and rng.random() < 0.2:
                assert schedule.end_epoch().as_dict() == oracle.end_epoch()
                assert schedule.threshold == oracle.threshold()


@given(options=OPTIONS, losses=st.lists(LOSSES, max_size=40))
def test_the_pure_step_changes_nothing_it_is_given(options, losses):
    options, state = Options(**options), State(threshold=2.0)
    for loss in losses:
        before = tuple(state)
        after, decision = step(options, state, loss)
        assert state == before
        assert isinstance(after, State)
        assert decision in Decision
        state = after


class ScheduleAgainstOracle(RuleBasedStateMachine):
    """Everything that may be done to a schedule, in any order, beside the oracle."""

    @initialize(options=OPTIONS, epoch_length=st.none() | st.integers(1, 4))
    def begin(self, options, epoch_length):
        self.options = {**options, "epoch_length": epoch_length}
        self.schedule, self.oracle = BatchAttentionSchedule(**self.options), Oracle(**self.options)

    @rule(loss=LOSSES)
    def decide(self, loss):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BatchAttentionWarning)
            assert self.schedule.decide(loss).value == self.oracle.decide(loss)

    @precondition(
        lambda self: self.options["epoch_length"] is None and self.oracle.finished and not self.oracle.current
    )
    @rule()
    def end_epoch(self):
        summary = self.schedule.end_epoch()
        assert summary.as_dict() == self.oracle.end_epoch()
        assert self.schedule.last_summary is summary

    @rule()
    def abandon_epoch(self):
        self.schedule.abandon_epoch()
        self.oracle.finished, self.oracle.current = [], []

    @rule()
    def save_and_load(self):
        successor = BatchAttentionSchedule(**self.options)
        successor.load_state_dict(self.schedule.state_dict())
        assert successor.state_dict() == self.schedule.state_dict()
        self.schedule = successor

    @invariant()
    def agree(self):
        assert self.schedule.summary.as_dict() == self.oracle.summary()
        assert self.schedule.threshold == self.oracle.threshold()


TestScheduleAgainstOracle = ScheduleAgainstOracle.TestCase
TestScheduleAgainstOracle.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def hand_built_state(threshold):
    return State(epoch=1, threshold=threshold)


def test_a_loss_at_the_threshold_advances_and_one_above_repeats():
    options = Options()
    assert step(options, hand_built_state(2.0), 2.0)[1] is Decision.ADVANCE
    assert step(options, hand_built_state(2.0), math.nextafter(2.0, 3.0))[1] is Decision.REPEAT


def test_the_threshold_is_k_times_the_mean_of_the_epoch_before():
    schedule = BatchAttentionSchedule(1.5)
    for loss in (1.0, 2.0, 6.0):
        assert schedule.decide(loss) is Decision.ADVANCE
    assert schedule.threshold is None
    assert schedule.end_epoch().mean_loss == 3.0
    assert schedule.threshold == 4.5


@pytest.mark.parametrize(("epoch_loss", "mean"), [("first", 3.5), ("last", 1.5), ("all", 13.0 / 4)])
def test_epoch_loss_says_which_loss_of_a_repeated_batch_enters_the_mean(epoch_loss, mean):
    schedule = BatchAttentionSchedule(1.0, epoch_loss=epoch_loss)
    schedule.decide(3.0)
    schedule.end_epoch()
    for loss in (5.0, 4.0, 1.0, 2.0):
        decision = schedule.decide(loss)
    assert decision is Decision.ADVANCE
    expected = {"first": (5.0 + 2.0) / 2, "last": (1.0 + 2.0) / 2, "all": (5.0 + 4.0 + 1.0 + 2.0) / 4}[epoch_loss]
    assert schedule.end_epoch().mean_loss == expected


def test_a_batch_that_does_not_fit_is_left_after_max_visits_and_counted():
    schedule = BatchAttentionSchedule(1.0, max_visits=3)
    schedule.decide(1.0)
    schedule.end_epoch()
    assert [schedule.decide(9.0) for _ in range(3)] == [Decision.REPEAT, Decision.REPEAT, Decision.ADVANCE]
    summary = schedule.end_epoch()
    assert (summary.capped_batches, summary.most_visits, summary.visits) == (1, 3, 3)


def test_without_a_limit_a_batch_repeats_as_long_as_it_takes():
    schedule = BatchAttentionSchedule(1.0, max_visits=None)
    schedule.decide(1.0)
    schedule.end_epoch()
    assert all(schedule.decide(2.0) is Decision.REPEAT for _ in range(5000))
    assert schedule.decide(1.0) is Decision.ADVANCE
    assert schedule.end_epoch().most_visits == 5001


def test_nonfinite_losses_advance_are_counted_kept_out_and_warned_of_once_an_epoch():
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(1.0)
    schedule.end_epoch()
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


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_an_epoch_without_a_finite_loss_sets_no_threshold():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    schedule.end_epoch()
    schedule.decide(math.nan)
    assert schedule.end_epoch().mean_loss is None
    assert schedule.threshold is None
    assert schedule.decide(1e9) is Decision.ADVANCE


def test_an_epoch_length_ends_epochs_by_itself():
    schedule = BatchAttentionSchedule(1.0, epoch_length=2)
    for loss in (1.0, 3.0):
        schedule.decide(loss)
    assert (schedule.epoch, schedule.threshold, schedule.batches) == (1, 2.0, 0)
    assert schedule.last_summary.batches == 2
    assert schedule.decide(2.5) is Decision.REPEAT


def test_negative_mean_losses_are_warned_of():
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(-1.0)
    with pytest.warns(BatchAttentionWarning, match="below the mean"):
        schedule.end_epoch()


def test_the_state_stays_a_dozen_numbers_however_long_the_run():
    schedule = BatchAttentionSchedule(0.9, budget=0.5)
    rng = random.Random(0)
    for _ in range(20):
        for _ in range(500):
            while schedule.decide(rng.random()) is Decision.REPEAT:
                pass
        schedule.end_epoch()
    numbers = schedule.state_dict()["state"]
    assert len(numbers) == 12
    assert all(value is None or isinstance(value, (int, float)) for value in numbers.values())


def test_a_summary_says_what_it_holds():
    schedule = BatchAttentionSchedule()
    with pytest.raises(ProtocolError, match="no epoch has ended"):
        schedule.last_summary  # noqa: B018
    schedule.decide(2.0)
    summary = schedule.end_epoch()
    assert isinstance(summary, EpochSummary)
    assert str(summary) == "epoch 0: 1 batch, 0 repeats (overhead 0%), mean loss 2.000"
    assert repr(summary).startswith("EpochSummary(epoch=0, batches=1, visits=1, repeats=0, overhead=0.0, mean_loss=2.0")


def test_a_repeat_cut_off_by_a_fixed_length_is_skipped_without_being_counted_twice():
    state = skip(State(visits=1))
    assert (state.visits, state.batches, state.repeats, state.most_visits) == (0, 0, 0, 1)
