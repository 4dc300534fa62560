"""A pass as its driver sees it, and as the schedule does."""

import threading

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.passes import LEFT
from batch_sampler_attn.schedule import passes_of
from tests.core.helpers import COPIES, schedule_with_threshold


def test_a_driver_in_ten_lines():
    schedule = schedule_with_threshold(1.0)
    losses = iter([0.5, 2.0, 1.5, 1.0, 0.1])
    visits = []
    with passes_of(schedule).open() as current:
        for batch in "abc":
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                current.offer()
                visits.append((batch, schedule.batch_index, schedule.visits))
                schedule.decide(next(losses))
                decision = current.collect()
    assert visits == [("a", 0, 0), ("b", 1, 0), ("b", 1, 1), ("b", 1, 2), ("c", 2, 0)]
    assert schedule.last_summary.repeats == 2
    assert passes_of(schedule).active is None


def test_a_pass_that_raises_is_left_and_its_epoch_starts_again():
    schedule = schedule_with_threshold(1.0)
    current = passes_of(schedule).open()

    def body():
        with current:
            current.offer()
            schedule.decide(0.5)
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert (current.phase, schedule.batches) == (LEFT, 1)
    with pytest.raises(ProtocolError, match="stale"):
        current.offer()
    with passes_of(schedule).open() as another:
        assert schedule.batches == 0
        another.offer()
        schedule.decide(0.5)
        another.collect()
    assert schedule.last_summary.batches == 1


@pytest.mark.parametrize("how", ["another pass", "abandoned", "loaded"])
def test_a_pass_is_stale_once_another_epoch_was_begun(how):
    schedule = schedule_with_threshold(1.0)
    state = schedule.state_dict()
    current = passes_of(schedule).open()
    current.offer()
    schedule.decide(0.5)
    if how == "another pass":
        passes_of(schedule).open()
    elif how == "abandoned":
        schedule.abandon_epoch()
    else:
        schedule.load_state_dict(state)
    with pytest.raises(ProtocolError, match="stale"):
        current.collect()
    current.close(finished=True)
    assert schedule.epoch == 1


def test_batches_that_do_not_come_in_order_bring_their_own_position_and_visits():
    schedule = schedule_with_threshold(1.0)
    current = passes_of(schedule).open()
    for position, visits, loss in ((0, 0, 2.0), (1, 0, 0.5), (0, 1, 0.5)):
        current.offer(position, visits=visits)
        assert (schedule.batch_index, schedule.visits) == (position, visits)
        schedule.decide(loss)
        current.collect()
    current.close(finished=True)
    summary = schedule.last_summary
    assert (summary.batches, summary.repeats, summary.most_visits) == (2, 1, 2)


@pytest.mark.parametrize("copied", COPIES)
def test_a_schedule_in_the_middle_of_a_pass_can_be_copied(copied):
    schedule = BatchAttentionSchedule()
    current = passes_of(schedule).open()
    current.offer()
    twin, twins_pass = copied((schedule, current))
    twin.decide(1.0)
    assert twins_pass.collect() is Decision.ADVANCE
    assert (twin.batches, schedule.batches) == (1, 0)


class HandingOut:
    """A driver whose flight is a list of decisions and visits."""

    is_in_order = True

    def __init__(self, schedule):
        self.passes, self.lock = passes_of(schedule), threading.RLock()

    def deliver(self, loader):
        with self.passes.open() as current:
            for batch in loader:
                current.offer()
                yield batch
                current.collect()

    def after_decision(self, flight, decision, visits):
        return (*flight, (decision, visits))

    def restarted(self):
        return ()


def test_a_driver_s_flight_follows_decisions_and_skips_and_it_is_the_only_one():
    schedule = BatchAttentionSchedule()
    driver = HandingOut(schedule)
    passes_of(schedule).set_driver(driver)
    with pytest.raises(ProtocolError, match="make one for each sampler"):
        passes_of(schedule).set_driver(driver)
    with pytest.raises(ProtocolError, match=r"decide\(\) was called while no batch"):
        schedule.decide(1.0)
    for batch in schedule.attend("ab"):
        if batch == "a":
            schedule.decide(1.0)
        else:
            schedule.skip()
            assert passes_of(schedule).run.flight == ((Decision.ADVANCE, 1), (None, 0))
    assert passes_of(schedule).run.flight == ()


def test_visits_that_were_made_elsewhere_are_taken_over():
    schedule = schedule_with_threshold()
    elsewhere = schedule_with_threshold()
    elsewhere.decide(1.0)
    with passes_of(schedule).open() as current:
        current.take_over(passes_of(elsewhere).state)
    assert schedule.last_summary.batches == 1
    with pytest.raises(ProtocolError, match="stale"):
        current.take_over(passes_of(elsewhere).state)


def test_a_schedule_that_is_loaded_alone_restarts_its_driver_s_flight():
    schedule = BatchAttentionSchedule()
    passes_of(schedule).set_driver(HandingOut(schedule))
    state = schedule.state_dict()
    for _ in schedule.attend("a"):
        schedule.decide(1.0)
        schedule.load_state_dict(state)
        assert passes_of(schedule).run.flight == ()
        break
