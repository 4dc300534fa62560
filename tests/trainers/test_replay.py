"""Repeats inside a loop that belongs to somebody else, beside the same loop around ``attend``."""

import json
import random
import warnings
import weakref

import pytest
import torch
from torch.utils.data import DataLoader

from batch_sampler_attn import (
    BatchAttentionSampler,
    BatchAttentionSchedule,
    Decision,
    SampleAttention,
    SeededDataset,
)
from batch_sampler_attn.accumulation import accumulate, refuse_own_loader
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, ProtocolError
from batch_sampler_attn.recorders import MemoryRecorder
from batch_sampler_attn.schedule import passes_of
from batch_sampler_attn.trainers.replay import Replay, standing_in

WINDOWS = 6


def make_schedule(**options):
    recorder = MemoryRecorder()
    return BatchAttentionSchedule(**{"k": 1.0, "max_visits": 3, **options}, recorders=[recorder]), recorder


def make_replay(**options):
    schedule, recorder = make_schedule(**options)
    return Replay(schedule), recorder


def loss_at(epoch, position, visit):
    return random.Random(f"{epoch} {position} {visit}").uniform(0.5, 1.5)


def train_window(replay, losses, is_last=False, batch="batch"):
    """One window of a single batch, with the loss of each visit."""
    remaining = iter(losses)
    replay.hold(batch)
    replay.note(next(remaining))
    for _ in replay.repeats(is_last=is_last):
        replay.note(next(remaining))
    assert next(remaining, None) is None


def train_epoch(replay, epoch, first=0, last=WINDOWS, size=2, says_last=True):
    """A trainer's epoch, or the part of it from one window to another; the windows' batches as they were seen."""
    seen = []
    for position in range(first, last):
        visit = 1
        for batch in range(size):
            replay.hold([position, batch])
            replay.note(loss_at(epoch, position, (visit, batch)), batch + 1)
        seen.append(position)
        for window in replay.repeats(is_last=says_last and position == WINDOWS - 1):
            visit += 1
            assert window == [[position, batch] for batch in range(size)]
            for batch in range(size):
                replay.note(loss_at(epoch, position, (visit, batch)), batch + 1)
            seen.append(position)
    return seen


def expected(epochs, **options):
    """The visits and the epochs of a loop around ``attend``."""
    schedule, recorder = make_schedule(**options)
    for epoch in range(epochs):
        for window in schedule.attend(accumulate([[p, b] for p in range(WINDOWS) for b in range(2)], 2)):
            losses = [loss_at(epoch, window[0][0], (schedule.visits + 1, batch)) for batch in range(2)]
            schedule.decide((losses[0] + losses[1] * 2) / 3)
    return recorder.visits, recorder.summaries, schedule.threshold


