"""``attend`` over any iterable, and what happens when a loop does not do as told."""

import copy
import io
import itertools
import json
import math
import pickle
from types import SimpleNamespace

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl, checkpoint
from batch_sampler_attn.errors import BatchAttentionWarning, EmptyEpochError, ProtocolError
from batch_sampler_attn.recorders import MemoryRecorder
from batch_sampler_attn.schedule import passes_of


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


def loader_through_a_sampler(schedule, samples, repeats, **options):
    """Batches of two, in order; skips the test where there is no torch."""
    data = pytest.importorskip("torch.utils.data")
    from batch_sampler_attn import BatchAttentionSampler

    sampler = BatchAttentionSampler(data.SequentialSampler(samples), 2, schedule=schedule, repeats=repeats)
    return data.DataLoader(samples, batch_sampler=sampler, **options)


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


def test_base_batches_and_attributes_are_the_loaders():
    class Loader(list):
        dataset = "the data"

    attended = BatchAttentionSchedule().attend(Loader([1, 2, 3]))
    assert attended.base_batches == 3
    assert attended.dataset == "the data"
    with pytest.raises(AttributeError):
        attended.nothing  # noqa: B018
    with pytest.raises(TypeError):
        BatchAttentionSchedule().attend(iter([1])).base_batches  # noqa: B018


def test_what_attend_returns_has_no_length_since_it_yields_visits():
    attended = BatchAttentionSchedule().attend([1, 2])
    with pytest.raises(TypeError, match=r"no length: repeats are decided.*len\(loader\), or attended\.base_batches"):
        len(attended)
    for _ in attended:
        attended.schedule.decide(1.0)


def test_the_schedule_can_be_reached_from_the_attended_loader():
    attended = BatchAttentionSchedule(1.5).attend([1])
    for _ in attended:
        assert attended.schedule.decide(1.0) is Decision.ADVANCE
    assert attended.schedule.threshold == 1.5


def test_visits_and_decisions_count_repeats_and_base_batches():
    schedule = schedule_with_threshold()
    losses = iter([1.0, 2.0, 1.0])
    visits, bar = [], 0
    attended = schedule.attend("ab")
    for _ in attended:
        visits.append(schedule.visits)
        bar += schedule.decide(next(losses)) is Decision.ADVANCE
    assert visits == [0, 0, 1]
    assert bar == attended.base_batches


@pytest.mark.parametrize("way", ["attend", "immediate", "deferred"])
def test_an_average_over_first_visits_is_one_over_base_batches_before_and_after_the_decision(way):
    schedule = schedule_with_threshold(max_visits=3)
    loader = range(0, 6, 2) if way == "attend" else loader_through_a_sampler(schedule, range(6), way)
    before, after = [], []
    for batch in schedule.attend(loader):
        first = batch if way == "attend" else batch[0].item()
        if schedule.is_first_visit:
            before.append(first)
        schedule.decide(2.0 if first == 2 else 1.0)
        if schedule.is_first_visit:
            after.append(first)
    assert schedule.last_summary.repeats == 2
    assert before == after == [0, 2, 4]


def test_in_a_loop_by_hand_the_first_visit_is_that_of_the_next_decision():
    schedule = schedule_with_threshold()
    first_visits = []
    for loss in (1.0, 2.0, 1.0, 1.0):
        first_visits.append(schedule.is_first_visit)
        schedule.decide(loss)
    assert first_visits == [True, True, False, True]


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


def test_leaving_an_epoch_early_now_and_then_is_no_matter():
    schedule = BatchAttentionSchedule(1.0)
    for _ in range(4):
        for _ in schedule.attend([1, 2]):
            schedule.decide(1.0)
            break
        run_epoch(schedule, [1], [1.0])
    assert schedule.epoch == 4


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


def test_end_epoch_is_refused_where_a_length_ends_epochs():
    with pytest.raises(ProtocolError, match="epoch_length=3"):
        BatchAttentionSchedule(epoch_length=3).end_epoch()


def test_an_epoch_of_fixed_length_spans_passes():
    schedule = BatchAttentionSchedule(1.0, epoch_length=3)
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


# What stands between attend() and the loader --------------------------------------------------------------


