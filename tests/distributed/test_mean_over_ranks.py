"""MeanOverRanks in one process, and options that it refuses."""

import copy
import pickle

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError


def train(schedule, loss_type=torch.tensor):
    made = []
    for losses in ([1.0, 2.0], [4.0, 1.0], [1.0, 1.0]):
        for batch in schedule.attend(range(2)):
            schedule.report(loss_type(losses[batch] / 2**schedule.visits), samples=3)
            made.append((batch, schedule.decide()))
    return made, schedule.threshold


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_without_a_process_group_it_changes_nothing(framework):
    loss_type = torch.tensor if framework == "torch" else pytest.importorskip("jax.numpy").float32
    made = train(BatchAttentionSchedule(ranks=MeanOverRanks()), loss_type)
    assert made == train(BatchAttentionSchedule())
    assert (0, Decision.REPEAT) in made[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_schedule_has_messages_of_its_own(copied):
    ranks = MeanOverRanks(timeout_seconds=7)
    schedule = BatchAttentionSchedule(ranks=ranks)
    twin_schedule, twin = copied((schedule, ranks))
    assert twin is not ranks
    assert twin.timeout_seconds == 7
    with pytest.raises(OptionError, match="belongs to another schedule"):
        BatchAttentionSchedule(ranks=twin)
    assert train(twin_schedule) == train(schedule)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), "1", 0.0001, 1e10])
def test_a_limit_that_is_not_allowed_is_refused(seconds):
    with pytest.raises(OptionError, match="timeout_seconds"):
        MeanOverRanks(timeout_seconds=seconds)


def test_another_kind_of_group_is_refused():
    with pytest.raises(OptionError, match="'gloo'; it must be None, or a process group that this rank is in"):
        MeanOverRanks("gloo")
