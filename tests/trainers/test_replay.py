"""Repeats inside a loop that belongs to somebody else, beside the same loop around ``attend``."""

import json
import random
import warnings
import weakref

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

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
from batch_sampler_attn.trainers.replay import Replay, standing_in

WINDOWS = 4


def make_schedule(**options):
    recorder = MemoryRecorder()
    return BatchAttentionSchedule(**{"k": 1.0, "max_visits": 3, **options}, recorders=[recorder]), recorder


def make_replay(state=None, **options):
    schedule, recorder = make_schedule(**options)
    if state is not None:
        schedule.load_state_dict(json.loads(json.dumps(state)))
    return Replay(schedule), recorder


def loss_at(epoch, position, visit, batch):
    return random.Random(f"{epoch} {position} {visit} {batch}").uniform(0.5, 1.5)


def train(replay, epochs, windows=WINDOWS, at=0, says_last=True):
    """A trainer's epochs, the first from a window on; after each decision, where a run resumes, and the state."""
    saved = []
    for epoch in epochs:
        replay.begin_epoch(windows, at=at)
        for position in range(at, WINDOWS):
            for batch in range(2):
                replay.hold([position, batch])
                replay.note(loss_at(epoch, position, replay.schedule.visits + 1, batch), batch + 1)
            for window in replay.repeats(is_last=says_last and position == WINDOWS - 1):
                saved.append((epoch, position, replay.schedule.state_dict()))
                assert window == [[position, batch] for batch in range(2)]
                for batch in range(2):
                    replay.note(loss_at(epoch, position, replay.schedule.visits + 1, batch), batch + 1)
            # As trainers write it, before any hook at the epoch's end.
            saved.append((*divmod(epoch * WINDOWS + position + 1, WINDOWS), replay.schedule.state_dict()))
        replay.end_epoch(finished=True)
        at = 0
    return saved


def around_attend(epochs, **options):
    """The visits and the epochs of a loop around ``attend``."""
    schedule, recorder = make_schedule(**options)
    for epoch in range(epochs):
        for window in schedule.attend(accumulate([[p, b] for p in range(WINDOWS) for b in range(2)], 2)):
            losses = [loss_at(epoch, window[0][0], schedule.visits + 1, batch) for batch in range(2)]
            schedule.decide((losses[0] + losses[1] * 2) / 3)
    return recorder.visits, recorder.summaries, schedule.threshold