def test_attributes_are_set_where_they_are_read():
    class Loader(list):
        mixup_enabled = True

        def __init__(self, batches):
            super().__init__(batches)
            self._labels = None

        def names(self):
            return self.mixup_enabled, self._labels

    loader = Loader([1, 2])
    schedule = BatchAttentionSchedule()
    attended = schedule.attend(loader)
    attended.mixup_enabled = False
    attended._labels = [3]
    assert loader.names() == (False, [3])
    assert (attended.mixup_enabled, attended._labels) == (False, [3])
    other = BatchAttentionSchedule()
    attended.schedule = other
    assert attended.schedule is other
    assert not hasattr(loader, "schedule")
    with pytest.raises(AttributeError):
        schedule.attend([1]).flag = True


def test_special_names_are_the_attended_loaders_own():
    class Loader(list):
        pass

    loader = Loader("ab")
    attended = BatchAttentionSchedule().attend(loader)
    attended.__mark__ = attended.mark = 1
    assert not hasattr(loader, "__mark__")
    assert loader.mark == 1


def test_what_attend_returns_can_be_copied_and_pickled():
    attended = BatchAttentionSchedule(1.5).attend([1, 2])
    for twin in (copy.copy(attended), copy.deepcopy(attended), pickle.loads(pickle.dumps(attended))):
        assert twin.base_batches == 2
        for _ in twin:
            twin.schedule.decide(1.0)
        assert twin.schedule.last_summary.batches == 2


def test_attending_twice_is_refused():
    schedule = BatchAttentionSchedule()
    for other in (schedule, BatchAttentionSchedule()):
        with pytest.raises(ProtocolError, match="iterate over the attended loader itself"):
            other.attend(schedule.attend([1]))


def test_a_loader_whose_sampler_belongs_to_another_schedule_is_refused():
    class Loader(list):
        batch_sampler = SimpleNamespace(schedule=None)

    with pytest.raises(ProtocolError, match=r"loader\.batch_sampler\.schedule\.attend\(loader\)"):
        BatchAttentionSchedule().attend(Loader())


@pytest.mark.parametrize("how", ["batch_sampler", "sampler"])
def test_a_loader_of_sample_attention_is_refused_with_the_way_out(how):
    data = pytest.importorskip("torch.utils.data")
    from batch_sampler_attn import SampleAttention

    attention = SampleAttention(8, 2)
    options = {"batch_sampler": attention} if how == "batch_sampler" else {"sampler": attention, "batch_size": None}
    loader = data.DataLoader(range(8), **options)
    with pytest.raises(ProtocolError, match=r"SampleAttention.*attention\.attend\(loader\)"):
        BatchAttentionSchedule().attend(loader)


ONCE = {
    "enumerate": enumerate,
    "zip": lambda loader: zip(loader, strict=True),
    "map": lambda loader: map(str, loader),
    "filter": lambda loader: filter(lambda _: True, loader),
    "generator expression": lambda loader: (batch for batch in loader),
}


@pytest.mark.parametrize("wrap", ONCE.values(), ids=ONCE)
def test_an_iterator_over_the_loader_is_one_epoch_and_the_next_is_told_to_give_the_loader(wrap):
    schedule = BatchAttentionSchedule()
    attended = schedule.attend(wrap([1, 2]))
    assert len(run_epoch(schedule, attended._loader, [1.0, 1.0])) == 2
    with pytest.raises(EmptyEpochError, match=r"enumerate, zip, map.*enumerate\(schedule\.attend\(loader\)\)"):
        run_epoch(schedule, attended._loader, [])


@pytest.mark.parametrize("wrap", ONCE.values(), ids=ONCE)
@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_an_iterator_over_a_samplers_loader_is_refused_with_what_to_give(wrap, repeats):
    schedule = BatchAttentionSchedule()
    loader = loader_through_a_sampler(schedule, range(4), repeats)
    with pytest.raises(ProtocolError, match=r"DataLoader|loader itself"):
        run_epoch(schedule, wrap(loader), [1.0, 1.0])
    assert len(run_epoch(schedule, loader, [1.0, 1.0])) == 2