OPTIONS = [{}, {"epoch_loss": "last"}, {"epoch_loss": "all"}, {"budget": 0.3}, {"epoch_length": 4}, {"max_visits": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("says_last", [True, False])
def test_visits_are_those_of_a_loop_around_attend(options, says_last):
    replay, recorder = make_replay(**options)
    for epoch in range(4):
        train_epoch(replay, epoch, says_last=says_last)
        replay.end_epoch(finished=True)
    assert (recorder.visits, recorder.summaries, replay.schedule.threshold) == expected(4, **options)
    if options.get("max_visits") != 1:
        assert any(visit.visit > 1 for visit in recorder.visits)


@pytest.mark.parametrize("position", range(WINDOWS + 1))
@pytest.mark.parametrize("says_last", [True, False])
def test_a_run_resumed_after_any_window_has_the_same_tail(position, says_last):
    replay, _ = make_replay()
    for epoch in range(2):
        replay.begin_epoch(WINDOWS, at=0)
        train_epoch(replay, epoch, says_last=says_last)
        replay.end_epoch(finished=True)
    replay.begin_epoch(WINDOWS, at=0)
    train_epoch(replay, 2, last=position, says_last=says_last)
    # As a trainer's checkpoint, before any hook at the epoch's end.
    state = json.loads(json.dumps(replay.schedule.state_dict()))

    replay, recorder = make_replay()
    replay.schedule.load_state_dict(state)
    if position < WINDOWS:
        replay.begin_epoch(WINDOWS, at=position)
        train_epoch(replay, 2, first=position, says_last=says_last)
        replay.end_epoch(finished=True)
    for epoch in (3, 4):
        replay.begin_epoch(WINDOWS, at=0)
        train_epoch(replay, epoch, says_last=says_last)
        replay.end_epoch(finished=True)
    visits, summaries, threshold = expected(5)
    tail = [visit for visit in visits if (visit.epoch, visit.batch) >= (2, position)]
    assert recorder.visits == tail
    assert recorder.summaries[-2:] == summaries[-2:]
    assert replay.schedule.threshold == threshold


def test_a_state_from_the_middle_of_repeats_goes_on_with_the_visits_made():
    replay, _ = make_replay()
    train_window(replay, [1.0], is_last=True)
    replay.hold("batch")
    replay.note(2.0)
    repeats = replay.repeats()
    next(repeats)
    replay.note(2.0)
    next(repeats)
    state = replay.schedule.state_dict()
    replay, recorder = make_replay()
    replay.schedule.load_state_dict(state)
    train_window(replay, [2.0], is_last=True)
    assert [(visit.visit, visit.decision) for visit in recorder.visits] == [(3, "advance")]


# Of three windows in each epoch: the first repeats nothing, and in the others the last window repeats twice.
LOSSES = [[[1.0], [1.0], [1.0]], [[0.5], [1.0], [3.0, 3.0, 2.0]], [[0.5], [0.5], [4.0, 4.0, 3.0]]]


@pytest.mark.parametrize("options", [{}, {"epoch_loss": "last"}, {"epoch_loss": "all"}, {"epoch_length": 3}], ids=str)
@pytest.mark.parametrize("made", [1, 2])
@pytest.mark.parametrize("windows", [3, None])
def test_a_repeat_that_is_due_on_the_last_window_of_a_saved_state_is_made(windows, made, options):
    def train(replay, epochs):
        for epoch in epochs:
            replay.begin_epoch(windows, at=0)
            for position, losses in enumerate(LOSSES[epoch]):
                train_window(replay, losses, is_last=position == 2)
            replay.end_epoch(finished=True)

    whole, expected = make_replay(**options)
    train(whole, range(3))
    assert [summary.repeats for summary in expected.summaries] == [0, 2, 2]

    replay, _ = make_replay(**options)
    train(replay, range(1))
    replay.begin_epoch(windows, at=0)
    train_window(replay, LOSSES[1][0])
    train_window(replay, LOSSES[1][1])
    replay.hold("batch")
    replay.note(LOSSES[1][2][0])
    repeats = replay.repeats(is_last=True)
    for loss in LOSSES[1][2][1:made]:
        next(repeats)
        replay.note(loss)
    next(repeats)
    state = json.loads(json.dumps(replay.schedule.state_dict()))

    resumed, recorder = make_replay(**options)
    resumed.schedule.load_state_dict(state)
    resumed.begin_epoch(windows, at=2)
    train_window(resumed, LOSSES[1][2][made:], is_last=True)
    resumed.end_epoch(finished=True)
    train(resumed, [2])
    assert recorder.visits == expected.visits[5 + made :]
    assert recorder.summaries == expected.summaries[1:]
    assert resumed.schedule.state_dict() == whole.schedule.state_dict()


def test_a_repeat_that_is_due_is_given_up_where_the_trainer_begins_an_epoch():
    replay, _ = make_replay()
    for is_last in (False, False, True):
        train_window(replay, [1.0], is_last=is_last)
    replay.begin_epoch(3, at=0)
    train_window(replay, [0.5])
    train_window(replay, [0.5])
    replay.hold("batch")
    replay.note(9.0)
    next(replay.repeats(is_last=True))
    state = replay.schedule.state_dict()
    # Its epochs have two windows now, and the state has two behind it, with a third that is to be repeated.
    for windows in (3, 2):
        resumed, recorder = make_replay()
        resumed.schedule.load_state_dict(state)
        resumed.begin_epoch(windows, at=0)
        assert (resumed.schedule.epoch, resumed.schedule.batch_index, resumed.schedule.visits) == (1, 0, 0)
        assert recorder.summaries == []


def test_an_epoch_that_was_cut_short_sets_no_threshold_and_begins_anew():
    replay, recorder = make_replay()
    train_window(replay, [1.0], is_last=True)
    train_window(replay, [0.5])
    replay.end_epoch(finished=False)
    assert replay.schedule.threshold == 1.0
    assert replay.schedule.batches == 1
    train_window(replay, [0.8])
    train_window(replay, [0.8], is_last=True)
    assert [summary.mean_loss for summary in recorder.summaries] == [1.0, 0.8]


def test_an_epoch_that_was_cut_short_can_be_gone_on_with():
    replay, _ = make_replay()
    train_window(replay, [1.0])
    replay.end_epoch(finished=False)
    state = replay.schedule.state_dict()
    replay.schedule.load_state_dict(state)
    replay.begin_epoch(2, at=1)
    train_window(replay, [3.0], is_last=True)
    assert replay.schedule.threshold == 2.0


def test_a_state_of_another_mind_than_the_trainer_is_forgotten():
    replay, recorder = make_replay()
    train_window(replay, [5.0])
    replay.schedule.load_state_dict(replay.schedule.state_dict())
    replay.begin_epoch(3, at=0)
    for is_last in (False, False, True):
        train_window(replay, [1.0], is_last=is_last)
    assert replay.schedule.threshold == 1.0
    assert [visit.loss for visit in recorder.visits] == [1.0, 1.0, 1.0]


def test_a_part_of_an_epoch_whose_beginning_was_not_seen_sets_no_threshold():
    replay, _ = make_replay()
    replay.begin_epoch(3, at=2)
    train_window(replay, [5.0], is_last=True)
    assert replay.schedule.threshold is None
    replay.begin_epoch(2, at=0)
    train_window(replay, [1.0])
    train_window(replay, [1.0], is_last=True)
    assert replay.schedule.threshold == 1.0


def test_a_schedule_with_epochs_of_its_own_goes_on_over_the_trainer_s():
    replay, _ = make_replay(epoch_length=3)
    for _ in range(3):
        replay.begin_epoch(2, at=0)
        train_window(replay, [1.0])
        train_window(replay, [1.0], is_last=True)
        replay.schedule.load_state_dict(replay.schedule.state_dict())
    assert replay.schedule.epoch == 2


def test_batches_without_a_loss_do_not_count():
    replay, recorder = make_replay()
    replay.hold("left out")
    replay.note(None)
    replay.hold("trained on")
    replay.note(1.0, 4)
    assert list(replay.repeats()) == []
    train_window(replay, [None])
    assert [visit.loss for visit in recorder.visits] == [1.0]
    assert not replay.is_in_window


def test_a_window_that_came_to_no_update_is_no_visit():
    replay, recorder = make_replay()
    replay.hold("batch")
    replay.note(7.0)
    replay.skip()
    replay.skip()
    train_window(replay, [1.0], is_last=True)
    assert [visit.loss for visit in recorder.visits] == [1.0]
    assert replay.schedule.threshold == 1.0


def test_a_window_that_is_under_way_as_the_epoch_ends_is_no_visit():
    replay, recorder = make_replay()
    train_window(replay, [1.0])
    replay.hold("batch")
    replay.note(7.0)
    replay.end_epoch(finished=True)
    assert replay.schedule.threshold == 1.0
    train_window(replay, [0.5])
    assert [visit.loss for visit in recorder.visits] == [1.0, 0.5]


def test_an_epoch_without_any_visit_is_none():
    replay, recorder = make_replay()
    replay.hold("batch")
    replay.skip(is_last=True)
    assert recorder.summaries == []
    train_window(replay, [1.0], is_last=True)
    assert replay.schedule.epoch == 1


# What is repeated


def test_what_the_step_puts_into_a_batch_is_not_there_at_its_repeat():
    replay, _ = make_replay()
    train_window(replay, [1.0], is_last=True)
    batch = {"ids": torch.ones(2)}
    seen = []
    replay.hold(batch)
    batch["more"] = 1
    replay.note(5.0)
    for (again,) in replay.repeats():
        seen.append(sorted(again))
        assert again["ids"] is batch["ids"]
        again["more"] = 1
        replay.note(5.0)
    assert seen == [["ids"], ["ids"]]


@pytest.mark.filterwarnings("ignore:the loop changed tensors")
def test_a_tensor_that_was_changed_in_place_is_not_trained_on_again():
    replay, _ = make_replay()
    train_window(replay, [1.0], is_last=True)
    images = torch.ones(2, 3)
    replay.hold([images])
    images.mul_(2)
    replay.note(5.0)
    with pytest.raises(BatchChangedError, match=r"changed tensors of it in place \(of shape \(2, 3\)\)"):
        next(replay.repeats())


def test_changes_in_place_are_warned_of_at_the_first_window():
    replay, _ = make_replay()
    images = torch.ones(2, 3)
    replay.hold(images)
    images.add_(1)
    replay.note(1.0)
    with pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place"):
        assert replay.decide() is Decision.ADVANCE


def test_a_window_that_was_decided_on_is_let_go_of_and_may_be_filled_anew():
    replay, _ = make_replay()
    replay.schedule.decide(1.0)
    replay.schedule.end_epoch()
    buffer, once = torch.ones(2, 3), torch.ones(2)
    gone = weakref.ref(once)
    train_window(replay, [0.5], batch=[buffer, once])
    del once
    assert gone() is None
    buffer.add_(1)
    train_window(replay, [2.0, 0.5], batch=[buffer])
    assert replay.schedule.summary.repeats == 1


def test_nothing_is_kept_where_nothing_may_ever_repeat():
    replay, _ = make_replay(max_visits=1)
    batch = torch.ones(2)
    gone = weakref.ref(batch)
    replay.hold([batch])
    del batch
    assert gone() is None
    replay.note(1.0)
    assert replay.decide() is Decision.ADVANCE


# Out of turn


def test_a_decision_without_a_window_is_refused():
    replay, _ = make_replay()
    with pytest.raises(ProtocolError, match=r"before hold\(\)"):
        replay.decide()


def test_a_schedule_of_a_sampler_is_refused():
    schedule = BatchAttentionSchedule()
    BatchAttentionSampler(range(4), 2, schedule=schedule)
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        Replay(schedule)


def test_decisions_from_elsewhere_are_found_out():
    replay, _ = make_replay()
    replay.schedule.decide(1.0)
    with pytest.raises(ProtocolError, match="outside a loop"):
        replay.hold("batch")


def test_ranks_that_nobody_said_are_to_decide_apart_are_refused(monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    replay, _ = make_replay()
    with pytest.raises(ProtocolError, match="MeanOverRanks"):
        replay.hold("batch")


# What is kept of an epoch, and said once


def test_an_epoch_at_its_end_is_forgotten_where_the_trainer_is_in_its_middle():
    replay, _ = make_replay()
    replay.begin_epoch(2, at=0)
    train_window(replay, [1.0])
    train_window(replay, [1.0])
    resumed, recorder = make_replay()
    resumed.schedule.load_state_dict(replay.schedule.state_dict())
    resumed.begin_epoch(2, at=1)
    assert (resumed.schedule.epoch, resumed.schedule.batch_index) == (0, 0)
    assert recorder.summaries == []


def test_a_window_that_came_to_no_update_is_still_to_come_after_an_epoch_that_was_cut_short():
    replay, _ = make_replay()
    replay.begin_epoch(2, at=0)
    train_window(replay, [1.0])
    replay.hold("batch")
    replay.end_epoch(finished=False)
    assert replay.schedule.state_dict()["state"]["batches"] == 1
    assert passes_of(replay.schedule).state.position == 1


def test_batches_that_are_changed_in_place_are_warned_of_once():
    replay, _ = make_replay()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            batch = torch.ones(2)
            replay.hold(batch)
            batch.add_(1.0)
            replay.note(1.0)
            replay.decide()
    assert [warning.category for warning in caught] == [BatchAttentionWarning]


# Around the driver


class Greeter:
    def greet(self):
        return "of the class"


@pytest.mark.parametrize("own", [None, "of the instance"])
def test_methods_stand_in_on_one_object_for_a_while(own):
    greeter, other = Greeter(), Greeter()
    if own is not None:
        greeter.greet = lambda: own
    before = dict(vars(greeter))
    with pytest.raises(KeyError), standing_in(greeter, greet=lambda: "stands in", more=lambda: 1):  # noqa: PT012
        assert (greeter.greet(), greeter.more(), other.greet()) == ("stands in", 1, "of the class")
        raise KeyError
    assert vars(greeter) == before
    assert greeter.greet() == (own or "of the class")


def own_loaders():
    data = torch.utils.data.TensorDataset(torch.ones(8, 1))
    schedule = BatchAttentionSchedule()
    attention = SampleAttention(8, 2, prune_probability=0.5, epochs=4)
    sampler = BatchAttentionSampler(range(8), 2, schedule=BatchAttentionSchedule())

    class Sharding:
        batch_sampler = sampler

    class MySampler(BatchAttentionSampler):
        pass

    attended = schedule.attend(DataLoader(data))
    return {
        "AttendedLoader": attended,
        "BatchAttentionSampler": DataLoader(data, batch_sampler=sampler),
        "SampleAttention": DataLoader(data, batch_sampler=attention),
        "MySampler": DataLoader(data, batch_sampler=MySampler(range(8), 2, schedule=BatchAttentionSchedule())),
        "the loader's sampler": DataLoader(data, batch_size=None, sampler=attention),
        "in accelerate's": DataLoader(data, batch_sampler=Sharding()),
        "accumulated": accumulate(DataLoader(data), 2),
        "attended by samples": attention.attend(DataLoader(data, batch_sampler=attention)),
    }


@pytest.mark.parametrize("name", own_loaders())
def test_a_loader_of_this_package_is_refused(name):
    with pytest.raises(ProtocolError, match=r"is or holds \w+ of batch_sampler_attn, .*: that repeats"):
        refuse_own_loader(own_loaders()[name], "that repeats")


def test_loaders_of_others_are_taken():
    data = torch.utils.data.TensorDataset(torch.ones(8, 1))
    for loader in (None, [1, 2], DataLoader(data), DataLoader(SeededDataset(data, seed=1), 2), iter([1])):
        refuse_own_loader(loader, "that repeats")
