"""``attend`` over any iterable, and what happens when a loop does not do as told."""

import copy
import itertools
import pickle

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import BatchAttentionWarning, EmptyEpochError, ProtocolError


def schedule_with_threshold(threshold=1.0, **options):
    schedule = BatchAttentionSchedule(1.0, **options)
    schedule.decide(threshold)
    schedule.end_epoch()
    return schedule


def run_epoch(schedule, loader, losses):
    losses = iter(losses)
    seen = []
    for batch in schedule.attend(loader):
        seen.append(batch)
        schedule.decide(next(losses))
    return seen


def test_a_batch_is_yielded_again_while_it_needs_attention():
    schedule = schedule_with_threshold()
    assert run_epoch(schedule, "abc", [2.0, 2.0, 0.5, 1.0, 3.0, 1.0]) == list("aaabcc")
    assert schedule.last_summary.repeats == 3


def test_the_very_same_object_is_yielded_again():
    schedule = schedule_with_threshold()
    batch = object()
    first, second = run_epoch(schedule, [batch], [2.0, 1.0])
    assert first is batch
    assert second is batch


@pytest.mark.parametrize("make", [list, tuple, iter, lambda batches: (batch for batch in batches), dict.fromkeys])
def test_any_iterable_will_do(make):
    schedule = schedule_with_threshold()
    assert run_epoch(schedule, make([1, 2, 3]), [1.0, 2.0, 1.0, 1.0]) == [1, 2, 2, 3]


def test_an_object_with_only_getitem_will_do():
    class Old:
        def __getitem__(self, index):
            return [1, 2][index]

    assert run_epoch(schedule_with_threshold(), Old(), [2.0, 1.0, 1.0]) == [1, 1, 2]


def test_something_that_is_not_iterable_is_refused():
    with pytest.raises(TypeError, match="iterable of batches"):
        BatchAttentionSchedule().attend(3)


def test_each_iteration_is_one_epoch_ended_by_itself():
    schedule = BatchAttentionSchedule()
    attended = schedule.attend([1, 2])
    for epoch in range(3):
        assert schedule.epoch == epoch
        for _ in attended:
            schedule.decide(1.0)
    assert schedule.last_summary.epoch == 2


def test_length_and_attributes_are_the_loaders():
    class Loader(list):
        dataset = "the data"

    attended = BatchAttentionSchedule().attend(Loader([1, 2, 3]))
    assert len(attended) == 3
    assert attended.dataset == "the data"
    with pytest.raises(AttributeError):
        attended.nothing  # noqa: B018
    with pytest.raises(TypeError):
        len(BatchAttentionSchedule().attend(iter([1])))


def test_the_schedule_can_be_reached_from_the_attended_loader():
    attended = BatchAttentionSchedule(1.5).attend([1])
    for _ in attended:
        assert attended.schedule.decide(1.0) is Decision.ADVANCE
    assert attended.schedule.threshold == 1.5


def test_repeats_are_told_apart_by_visits_and_decisions():
    schedule = schedule_with_threshold()
    losses = iter([1.0, 2.0, 1.0])
    told, bar = [], 0
    for _ in schedule.attend("ab"):
        told.append(schedule.visits)
        bar += schedule.decide(next(losses)) is Decision.ADVANCE
    assert told == [0, 0, 1]
    assert bar == len(schedule.attend("ab"))


def test_asking_for_the_next_batch_without_a_decision_is_refused():
    schedule = BatchAttentionSchedule()
    with pytest.raises(ProtocolError, match="before decide"):
        list(schedule.attend([1, 2]))


def test_deciding_twice_is_refused_and_the_first_decision_stands():
    schedule = schedule_with_threshold()
    seen = []
    losses = iter([2.0, 1.0])
    for batch in schedule.attend([1]):
        seen.append(batch)
        schedule.decide(next(losses))
        with pytest.raises(ProtocolError, match="called twice"):
            schedule.decide(0.0)
    assert seen == [1, 1]


def test_deciding_before_the_first_batch_is_refused():
    schedule = BatchAttentionSchedule()

    def early():
        schedule.decide(1.0)
        yield 1

    with pytest.raises(ProtocolError, match="before attend"):
        list(schedule.attend(early()))


@pytest.mark.parametrize("leave", ["break", "exception"])
def test_a_loop_left_early_abandons_its_epoch_and_sets_no_threshold(leave):
    schedule = schedule_with_threshold(5.0)
    with pytest.raises(KeyError) if leave == "exception" else pytest.MonkeyPatch.context():
        for batch in schedule.attend([1, 2, 3]):
            schedule.decide(100.0 if batch == 2 else 1.0)
            if batch == 2 and leave == "break":
                break
            if batch == 2:
                raise KeyError
    assert (schedule.epoch, schedule.threshold) == (1, 5.0)
    assert run_epoch(schedule, [1, 2], [5.0, 3.0]) == [1, 2]
    assert (schedule.epoch, schedule.threshold) == (2, 4.0)
    assert schedule.last_summary.batches == 2


