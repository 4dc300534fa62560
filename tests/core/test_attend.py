"""``attend`` over any iterable, and loops that break its protocol."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, EmptyEpochError, ProtocolError
from tests.core.helpers import (
    COPIES,
    loader_through_a_sampler,
    resumed_from,
    run_epoch,
    schedule_with_threshold,
    stop_epoch,
)

WAYS = ["attend", "immediate", "deferred"]


class Indexed:
    """An iterable as old classes are: with nothing but ``__getitem__``."""

    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, index):
        return self.batches[index]


# Visits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, iter, lambda batches: (batch for batch in batches), dict.fromkeys, Indexed])
def test_a_batch_of_any_iterable_is_yielded_again_while_its_loss_is_above_the_threshold(make):
    schedule, batches = schedule_with_threshold(), [object(), object(), object()]
    seen = run_epoch(schedule, make(batches), [2.0, 2.0, 0.5, 1.0, 3.0, 1.0])
    assert [batches.index(batch) for batch in seen] == [0, 0, 0, 1, 2, 2]
    assert schedule.last_summary.repeats == 3


def test_something_that_is_not_iterable_is_refused():
    with pytest.raises(TypeError, match="iterable of batches"):
        BatchAttentionSchedule().attend(3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_index_and_first_visit_are_those_of_the_batch_before_and_after_its_decision(way):
    schedule = schedule_with_threshold(max_visits=3)
    workers = {"num_workers": 1} if way == "deferred" else {}
    loader = range(0, 8, 2) if way == "attend" else loader_through_a_sampler(schedule, range(8), way, **workers)
    seen = []
    for batch in schedule.attend(loader):
        position = (batch if way == "attend" else batch[0].item()) // 2
        before = schedule.batch_index, schedule.is_first_visit
        assert before == (position, position not in seen)
        assert schedule.visits == seen.count(position)
        schedule.decide(2.0 if position % 2 else 1.0)
        assert (schedule.batch_index, schedule.is_first_visit) == before
        seen.append(position)
    assert sorted(seen) == [0, 1, 1, 1, 2, 3, 3, 3]
    assert (seen == sorted(seen)) == (way != "deferred")
    assert schedule.batch_index == 0


def test_in_a_loop_by_hand_index_and_first_visit_are_those_of_the_next_decision():
    schedule = schedule_with_threshold()
    told = []
    for loss in (1.0, 2.0, 1.0, 1.0):
        told.append((schedule.batch_index, schedule.is_first_visit))
        schedule.decide(loss)
    assert told == [(0, True), (1, True), (1, False), (2, True)]


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


# The attended loader --------------------------------------------------------------------------------------


def test_what_attend_returns_has_the_loaders_attributes_and_no_length_since_it_yields_visits():
    class Loader(list):
        dataset = "the data"

    attended = BatchAttentionSchedule(1.5).attend(Loader([1, 2, 3]))
    assert (attended.base_batches, attended.dataset, attended.schedule.options.k) == (3, "the data", 1.5)
    with pytest.raises(AttributeError):
        attended.nothing  # noqa: B018
    with pytest.raises(TypeError, match=r"no length: repeats are decided.*len\(loader\), or attended\.base_batches"):
        len(attended)
    stream = BatchAttentionSchedule().attend(iter([1]))
    assert stream
    with pytest.raises(TypeError):
        stream.base_batches  # noqa: B018


def test_attributes_are_set_where_they_are_read_but_for_special_names():
    class Loader(list):
        mixup_enabled = True
        _labels = None

        def names(self):
            return self.mixup_enabled, self._labels

    loader, other = Loader([1, 2]), BatchAttentionSchedule()
    attended = BatchAttentionSchedule().attend(loader)
    attended.mixup_enabled, attended._labels = False, [3]
    attended.schedule = attended.__mark__ = other
    assert loader.names() == (attended.mixup_enabled, attended._labels) == (False, [3])
    assert attended.schedule is attended.__mark__ is other
    assert not hasattr(loader, "schedule")
    assert not hasattr(loader, "__mark__")
    with pytest.raises(AttributeError):
        BatchAttentionSchedule().attend([1]).flag = True


def test_what_attend_returns_can_be_copied_and_pickled():
    attended = BatchAttentionSchedule(1.5).attend([1, 2])
    for twin in (copy.copy(attended), copy.deepcopy(attended), pickle.loads(pickle.dumps(attended))):
        assert twin.base_batches == 2
        for _ in twin:
            twin.schedule.decide(1.0)
        assert twin.schedule.last_summary.batches == 2


def test_a_schedule_and_an_attended_loader_say_what_they_are_and_where():
    schedule = schedule_with_threshold()
    stop_epoch(schedule, "abc", [0.5, 0.5])
    assert repr(schedule) == (
        "<BatchAttentionSchedule(k=1.0, warmup_epochs=1, epoch_loss='first', max_visits=100, nonfinite='advance', "
        "epoch_length=None, budget=None, floor=0.0), epoch 1, batch 2, visits 0, threshold 1>"
    )
    assert repr(schedule.attend([1] * 3)) == f"<list of 3 batches, attended by {schedule!r}>"
    assert repr(schedule.attend(iter([1]))).startswith("<list_iterator, attended by")
    assert repr(EqualComputeControl([[1], [2]])) == (
        "<EqualComputeControl(2 epochs, seed=0), epoch 0, batch 0, visits 0, no threshold>"
    )


@pytest.mark.parametrize("how", ["attended", "another schedule's", "batch_sampler", "sampler"])
def test_a_loader_that_repeats_by_itself_is_refused_with_the_way_out(how):
    schedule = BatchAttentionSchedule()
    if how == "attended":
        loader, said = BatchAttentionSchedule().attend([1]), "iterate over the attended loader itself"
    elif how == "another schedule's":
        loader = Indexed([1])
        loader.batch_sampler = SimpleNamespace(schedule=None)
        said = r"loader\.batch_sampler\.schedule\.attend\(loader\)"
    else:
        data = pytest.importorskip("torch.utils.data")
        from batch_sampler_attn import SampleAttention

        attention, said = SampleAttention(8, 2), r"SampleAttention.*attention\.attend\(loader\)"
        options = {"batch_sampler": attention} if how == "batch_sampler" else {"sampler": attention, "batch_size": None}
        loader = data.DataLoader(range(8), **options)
    with pytest.raises(ProtocolError, match=said):
        schedule.attend(loader)


ONCE = {
    "enumerate": enumerate,
    "zip": lambda loader: zip(loader, strict=True),
    "map": lambda loader: map(str, loader),
    "generator expression": lambda loader: (batch for batch in loader),
}


@pytest.mark.parametrize("wrap", ONCE.values(), ids=ONCE)
def test_an_iterator_over_a_loader_is_one_epoch_and_over_a_samplers_loader_none(wrap):
    attended = BatchAttentionSchedule().attend(wrap([1, 2]))
    for _ in attended:
        attended.schedule.decide(1.0)
    with pytest.raises(EmptyEpochError, match=r"enumerate, zip, map.*enumerate\(schedule\.attend\(loader\)\)"):
        list(attended)
    schedule = BatchAttentionSchedule()
    loader = loader_through_a_sampler(schedule, range(4), "deferred")
    with pytest.raises(ProtocolError, match=r"DataLoader|loader itself"):
        run_epoch(schedule, wrap(loader), [1.0, 1.0])
    assert len(run_epoch(schedule, loader, [1.0, 1.0])) == 2


# Calls out of turn ----------------------------------------------------------------------------------------


def test_asking_for_the_next_batch_without_a_decision_is_refused():
    with pytest.raises(ProtocolError, match="before decide"):
        list(BatchAttentionSchedule().attend([1, 2]))


def test_deciding_twice_is_refused_and_the_first_decision_stands():
    schedule, losses = schedule_with_threshold(), iter([2.0, 1.0])
    visits = 0
    for _ in schedule.attend([1]):
        schedule.decide(next(losses))
        visits += 1
        with pytest.raises(ProtocolError, match="called twice"):
            schedule.decide(0.0)
    assert visits == 2


def test_deciding_before_the_first_batch_is_refused():
    schedule = BatchAttentionSchedule()

    def early():
        schedule.decide(1.0)
        yield 1

    with pytest.raises(ProtocolError, match="before attend"):
        list(schedule.attend(early()))


@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_schedule_keeps_batches_and_losses_in_step(copied):
    schedule = BatchAttentionSchedule(1.0)
    schedule.decide(1.0)
    assert copied(schedule).end_epoch() == schedule.end_epoch()
    iterator = iter(schedule.attend([1]))
    next(iterator)
    schedule.decide(1.0)
    with pytest.raises(ProtocolError, match="called twice"):
        copied(schedule).decide(1.0)


# Where epochs end -----------------------------------------------------------------------------------------


def test_each_iteration_is_one_epoch_ended_by_itself_and_epochs_by_hand_may_take_turns_with_it():
    schedule = BatchAttentionSchedule(1.0)
    attended = schedule.attend([1, 2])
    for epoch in range(0, 6, 2):
        assert schedule.epoch == epoch
        for _ in attended:
            with pytest.raises(ProtocolError, match="by itself"):
                schedule.end_epoch()
            schedule.decide(1.0)
        schedule.decide(1.0)
        assert schedule.end_epoch().epoch == epoch + 1


@pytest.mark.parametrize("loader", [[], iter([])])
def test_an_empty_loader_is_refused(loader):
    with pytest.raises(EmptyEpochError, match="without a batch"):
        list(BatchAttentionSchedule().attend(loader))


def test_end_epoch_is_refused_while_a_repeat_is_due_and_where_a_length_ends_epochs():
    schedule = schedule_with_threshold()
    schedule.decide(2.0)
    with pytest.raises(ProtocolError, match="REPEAT after 1 visits"):
        schedule.end_epoch()
    with pytest.raises(ProtocolError, match="epoch_length=3"):
        BatchAttentionSchedule(epoch_length=3).end_epoch()


@pytest.mark.parametrize("leave", ["break", "error in the loop", "error in the loader"])
def test_a_loop_left_early_abandons_its_epoch_and_sets_no_threshold(leave):
    def batches():
        yield from (1, 2)
        raise OSError("disk")

    schedule = schedule_with_threshold(5.0)
    if leave == "break":
        stop_epoch(schedule, [1, 2, 3], [1.0, 100.0])
    elif leave == "error in the loop":
        with pytest.raises(StopIteration):
            run_epoch(schedule, [1, 2, 3], [1.0, 100.0])
    else:
        with pytest.raises(OSError, match="disk"):
            run_epoch(schedule, batches(), [1.0, 2.0])
    assert (schedule.epoch, schedule.threshold) == (1, 5.0)
    assert run_epoch(schedule, [1, 2], [5.0, 3.0]) == [1, 2]
    assert (schedule.epoch, schedule.threshold, schedule.last_summary.batches) == (2, 4.0, 2)


def test_leaving_every_epoch_early_is_warned_of_since_nothing_would_ever_repeat():
    schedule = BatchAttentionSchedule()
    for _ in range(4):  # now and then is no matter
        stop_epoch(schedule, [1, 2], [1.0])
        run_epoch(schedule, [1], [1.0])
    for _ in range(2):
        stop_epoch(schedule, [1, 2], [1.0])
    with pytest.warns(BatchAttentionWarning, match="islice") as warned:
        stop_epoch(schedule, [1, 2], [1.0])
    stop_epoch(schedule, [1, 2], [1.0])
    assert len(warned) == 1


# Decisions that belong to no pass -------------------------------------------------------------------------


@pytest.mark.parametrize("stray", ["first", "repeat", "skip", "nan", "after load", "after a break", "fixed length"])
def test_decisions_by_hand_are_found_wherever_they_were_made(stray):
    schedule = BatchAttentionSchedule(1.0) if stray == "first" else schedule_with_threshold()
    if stray == "after load":
        schedule.decide(1.0)
        schedule.load_state_dict(schedule.state_dict())
    elif stray == "after a break":
        stop_epoch(schedule, [1, 2], [1.0])
    elif stray == "fixed length":
        schedule = BatchAttentionSchedule(1.0, epoch_length=5)
        for _ in range(2):
            run_epoch(schedule, [1, 2], [1.0, 1.0])
        schedule.decide(50.0)
    if stray == "skip":
        schedule.skip()
    elif stray == "nan":
        with pytest.warns(BatchAttentionWarning):
            schedule.decide(float("nan"))
    else:
        schedule.decide(50.0 if stray in ("repeat", "fixed length") else 1.0)
    with pytest.raises(ProtocolError, match=r"outside a loop of attend\(\).*abandon_epoch"):
        run_epoch(schedule, [1, 2], [])
    schedule.abandon_epoch()
    assert run_epoch(schedule, [1, 2], [0.5, 0.5]) == [1, 2]


def test_an_epoch_by_hand_that_was_saved_continues_under_attend():
    schedule = schedule_with_threshold()
    schedule.decide(0.5)
    schedule.decide(2.0)
    resumed = resumed_from(schedule)
    assert run_epoch(resumed, iter("bc"), [0.5, 0.5]) == ["b", "c"]
    assert resumed.last_summary.batches == 3