def test_a_schedule_and_an_attended_loader_say_what_they_are_and_where():
    schedule = schedule_with_threshold()
    for _ in schedule.attend("abc"):
        schedule.decide(0.5)
        if schedule.batch_index == 1:
            break
    assert repr(schedule) == (
        "<BatchAttentionSchedule(k=1.0, warmup_epochs=1, epoch_loss='first', max_visits=100, nonfinite='advance', "
        "epoch_length=None, budget=None, floor=0.0), epoch 1, batch 2, visits 0, threshold 1>"
    )
    assert repr(schedule.attend([1] * 3)) == f"<list of 3 batches, attended by {schedule!r}>"
    assert repr(schedule.attend(iter([1]))).startswith("<list_iterator, attended by")
    assert repr(EqualComputeControl([[1], [2]])) == (
        "<EqualComputeControl(2 epochs, seed=0), epoch 0, batch 0, visits 0, no threshold>"
    )


# The index of the base batch ------------------------------------------------------------------------------


def test_the_batch_index_is_the_loaders_at_every_visit_before_and_after_the_decision():
    schedule = schedule_with_threshold()
    losses = iter([2.0, 2.0, 1.0, 1.0, 2.0, 1.0])
    seen = []
    for batch in schedule.attend(range(3)):
        before = schedule.batch_index
        schedule.decide(next(losses))
        seen.append((batch, before, schedule.batch_index))
    assert seen == [(batch, batch, batch) for batch in (0, 0, 0, 1, 2, 2)]
    assert schedule.batch_index == 0


def test_the_batch_index_of_a_hand_written_loop_is_that_of_the_next_decision():
    schedule = schedule_with_threshold()
    told = []
    for loss in (1.0, 2.0, 1.0, 1.0):
        told.append(schedule.batch_index)
        schedule.decide(loss)
    assert told == [0, 1, 1, 2]


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_batch_index_is_right_through_a_sampler(repeats):
    schedule = schedule_with_threshold(max_visits=3)
    loader = loader_through_a_sampler(schedule, range(8), repeats, num_workers=1)
    seen = []
    for batch in schedule.attend(loader):
        position = batch[0].item() // 2
        assert schedule.batch_index == position
        schedule.decide(2.0 if position % 2 else 1.0)
        assert schedule.batch_index == position
        seen.append(position)
    assert [seen.count(position) for position in range(4)] == [1, 3, 1, 3]
    assert (seen == sorted(seen)) == (repeats == "immediate")


# Decisions that belong to no pass -------------------------------------------------------------------------


def test_a_stray_decision_between_two_passes_is_found_out_and_can_be_forgotten():
    schedule = BatchAttentionSchedule(1.2)
    run_epoch(schedule, [1, 2], [1.0, 1.0])
    schedule.decide(50.0)
    with pytest.raises(ProtocolError, match=r"outside a loop of attend\(\).*abandon_epoch"):
        run_epoch(schedule, [1, 2], [])
    schedule.abandon_epoch()
    run_epoch(schedule, [1, 2], [1.0, 1.0])
    assert (schedule.last_summary.mean_loss, schedule.threshold) == (1.0, 1.2)


@pytest.mark.parametrize("stray", ["first", "repeat", "skip", "nan", "after load", "after a break"])
def test_decisions_by_hand_are_found_out_wherever_they_were_made(stray):
    schedule = BatchAttentionSchedule(1.0) if stray == "first" else schedule_with_threshold()
    if stray == "after load":
        schedule.decide(1.0)
        schedule.load_state_dict(schedule.state_dict())
    if stray == "after a break":
        for _ in schedule.attend([1, 2]):
            schedule.decide(1.0)
            break
    if stray == "skip":
        schedule.skip()
    elif stray == "nan":
        with pytest.warns(BatchAttentionWarning):
            schedule.decide(float("nan"))
    else:
        schedule.decide(50.0 if stray == "repeat" else 1.0)
    with pytest.raises(ProtocolError, match="outside a loop"):
        run_epoch(schedule, [1, 2], [])


def test_a_stray_decision_in_an_epoch_of_fixed_length_is_found_out():
    schedule = BatchAttentionSchedule(1.0, epoch_length=5)
    run_epoch(schedule, [1, 2], [1.0, 1.0])
    run_epoch(schedule, [1, 2], [1.0, 1.0])
    assert schedule.batches == 4
    schedule.decide(50.0)
    schedule.decide(50.0)
    with pytest.raises(ProtocolError, match="outside a loop"):
        run_epoch(schedule, [1, 2], [])


