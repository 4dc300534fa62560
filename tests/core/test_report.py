"""``report`` and ``decide`` as two calls mean the same as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError
from tests.core.helpers import COPIES, OPTIONS

LOSSES = st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=1, max_size=4)


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
        ([lambda s: s.decide(1.0), lambda s: s.skip()], r"skip\(\) was called after decide\(\)"),
        ([lambda s: s.skip(), lambda s: s.skip()], "had been skipped"),
        ([lambda s: s.skip(), lambda s: s.decide(1.0)], "had been skipped"),
        ([lambda s: s.decide(1.0), lambda s: s.report(1.0)], r"report\(\) was called twice"),
    ],
)
def test_calls_out_of_turn_are_refused_and_change_nothing(calls, words):
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend([1]):
        for call in calls[:-1]:
            call(schedule)
        before = schedule.state_dict()
        with pytest.raises(ProtocolError, match=words):
            calls[-1](schedule)
        assert schedule.state_dict() == before
        if words.startswith("call decide"):
            schedule.decide()
            assert schedule.summary.mean_loss == 1.0
        break


@pytest.mark.parametrize("copied", COPIES)
def test_a_schedule_with_a_report_out_can_be_copied(copied):
    schedule = BatchAttentionSchedule()
    schedule.report(1.0)
    twin = copied(schedule)
    assert twin.decide() is schedule.decide()
    assert twin.state_dict() == schedule.state_dict()


def test_a_loss_on_a_device_is_not_read_before_the_decision():
    loss = pytest.importorskip("torch").empty((), device="meta")
    schedule = BatchAttentionSchedule()
    schedule.report(loss)
    with pytest.raises(RuntimeError, match="meta"):
        schedule.decide()


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