OPTIONS = [{}, {"epoch_loss": "last"}, {"epoch_loss": "all"}, {"budget": 0.3}, {"epoch_length": 3}, {"max_visits": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("windows", "says_last"), [(WINDOWS, True), (WINDOWS, False), (None, True)])
def test_a_run_is_that_of_a_loop_around_attend_also_resumed_from_any_state(options, windows, says_last):
    whole, recorder = make_replay(**options)
    saved = train(whole, range(3), windows, says_last=says_last)
    assert (recorder.visits, recorder.summaries, whole.schedule.threshold) == around_attend(3, **options)
    assert any(visit.visit > 1 for visit in recorder.visits) == (options.get("max_visits") != 1)
    for visits, (epoch, position, state) in enumerate(saved[:-1], 1):
        resumed, tail = make_replay(state, **options)
        train(resumed, range(epoch, 3), windows, position, says_last)
        assert tail.visits == recorder.visits[visits:]
        assert tail.summaries == recorder.summaries[len(recorder.summaries) - len(tail.summaries) :]
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()


def begin_window(replay, loss, batch="batch"):
    replay.hold(batch)
    replay.note(loss)


def train_window(replay, losses, is_last=False, batch="batch"):
    """One window of a single batch, with the loss of each visit."""
    remaining = iter(losses)
    begin_window(replay, next(remaining), batch)
    for _ in replay.repeats(is_last=is_last):
        replay.note(next(remaining))
    assert next(remaining, None) is None


def train_windows(replay, *losses):
    """Windows that are not repeated, to the end of an epoch."""
    for position, loss in enumerate(losses, 1):
        train_window(replay, [loss], is_last=position == len(losses))


def test_a_repeat_that_is_due_is_given_up_where_the_trainer_begins_an_epoch():
    replay, _ = make_replay()
    train_windows(replay, 1.0, 1.0, 1.0)
    replay.begin_epoch(3, at=0)
    train_window(replay, [0.5])
    train_window(replay, [0.5])
    begin_window(replay, 9.0)
    next(replay.repeats(is_last=True))
    # With two windows in an epoch, the state has two behind it, and a third that is to be repeated.
    for windows in (3, 2):
        resumed, recorder = make_replay(replay.schedule.state_dict())
        resumed.begin_epoch(windows, at=0)
        assert (resumed.schedule.epoch, resumed.schedule.batch_index, resumed.schedule.visits) == (1, 0, 0)
        assert recorder.summaries == []


@pytest.mark.parametrize(("behind", "at"), [(1, 0), (1, 2), (3, 1)])
def test_an_epoch_in_which_the_trainer_is_elsewhere_is_forgotten(behind, at):
    replay, _ = make_replay()
    replay.begin_epoch(3, at=0)
    for _ in range(behind):
        train_window(replay, [5.0])
    replay, recorder = make_replay(replay.schedule.state_dict())
    replay.begin_epoch(3, at=at)
    assert (replay.schedule.epoch, replay.schedule.batch_index, recorder.summaries) == (0, 0, [])
    # What remains of the trainer's epoch sets no threshold, unless it is all of it.
    train_windows(replay, *[4.0] * (3 - at))
    assert replay.schedule.threshold == (4.0 if at == 0 else None)
    replay.begin_epoch(3, at=0)
    train_windows(replay, 1.0, 1.0, 1.0)
    assert replay.schedule.threshold == 1.0


def test_an_epoch_that_was_cut_short_sets_no_threshold_and_begins_again_or_resumes():
    replay, recorder = make_replay()
    train_windows(replay, 1.0, 1.0)
    train_window(replay, [0.5])
    replay.hold("batch")  # a window without an update, which is still to come
    replay.end_epoch(finished=False)
    schedule = replay.schedule
    assert (schedule.threshold, schedule.batches, schedule.state_dict()["state"]["batches"]) == (1.0, 1, 1)
    resumed, _ = make_replay(schedule.state_dict())
    resumed.begin_epoch(2, at=1)
    train_windows(resumed, 0.9)
    assert resumed.schedule.threshold == 0.7
    train_windows(replay, 0.8, 0.8)
    assert [summary.mean_loss for summary in recorder.summaries] == [1.0, 0.8]


def test_batches_and_windows_that_were_not_trained_on_do_not_count():
    replay, recorder = make_replay()
    replay.hold("batch")
    replay.skip(is_last=True)  # an epoch without any visit is none
    assert recorder.summaries == []
    replay.hold("left out")
    replay.note(None)
    train_window(replay, [1.0])
    train_window(replay, [None])
    assert not replay.is_in_window
    begin_window(replay, 7.0)
    replay.skip()
    replay.skip()
    begin_window(replay, 7.0)
    replay.end_epoch(finished=True)
    assert [visit.loss for visit in recorder.visits] == [1.0]
    assert replay.schedule.threshold == 1.0


def test_what_the_step_puts_into_a_batch_is_not_there_at_its_repeat():
    replay, _ = make_replay()
    train_windows(replay, 1.0)
    batch, seen = {"ids": torch.ones(2)}, []
    replay.hold(batch)
    batch["more"] = 1
    replay.note(5.0)
    for (again,) in replay.repeats():
        seen.append(sorted(again))
        assert again["ids"] is batch["ids"]
        again["more"] = 1
        replay.note(5.0)
    assert seen == [["ids"], ["ids"]]


def test_a_tensor_that_is_changed_in_place_is_warned_of_once_and_not_trained_on_again():
    replay, _ = make_replay()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            images = torch.ones(2, 3)
            replay.hold([images])
            images.mul_(2)
            replay.note(1.0)
            assert replay.decide() is Decision.ADVANCE
    assert [warning.category for warning in caught] == [BatchAttentionWarning]
    replay.end_epoch(finished=True)
    replay.hold([images])
    images.mul_(2)
    replay.note(5.0)
    with pytest.raises(BatchChangedError, match=r"changed tensors in it in place \(of shape \(2, 3\)\)"):
        next(replay.repeats())


def test_a_window_that_was_decided_on_is_released_and_may_be_filled_again():
    replay, _ = make_replay()
    train_windows(replay, 1.0)
    buffer, once = torch.ones(2, 3), torch.ones(2)
    gone = weakref.ref(once)
    train_window(replay, [0.5], batch=[buffer, once])
    del once
    assert gone() is None
    buffer.add_(1)
    train_window(replay, [2.0, 0.5], batch=[buffer])
    assert replay.schedule.summary.repeats == 1


def test_decisions_out_of_turn_are_refused():
    replay, _ = make_replay()
    with pytest.raises(ProtocolError, match=r"before hold\(\)"):
        replay.decide()
    replay.schedule.decide(1.0)
    with pytest.raises(ProtocolError, match="outside a loop"):
        replay.hold("batch")


def test_loaders_of_this_package_are_refused_and_others_are_taken():
    data = TensorDataset(torch.ones(8, 1))
    attention = SampleAttention(8, 2, prune_probability=0.5, epochs=4)
    sampler = type("Mine", (BatchAttentionSampler,), {})(range(8), 2, schedule=BatchAttentionSchedule())
    for loader in (
        BatchAttentionSchedule().attend(DataLoader(data)),
        accumulate(DataLoader(data), 2),
        attention.attend(DataLoader(data, batch_sampler=attention)),
        DataLoader(data, batch_sampler=sampler),
        DataLoader(data, batch_size=None, sampler=attention),
        DataLoader(data, batch_sampler=type("Sharding", (), {"batch_sampler": sampler})()),  # as accelerate's
    ):
        with pytest.raises(ProtocolError, match=r"is or holds \w+ of batch_sampler_attn, .*: that repeats"):
            refuse_own_loader(loader, "that repeats")
    for loader in (None, [1, 2], DataLoader(data), DataLoader(SeededDataset(data, seed=1), 2), iter([1])):
        refuse_own_loader(loader, "that repeats")


@pytest.mark.parametrize("own", [{}, {"greet": lambda: "of the instance"}])
def test_methods_stand_in_on_one_object_for_a_while(own):
    greeter, other = (type("Greeter", (), {"greet": lambda self: "of the class"})() for _ in range(2))
    vars(greeter).update(own)
    with pytest.raises(KeyError), standing_in(greeter, greet=lambda: "stands in", more=lambda: 1):  # noqa: PT012
        assert (greeter.greet(), greeter.more(), other.greet()) == ("stands in", 1, "of the class")
        raise KeyError
    assert vars(greeter) == own
