"""Batches in flight, also where some went out again and a loop was left once more; and whose the lists are."""

import pytest

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import RanksDivergedError
from tests.distributed.threads import on_threads
from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.test_attend import BATCH_SIZE, SAMPLES, load

pytestmark = FORKING_IS_FINE


def make():
    """Without any choice, so that the order is the same whenever losses come."""
    return SampleAttention(SAMPLES, BATCH_SIZE, prune_probability=0.0, updates=9)


def train(attention, loader, seen, stop=None):
    """An epoch, or so many of its updates; the batch that is out then has no losses reported."""
    for made, _ in enumerate(attention.attend(loader)):
        if made == stop:
            return
        seen.append(attention.indices)
        attention.report([1.0] * BATCH_SIZE)


def left_twice():
    """Two workers had read ahead; a loop without a loader has asked for the first of their batches again."""
    attention, seen = make(), []
    train(attention, load(attention, 2), seen, stop=2)
    train(attention, None, seen, stop=0)
    assert len(attention.state_dict()["flight"]) > 2
    return attention, seen


@pytest.fixture
def whole():
    seen = []
    train(make(), None, seen)
    return seen


def test_batches_in_flight_come_in_their_order_however_often_a_loop_is_left(whole):
    attention, seen = left_twice()
    train(attention, None, seen)
    assert seen == whole


def test_a_state_that_was_loaded_is_there_to_be_saved_again_also_where_a_part_went_out_again(whole):
    attention, seen = left_twice()
    for workers in (0, 2):
        state, attention = attention.state_dict(), make()
        attention.load_state_dict(state)
        assert attention.state_dict() == state
        train(attention, load(attention, workers), seen, stop=1)
    train(attention, None, seen)
    assert seen == whole


def test_a_list_of_indices_that_a_loop_changes_gives_no_loss_to_another_sample():
    attention = make()
    for indices in attention.attend():
        told = [float(index) for index in indices]
        indices.sort(reverse=True)
        attention.report(told)
    assert [attention.loss_of(sample) for sample in range(SAMPLES)] == [float(sample) for sample in range(SAMPLES)]


def test_ranks_that_loaded_different_states_in_mid_epoch_are_told_as_they_go_on():
    def on_rank(rank, transport):
        options = {"updates": 2, "rank": rank, "world_size": 2}
        alone = SampleAttention(SAMPLES, BATCH_SIZE, ranks=None, **options)
        for stop in (None, 1):
            for made, _ in enumerate(alone.attend()):
                if made == stop:
                    break
                alone.report([1.0 + rank] * BATCH_SIZE)
        attention = SampleAttention(SAMPLES, BATCH_SIZE, ranks=transport, **options)
        attention.load_state_dict(alone.state_dict())
        train(attention, None, [])

    for error in on_threads(2, on_rank):
        assert isinstance(error, RanksDivergedError)
        assert "mean_loss" in str(error)


def test_ranks_that_leave_each_epoch_at_its_last_batch_end_it_as_one_process_does():
    def on_rank(rank, transport):
        options = {"updates": 4, "prune_probability": 0.0, "rank": rank, "world_size": 2, "ranks": transport}
        attention, states = SampleAttention(SAMPLES, BATCH_SIZE, **options), []
        for epoch in range(4):
            assert attention.epoch == epoch
            for made, _ in enumerate(attention.attend(), start=1):
                attention.report([1.0 + rank + epoch] * BATCH_SIZE)
                if made == 4:
                    break
            assert (attention.epoch, attention.last_summary.epoch) == (epoch + 1, epoch)
            states.append(attention.state_dict())
        resumed = SampleAttention(SAMPLES, BATCH_SIZE, **options)
        resumed.load_state_dict(states[1])
        updates = 0
        for epoch in range(2, 4):
            for _ in resumed.attend():
                resumed.report([1.0 + rank + epoch] * BATCH_SIZE)
                updates += 1
        assert resumed.state_dict() == states[3]
        return updates, [attention.last_summary.mean_loss, resumed.last_summary.mean_loss]

    assert on_threads(2, on_rank) == [(8, [4.5, 4.5])] * 2