def test_epochs_by_hand_and_epochs_of_attend_may_take_turns():
    schedule = BatchAttentionSchedule(1.0)
    for _ in range(2):
        schedule.decide(1.0)
        schedule.end_epoch()
        run_epoch(schedule, [1, 2], [1.0, 1.0])
    assert schedule.epoch == 4


def test_an_epoch_that_was_loaded_goes_on_under_attend():
    schedule = schedule_with_threshold()
    schedule.decide(0.5)
    schedule.decide(2.0)
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(schedule.state_dict())
    assert run_epoch(resumed, itertools.islice("abc", 1, None), [0.5, 0.5]) == ["b", "c"]
    assert resumed.last_summary.batches == 3


# Going on in mid-epoch without a sampler ------------------------------------------------------------------


def stopped_in_second_epoch(batches, after):
    schedule = BatchAttentionSchedule(1.0)
    run_epoch(schedule, range(batches), [1.0] * batches)
    for _ in schedule.attend(range(batches)):
        schedule.decide(1.0)
        if schedule.batches == after:
            break
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(schedule.state_dict())
    return resumed


def test_the_whole_loader_after_a_resume_in_mid_epoch_is_refused_with_what_to_write():
    loader = pytest.importorskip("torch.utils.data").DataLoader(range(20), 2)
    resumed = stopped_in_second_epoch(10, after=4)
    with pytest.raises(ProtocolError, match=r"after 4 batches.*islice\(loader, schedule\.batch_index, None\)"):
        run_epoch(resumed, loader, [1.0] * 14)
    rest = itertools.islice(loader, resumed.batch_index, None)
    assert [batch[0].item() for batch in run_epoch(resumed, rest, [1.0] * 6)] == [8, 10, 12, 14, 16, 18]
    assert resumed.last_summary.batches == 10
    run_epoch(resumed, loader, [1.0] * 10)


def test_a_recorder_that_raises_as_an_epoch_ends_leaves_nothing_of_it_to_the_next_one():
    resumed = stopped_in_second_epoch(10, after=4)

    class FullDisk:
        def on_visit(self, *visit):
            pass

        def on_epoch_end(self, summary):
            passes_of(resumed).recorders = ()
            raise OSError("disk full")

    passes_of(resumed).recorders = (FullDisk(),)
    with pytest.warns(BatchAttentionWarning, match="is not finite"), pytest.raises(OSError, match="disk full"):
        run_epoch(resumed, iter(range(4, 10)), [math.nan, *[1.0] * 5])
    assert resumed.last_summary.batches == 10
    with pytest.warns(BatchAttentionWarning, match="is not finite"):
        assert run_epoch(resumed, range(10), [math.nan, *[1.0] * 9]) == [*range(10)]


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_the_whole_loader_after_a_state_of_the_epochs_last_batch_is_refused(epochs_before):
    schedule = BatchAttentionSchedule(1.0)
    for _ in range(epochs_before):
        run_epoch(schedule, range(10), [1.0] * 10)
    for _ in schedule.attend(range(10)):
        schedule.decide(1.0)
        if schedule.batches == 10:
            state = schedule.state_dict()
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(state)
    with pytest.raises(ProtocolError, match="after 10 batches, and the loader has 10"):
        run_epoch(resumed, range(10), [1.0] * 10)
    assert run_epoch(resumed, itertools.islice(range(10), 10, None), []) == []
    assert resumed.last_summary.batches == 10
    resumed.load_state_dict(state)
    with pytest.warns(BatchAttentionWarning, match="had 20 batches in all, instead of 10"):
        run_epoch(resumed, iter(range(10)), [1.0] * 10)


@pytest.mark.parametrize("as_json", [False, True])
def test_the_whole_loader_after_a_resume_in_the_very_first_epoch_is_refused(as_json):
    schedule = BatchAttentionSchedule(1.0)
    for _ in schedule.attend(range(10)):
        schedule.decide(1.0)
        if schedule.batches == 4:
            break
    state = schedule.state_dict()
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(json.loads(json.dumps(state)) if as_json else state)
    with pytest.raises(ProtocolError, match="after 4 batches, and the loader has 10, as many as the whole epoch"):
        run_epoch(resumed, range(10), [1.0] * 10)
    assert len(run_epoch(resumed, itertools.islice(range(10), 4, None), [1.0] * 6)) == 6
    assert resumed.last_summary.batches == 10
    resumed.load_state_dict(state)
    with pytest.warns(BatchAttentionWarning, match="had 14 batches in all, instead of 10"):
        run_epoch(resumed, iter(range(10)), [1.0] * 10)


