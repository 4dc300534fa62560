"""How often the host waits for the device, and loops that share one."""

import math
import random

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import ProtocolError
from tests.device.helpers import DROPOUT_SEED, are_equal, make_data, make_loop, train

pytestmark = pytest.mark.usefixtures("one_thread")


def reads_by_the_rule(repeated):
    """How often the cursor is read, if visit i of the epoch is answered by REPEAT where ``repeated[i]``."""
    batches, cursor, visit_number, reads = repeated.count(False), 0, 0, 0
    while cursor < batches:
        enqueued = repeated[visit_number : visit_number + batches - cursor]
        visit_number += len(enqueued)
        cursor += enqueued.count(False)
        reads += 1
    return reads


@pytest.mark.parametrize("batches", [100, pytest.param(1563, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", [0.02, 0.15, 0.5])
def test_host_reads_grow_with_the_logarithm_of_the_batches(share, batches):
    rng = random.Random(0)
    repeated = []
    while repeated.count(False) < batches:
        repeated.append(rng.random() < share)
    losses = iter([1.0] * batches + [2.0 if again else 0.5 for again in repeated])
    loop = make_loop(
        *make_data(2 * batches),
        2,
        loss_fn=lambda outputs, targets: outputs.sum() * 0.0 + next(losses),
        schedule=BatchAttentionSchedule(1.0, max_visits=None),
    )
    loop.run_epoch()
    summary = loop.run_epoch()
    assert summary.repeats == repeated.count(True)
    assert summary.host_reads == reads_by_the_rule(repeated)
    assert summary.host_reads <= 3 * math.log(batches) / math.log(1 / share) + 5


@pytest.mark.parametrize("epoch_length", [2, 3, 4])
def test_updates_that_are_made_one_by_one_are_those_of_whole_epochs(epoch_length):
    loop, expected = (
        make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0, max_visits=3, epoch_length=epoch_length))
        for _ in range(2)
    )
    train(expected, 4)
    torch.manual_seed(DROPOUT_SEED)
    for _ in range(4):
        while loop.run_updates(1) is None:
            pass
    assert loop.schedule.state_dict()["state"] == expected.schedule.state_dict()["state"]
    assert are_equal(loop.model, expected.model)


def test_enqueue_says_how_many_updates_were_certainly_needed():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    assert [loop.enqueue(4), loop.enqueue(4), loop.enqueue(4)] == [4, 2, 0]
    assert loop.synchronize() is None
    # The shorter batch is needed once the others are finished.
    assert [loop.enqueue(4), loop.enqueue(4)] == [1, 0]
    assert loop.synchronize().visits == 7
    assert loop.synchronize() is None


def test_an_interrupt_in_an_update_leaves_a_loop_that_can_continue():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)

    loop = make_loop(*make_data(48), loss_fn=loss_fn, schedule=BatchAttentionSchedule())
    with pytest.raises(KeyboardInterrupt):
        loop.run_epoch()
    summary = loop.run_epoch()
    assert (summary.batches, summary.visits, loop.updates) == (6, 6, 6)


def test_a_schedule_in_an_epoch_of_another_loop_is_refused():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    with pytest.raises(ProtocolError, match="middle of an epoch"):
        loop.run_epoch()
    schedule.abandon_epoch()
    assert loop.run_epoch().batches == 6


CHANGES_OF_THE_SCHEDULE = {
    "abandoned": lambda schedule: schedule.abandon_epoch(),
    "loaded": lambda schedule: schedule.load_state_dict(schedule.state_dict()),
    "in another loop": lambda schedule: next(iter(schedule.attend([1]))),
}


@pytest.mark.parametrize("change", CHANGES_OF_THE_SCHEDULE.values(), ids=CHANGES_OF_THE_SCHEDULE)
def test_a_schedule_that_is_changed_while_updates_are_in_flight_is_an_error(change):
    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    loop.run_updates(2)
    loop.enqueue(2)
    change(schedule)
    with pytest.raises(ProtocolError, match="stale"):
        loop.synchronize()
    schedule.abandon_epoch()
    assert loop.run_epoch().visits == 6
