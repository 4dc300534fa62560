"""``report`` and ``decide`` as two calls mean the same as one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError
from tests.core.helpers import COPIES

LOSSES = st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)
OPTIONS = st.fixed_dictionaries(
    {
        "k": st.sampled_from([0.8, 1.2]),
        "epoch_loss": st.sampled_from(["first", "last", "all"]),
        "max_visits": st.just(3),
    }
)


def run(schedule, epochs, tell):
    """Every visit's decision, where a batch's loss falls by half with each."""
    made = []
    for losses in epochs:
        for batch in schedule.attend(range(len(losses))):
            made.append((batch, tell(schedule, losses[batch] / 2**schedule.visits)))
    return made, schedule.state_dict()


def two_calls(schedule, loss):
    schedule.report(loss)
    return schedule.decide()


@given(LOSSES, OPTIONS)
def test_two_calls_are_one(epochs, options):
    made = [run(BatchAttentionSchedule(**options), epochs, tell) for tell in (BatchAttentionSchedule.decide, two_calls)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([lambda s: s.decide()], "without a loss, and none was reported"),
        ([lambda s: s.report(1.0), lambda s: s.report(1.0)], r"call decide\(\) without one"),
        ([lambda s: s.report(1.0), lambda s: s.decide(1.0)], r"call decide\(\) without one"),
        ([lambda s: s.report(1.0), lambda s: s.skip()], r"call decide\(\)"),
        ([lambda s: s.decide(1.0), lambda s: s.report(1.0)], r"report\(\) was called twice"),
    ],
)
def test_calls_out_of_turn_are_refused_and_change_nothing(calls, words):
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend([1]):
        for call in calls[:-1]:
            call(schedule)
        with pytest.raises(ProtocolError, match=words):
            calls[-1](schedule)
        if schedule.batches == 0:
            schedule.decide() if len(calls) == 2 else schedule.decide(1.0)
    assert schedule.last_summary.mean_loss == 1.0


@pytest.mark.parametrize("samples", [-1, math.nan, math.inf, "3", True, [3]])
def test_samples_that_are_no_weight_are_refused(samples):
    schedule = BatchAttentionSchedule()
    with pytest.raises(OptionError, match=r"samples is .* finite number of at least 0"):
        schedule.decide(1.0, samples=samples)
    with pytest.raises(LossError):
        schedule.report("x")
    assert schedule.decide(1.0, samples=0) is Decision.ADVANCE


@pytest.mark.parametrize("copied", COPIES)
def test_a_schedule_with_a_report_out_can_be_copied(copied):
    schedule = BatchAttentionSchedule()
    schedule.report(1.0)
    twin = copied(schedule)
    assert twin.decide() is schedule.decide()
    assert twin.state_dict() == schedule.state_dict()


def test_a_loss_on_a_device_is_not_read_before_the_decision():
    class OnDevice:
        shape = ()
        device = type("Device", (), {"type": "cuda"})
        was_read = False

        def detach(self):
            return self

        clone = detach

        def item(self):
            OnDevice.was_read = True
            return 2.0

    schedule = BatchAttentionSchedule()
    schedule.report(OnDevice())
    assert not OnDevice.was_read
    schedule.decide()
    assert OnDevice.was_read
    assert schedule.summary.mean_loss == 2.0


def test_an_epoch_does_not_end_between_a_report_and_its_decision():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    schedule.report(2.0)
    with pytest.raises(ProtocolError, match=r"after report\(\) had a visit's loss; call decide\(\) first"):
        schedule.end_epoch()
    assert schedule.decide() is Decision.ADVANCE
    assert schedule.end_epoch().mean_loss == 1.5


@pytest.mark.parametrize("leave", ["abandon", "load", "break"])
def test_a_report_is_forgotten_with_its_epoch(leave):
    schedule = BatchAttentionSchedule()
    state = schedule.state_dict()
    for _ in schedule.attend([1]):
        schedule.report(5.0)
        break
    if leave == "abandon":
        schedule.abandon_epoch()
    elif leave == "load":
        schedule.load_state_dict(state)
    with pytest.raises(ProtocolError, match="none was reported"):
        schedule.decide()
    schedule.decide(1.0)
    assert schedule.end_epoch().mean_loss == 1.0
