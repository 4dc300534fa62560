"""MeanOverRanks where there is one rank, and what it does not go with."""

import copy
import pickle

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError


def train(schedule):
    made = []
    for losses in ([1.0, 2.0], [4.0, 1.0], [1.0, 1.0]):
        for batch in schedule.attend(range(2)):
            schedule.report(torch.tensor(losses[batch] / 2**schedule.visits), samples=3)
            made.append((batch, schedule.decide()))
    return made, schedule.threshold


def test_without_a_process_group_it_changes_nothing():
    made = train(BatchAttentionSchedule(ranks=MeanOverRanks()))
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
    with pytest.raises(OptionError, match="a process group that this rank is in"):
        MeanOverRanks("gloo")


def test_an_epoch_does_not_end_between_report_and_decide():
    schedule = BatchAttentionSchedule(ranks=MeanOverRanks())
    schedule.decide(1.0)
    schedule.report(2.0)
    with pytest.raises(ProtocolError, match=r"end_epoch\(\) was called after report"):
        schedule.end_epoch()
    schedule.decide()
    assert schedule.end_epoch().mean_loss == 1.5


def test_a_device_loop_does_not_take_it():
    model, targets = torch.nn.Linear(2, 2), torch.zeros(8, dtype=torch.long)
    schedule = BatchAttentionSchedule(ranks=MeanOverRanks())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = torch.nn.functional.cross_entropy
    with pytest.raises(OptionError, match="which has ranks="):
        DeviceLoop(model, optimizer, loss, torch.randn(8, 2), targets, 4, schedule=schedule)
