"""A pass as its driver sees it, and as the schedule does."""

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.schedule import passes_of
from tests.core.helpers import loader_through_a_sampler, schedule_with_threshold


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
    for call in (current.collect, current.offer):
        with pytest.raises(ProtocolError, match="stale"):
            call()
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


def test_a_driver_s_flight_follows_decisions_and_skips_and_it_is_the_only_one():
    schedule = BatchAttentionSchedule()
    loader = loader_through_a_sampler(schedule, range(4), "deferred")
    driver = passes_of(schedule).driver
    with pytest.raises(ProtocolError, match="make one for each sampler"):
        passes_of(schedule).set_driver(driver)
    with pytest.raises(ProtocolError, match=r"decide\(\) was called while no batch"):
        schedule.decide(1.0)
    state = schedule.state_dict()
    for _ in schedule.attend(loader):
        schedule.decide(1.0) if schedule.batch_index else schedule.skip()
        assert passes_of(schedule).run.flight.flight.sent == ()
    assert passes_of(schedule).run.flight == driver.restarted()
    for _ in schedule.attend(loader):
        schedule.decide(1.0)
        schedule.load_state_dict(state)  # the schedule's alone
        assert passes_of(schedule).run.flight == driver.restarted()
        break


def test_visits_that_were_made_elsewhere_are_taken_over():
    schedule = schedule_with_threshold()
    elsewhere = schedule_with_threshold()
    elsewhere.decide(1.0)
    with passes_of(schedule).open() as current:
        current.take_over(passes_of(elsewhere).state)
    assert schedule.last_summary.batches == 1
    with pytest.raises(ProtocolError, match="stale"):
        current.take_over(passes_of(elsewhere).state)
