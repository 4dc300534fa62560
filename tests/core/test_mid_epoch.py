"""Epochs that resume where they were saved, without a sampler; and epochs that never end."""

import itertools
import json
import math

import pytest

from batch_sampler_attn import BatchAttentionSchedule, checkpoint
from batch_sampler_attn.errors import BatchAttentionWarning, ProtocolError
from batch_sampler_attn.recorders import MemoryRecorder
from tests.core.helpers import SKIP, resumed_from, run_epoch, schedule_with_threshold, stop_epoch


@pytest.mark.parametrize("losses", [[2.0, 2.0, 0.5, 1.0, 3.0, 1.0], [1.0, SKIP, 2.0, 2.0, SKIP, 1.0]])
@pytest.mark.parametrize("stop_after_visits", range(1, 7))
def test_a_loop_stopped_at_any_visit_resumes_from_its_saved_state(stop_after_visits, losses):
    whole, stopped = schedule_with_threshold(), schedule_with_threshold()
    batches = "abc" if SKIP not in losses else "abcd"
    expected = run_epoch(whole, batches, losses)
    seen = stop_epoch(stopped, batches, losses[:stop_after_visits])
    resumed = resumed_from(stopped)
    rest = itertools.islice(batches, resumed.batch_index, None)
    assert seen + run_epoch(resumed, rest, losses[stop_after_visits:]) == expected
    assert resumed.state_dict() == whole.state_dict()


def stopped(after, *, epochs_before=1, batches=10):
    """A schedule whose epoch was left after some batches."""
    schedule = BatchAttentionSchedule(1.0)
    for _ in range(epochs_before):
        run_epoch(schedule, range(batches), [1.0] * batches)
    stop_epoch(schedule, range(batches), [1.0] * after)
    return schedule


@pytest.mark.parametrize("after", [4, 10])
@pytest.mark.parametrize("epochs_before", [0, 1])
def test_the_whole_loader_after_a_resume_in_mid_epoch_is_refused_with_what_to_write(epochs_before, after):
    state = json.loads(json.dumps(stopped(after, epochs_before=epochs_before).state_dict()))
    resumed = BatchAttentionSchedule(1.0)
    resumed.load_state_dict(state)
    said = rf"after {after} batches, and the loader has 10, as many.*islice\(loader, schedule\.batch_index, None\)"
    with pytest.raises(ProtocolError, match=said):
        run_epoch(resumed, range(10), [1.0] * 10)
    rest = itertools.islice(range(10), resumed.batch_index, None)
    assert run_epoch(resumed, rest, [1.0] * (10 - after)) == [*range(after, 10)]
    assert resumed.last_summary.batches == 10
    run_epoch(resumed, range(10), [1.0] * 10)
    # Of an iterator, only its end shows that it was the whole loader.
    resumed.load_state_dict(state)
    with pytest.warns(BatchAttentionWarning, match=f"had {10 + after} batches in all, instead of 10"):
        run_epoch(resumed, iter(range(10)), [1.0] * 10)


def test_the_whole_loader_after_a_resume_behind_skipped_batches_alone_is_refused():
    schedule = schedule_with_threshold()
    stop_epoch(schedule, range(3), [SKIP, SKIP])
    with pytest.raises(ProtocolError, match="after 2 batches, and the loader has 3"):
        run_epoch(resumed_from(schedule), range(3), [1.0] * 3)


def test_a_loader_that_resumes_by_itself_is_left_to_it_and_warned_of_if_it_is_cut_once_more():
    class Stateful(list):
        position = 0

        def load_state_dict(self, state):
            self.position = state

        def __iter__(self):
            return itertools.islice(super().__iter__(), self.position, None)

    loader = Stateful(range(10))
    loader.load_state_dict(4)
    resumed = resumed_from(stopped(4))
    assert run_epoch(resumed, loader, [1.0] * 6) == [4, 5, 6, 7, 8, 9]
    assert resumed.last_summary.batches == 10
    resumed = resumed_from(stopped(4))
    with pytest.warns(BatchAttentionWarning, match="had 6 batches in all"):
        run_epoch(resumed, itertools.islice(loader, resumed.batch_index, None), [1.0] * 2)


def test_epochs_of_other_lengths_may_be_resumed_and_an_epoch_that_was_resumed_may_be_abandoned():
    assert len(run_epoch(resumed_from(stopped(4)), range(9), [1.0] * 9)) == 9
    resumed = resumed_from(stopped(4))
    resumed.abandon_epoch()
    assert len(run_epoch(resumed, range(10), [1.0] * 10)) == 10


def test_a_recorder_that_raises_as_an_epoch_ends_leaves_nothing_of_it_to_the_next_one():
    class FullDisk(MemoryRecorder):
        is_full = True

        def on_epoch_end(self, summary):
            if self.is_full:
                self.is_full = False
                raise OSError("disk full")

    resumed = resumed_from(stopped(4), recorders=[FullDisk()])
    with pytest.warns(BatchAttentionWarning, match="is not finite"), pytest.raises(OSError, match="disk full"):
        run_epoch(resumed, iter(range(4, 10)), [math.nan, *[1.0] * 5])
    assert resumed.last_summary.batches == 10
    with pytest.warns(BatchAttentionWarning, match="is not finite"):
        assert run_epoch(resumed, range(10), [math.nan, *[1.0] * 9]) == [*range(10)]


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
        stop_epoch(schedule, range(9), [1.0] * 6)
    assert [warning.filename.endswith("helpers.py") for warning in warned] == [True]


def test_a_loop_by_hand_that_never_ends_an_epoch_is_warned_of_once_with_the_way_out():
    schedule = schedule_after(4_999, BatchAttentionSchedule())
    with pytest.warns(BatchAttentionWarning, match=r"5,000 batches.*end_epoch\(\) after each epoch.*epoch_length=N"):
        schedule.decide(1.0)
    schedule.decide(1.0)
    with pytest.raises(ProtocolError, match=r"no epoch has ended yet.*end_epoch\(\).*epoch_length=N"):
        schedule.last_summary  # noqa: B018


def test_epochs_that_end_may_be_long():
    long = BatchAttentionSchedule(epoch_length=2_000_000)
    for schedule in (schedule_after(4_999, schedule_with_threshold()), schedule_after(4_999, long)):
        schedule.decide(1.0)
        assert schedule.batches == 5_000