def test_the_whole_loader_through_an_iterator_is_warned_of_at_the_end():
    resumed = stopped_in_second_epoch(10, after=4)
    with pytest.warns(BatchAttentionWarning, match="had 14 batches in all, instead of 10"):
        run_epoch(resumed, iter(range(10)), [1.0] * 14)


def test_a_loader_that_goes_on_by_itself_is_left_to_it_and_warned_of_if_it_is_cut_once_more():
    class Stateful(list):
        place = 0

        def load_state_dict(self, state):
            self.place = state

        def __iter__(self):
            return itertools.islice(super().__iter__(), self.place, None)

    loader = Stateful(range(10))
    loader.load_state_dict(4)
    resumed = stopped_in_second_epoch(10, after=4)
    assert run_epoch(resumed, loader, [1.0] * 6) == [4, 5, 6, 7, 8, 9]
    assert resumed.last_summary.batches == 10
    resumed = stopped_in_second_epoch(10, after=4)
    with pytest.warns(BatchAttentionWarning, match="had 6 batches in all"):
        run_epoch(resumed, itertools.islice(loader, resumed.batch_index, None), [1.0] * 2)


def test_epochs_of_unlike_lengths_may_be_gone_on_with():
    resumed = stopped_in_second_epoch(10, after=4)
    assert len(run_epoch(resumed, range(9), [1.0] * 9)) == 9
    resumed = stopped_in_second_epoch(10, after=4)
    resumed.abandon_epoch()
    assert len(run_epoch(resumed, range(10), [1.0] * 10)) == 10


# Epochs without an end ------------------------------------------------------------------------------------


def schedule_after(batches, schedule):
    """As ``schedule`` is after so many batches of its epoch, each with a loss of 1."""
    state = schedule.state_dict()
    numbers = {**state["state"], "batches": batches, "loss_count": batches, "loss_sum": float(batches)}
    changed = {name: value for name, value in state.items() if name not in ("version", "fingerprint")}
    schedule.load_state_dict(checkpoint.seal({**changed, "state": numbers}))
    return schedule


@pytest.mark.parametrize("recorders", [[], [MemoryRecorder()]])
def test_a_first_epoch_of_a_million_batches_is_warned_of_once_with_the_way_out(recorders):
    schedule = schedule_after(999_998, BatchAttentionSchedule(recorders=recorders))
    with pytest.warns(BatchAttentionWarning, match=r"1,000,000 batches without an end.*epoch_length=N") as warned:
        run_epoch(schedule, range(6), [1.0] * 6)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_a_loop_by_hand_that_never_ends_an_epoch_is_warned_of_once_with_the_way_out():
    schedule = BatchAttentionSchedule()
    for _ in range(4_999):
        schedule.decide(1.0)
    with pytest.warns(BatchAttentionWarning, match=r"5,000 batches.*end_epoch\(\) after each epoch.*epoch_length=N"):
        schedule.decide(1.0)
    for _ in range(6_000):
        schedule.decide(1.0)
    with pytest.raises(ProtocolError, match=r"no epoch has ended yet.*end_epoch\(\).*epoch_length=N"):
        schedule.last_summary  # noqa: B018


def test_epochs_that_end_may_be_long():
    long = BatchAttentionSchedule(epoch_length=2_000_000)
    for schedule in (schedule_after(4_999, schedule_with_threshold()), schedule_after(4_999, long)):
        schedule.decide(1.0)
        assert schedule.batches == 5_000


def test_a_progress_bar_moved_by_decisions_ends_at_its_total_and_one_without_a_total_counts_visits():
    tqdm = pytest.importorskip("tqdm").tqdm
    schedule = schedule_with_threshold()
    losses = iter([2.0, 1.0, 1.0, 2.0, 2.0, 1.0] * 2)
    attended = schedule.attend(range(3))
    with tqdm(total=attended.base_batches, file=io.StringIO()) as bar:
        for _ in attended:
            bar.update(schedule.decide(next(losses)) is Decision.ADVANCE)
        assert bar.n == bar.total == 3
    bar = tqdm(attended, file=io.StringIO())
    for _ in bar:
        schedule.decide(next(losses))
    assert (bar.n, bar.total) == (6, None)