def test_leaving_every_epoch_early_is_warned_of_since_nothing_would_ever_repeat():
    schedule = BatchAttentionSchedule()

    def leave_early():
        for _ in schedule.attend([1, 2]):
            schedule.decide(1.0)
            break

    leave_early()
    leave_early()
    with pytest.warns(BatchAttentionWarning, match="islice"):
        leave_early()
    leave_early()
    run_epoch(schedule, [1], [1.0])
    leave_early()
    leave_early()


def test_a_hand_written_loop_may_follow_a_loop_left_early():
    schedule = BatchAttentionSchedule(1.0)
    for _ in schedule.attend([1, 2]):
        schedule.decide(100.0)
        break
    schedule.decide(3.0)
    assert schedule.end_epoch().mean_loss == 3.0


def test_an_error_in_the_loader_abandons_the_epoch():
    def broken():
        yield 1
        raise OSError("disk")

    schedule = BatchAttentionSchedule(1.0)
    with pytest.raises(OSError, match="disk"):
        run_epoch(schedule, broken(), [9.0])
    assert run_epoch(schedule, [1], [2.0]) == [1]
    assert schedule.threshold == 2.0


def test_a_loss_that_is_refused_leaves_the_loop_as_it_was():
    schedule = schedule_with_threshold()
    for _ in schedule.attend([1]):
        with pytest.raises(TypeError):
            schedule.decide(None)
        schedule.decide(1.0)
    assert schedule.last_summary.visits == 1


def test_an_older_iterator_is_stale_once_a_newer_one_has_begun():
    schedule = BatchAttentionSchedule()
    older = iter(schedule.attend([1, 2]))
    next(older)
    schedule.decide(1.0)
    newer = iter(schedule.attend([1, 2]))
    next(newer)
    with pytest.raises(ProtocolError, match="stale"):
        next(older)
    schedule.decide(1.0)
    assert next(newer) == 2
    schedule.decide(1.0)
    assert next(newer, "end") == "end"
    assert schedule.last_summary.batches == 2


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(EmptyEpochError, match="without a batch"):
        list(BatchAttentionSchedule().attend(loader))


def test_a_generator_that_is_used_up_is_refused_in_the_second_epoch():
    schedule = BatchAttentionSchedule()
    attended = schedule.attend(iter([1]))
    for _ in attended:
        schedule.decide(1.0)
    with pytest.raises(EmptyEpochError, match="generator"):
        list(attended)


def test_an_attended_generator_is_true():
    assert BatchAttentionSchedule().attend(iter([1]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda schedule: pickle.loads(pickle.dumps(schedule))])
def test_a_copied_schedule_keeps_batches_and_losses_in_step(copied):
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(1.0)
    successor = copied(schedule)
    assert successor.end_epoch() == schedule.end_epoch()
    iterator = iter(schedule.attend([1]))
    next(iterator)
    schedule.decide(1.0)
    with pytest.raises(ProtocolError, match="called twice"):
        copied(schedule).decide(1.0)


def test_end_epoch_is_not_for_loops_of_attend():
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend([1]):
        with pytest.raises(ProtocolError, match="by itself"):
            schedule.end_epoch()
        schedule.decide(1.0)


def test_end_epoch_while_a_repeat_is_due_is_refused():
    schedule = schedule_with_threshold()
    schedule.decide(2.0)
    with pytest.raises(ProtocolError, match="REPEAT after 1 visits"):
        schedule.end_epoch()


def test_end_epoch_is_refused_where_a_window_ends_epochs():
    with pytest.raises(ProtocolError, match="window=3"):
        BatchAttentionSchedule(window=3).end_epoch()


def test_a_window_goes_on_from_one_pass_to_the_next():
    schedule = BatchAttentionSchedule(1.0, window=3)
    run_epoch(schedule, [1, 2], [1.0, 2.0])
    assert schedule.epoch == 0
    run_epoch(schedule, [1, 2], [3.0, 1.0])
    assert (schedule.epoch, schedule.threshold, schedule.batches) == (1, 2.0, 1)


@pytest.mark.parametrize("stop_after_visits", range(1, 7))
def test_a_loop_stopped_at_any_visit_goes_on_from_its_saved_state(stop_after_visits):
    losses = [2.0, 2.0, 0.5, 1.0, 3.0, 1.0]
    whole = schedule_with_threshold()
    expected = run_epoch(whole, "abc", losses)

    schedule, seen, saved = schedule_with_threshold(), [], None
    for batch in schedule.attend("abc"):
        seen.append(batch)
        schedule.decide(losses[len(seen) - 1])
        if len(seen) == stop_after_visits:
            saved = schedule.state_dict()
            break
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(saved)
    rest = itertools.islice("abc", resumed.batches, None)
    seen += run_epoch(resumed, rest, losses[len(seen) :])
    assert seen == expected
    assert resumed.state_dict() == whole.state_dict()
