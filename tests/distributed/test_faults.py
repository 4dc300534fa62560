"""A fault on one rank, of its training, data, groups, or end, is an error on both, without waiting for a limit."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError, RankLostError, RanksDivergedError, RankTimeoutError
from tests.distributed.faults import BATCHES, DIVERGED, FAULTS, Fault, make_schedule, train
from tests.distributed.processes import PATIENCE_SECONDS, run_ranks
from tests.distributed.threads import attempt

TABLE = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text(encoding="utf-8")


def transport():
    return MeanOverRanks(timeout_seconds=PATIENCE_SECONDS)


def decide_alone(rank, *, by_hand=False):
    schedule = BatchAttentionSchedule()
    for _ in [0] if by_hand else schedule.attend(range(3)):
        schedule.decide(1.0)


def attend_sampler(base, batch_size=2, **shard):
    schedule = make_schedule(transport())
    sampler = BatchAttentionSampler(base, batch_size, schedule=schedule, **shard)
    for _ in schedule.attend(DataLoader(range(12), batch_sampler=sampler)):
        schedule.decide(1.0)


def other_order(rank):
    generator = torch.Generator().manual_seed(rank)
    attend_sampler(RandomSampler(range(12), generator=generator), rank=rank, world_size=2)


def other_epoch(rank):
    shards = DistributedSampler(range(12))
    shards.set_epoch(rank)
    attend_sampler(shards)


def transport_shared(rank):
    ranks = transport()
    for _ in range(2):
        BatchAttentionSchedule(ranks=ranks)


PROTOCOL, OPTION = (ProtocolError, ProtocolError), (OptionError, OptionError)
NO_CHOICE = r"one of 2 .* ranks=MeanOverRanks\(\).* ranks=None"
PROCESS_FAULTS = {
    "no choice": Fault(decide_alone, PROTOCOL, NO_CHOICE),
    "no choice by hand": Fault(lambda rank: decide_alone(rank, by_hand=True), PROTOCOL, NO_CHOICE),
    "other order": Fault(other_order, DIVERGED, r"differ in generator \d+ \(rank 0\), \d+ \(rank 1\)"),
    "other data": Fault(
        lambda rank: attend_sampler(DistributedSampler(range(11 + rank))),
        DIVERGED,
        r"differ in samples of the data 11 \(rank 0\), 12 \(rank 1\)",
    ),
    # Each rank has six indices, in two batches.
    "other batch size": Fault(
        lambda rank: attend_sampler(DistributedSampler(range(12)), 4 + rank),
        DIVERGED,
        r"differ in batch_size 4 \(rank 0\), 5 \(rank 1\)",
    ),
    "other epoch": Fault(other_epoch, DIVERGED, r"differ in epoch of set_epoch 0 \(rank 0\), 1 \(rank 1\)"),
    "all of the data": Fault(
        lambda rank: attend_sampler(RandomSampler(range(12))), PROTOCOL, "RandomSampler yields all of the data"
    ),
    "sampler made again": Fault(
        lambda rank: BatchAttentionSampler(DistributedSampler(range(12)), 2, False),
        PROTOCOL,
        "no schedule on 2 ranks.*ranks=Mean.*=False",
    ),
    "transport shared": Fault(transport_shared, OPTION, "belongs to another schedule; make one for each"),
    "group without this rank": Fault(
        lambda rank: MeanOverRanks(dist.new_group([1 - rank], use_local_synchronization=True)),
        OPTION,
        "group is .*that this rank is in",
    ),
}


def all_faults(rank):
    """The outcome of each fault, and of trainings without one; all of them leave the default group intact."""
    calls = {
        **{name: lambda act=fault.act: act(rank, transport()) for name, fault in FAULTS.items()},
        **{name: lambda act=fault.act: act(rank) for name, fault in PROCESS_FAULTS.items()},
        "none": lambda: train(rank, transport()),
        "by hand": lambda: train(rank, transport(), by_hand=True, calls=1),
        "late within the limit": lambda: train(rank, transport(), {(1, 2, 1): lambda: time.sleep(rank)}),
        "apart": lambda: train(rank, None, batches=2 + rank),
    }
    outcomes = {}
    for name, call in calls.items():
        outcomes[name] = attempt(call)
        dist.barrier()
    return outcomes


def one_batch_more_in_ddp(rank):
    """The rank at fault waits alone in a collective of DDP, before its decision."""
    model, schedule = DistributedDataParallel(torch.nn.Linear(1, 1)), make_schedule(transport())

    def loop():
        for _ in schedule.attend(iter(range(BATCHES + rank))):
            model(torch.ones(1, 1)).sum().backward()
            schedule.decide(1.0)

    return attempt(loop)


def rank_killed(rank):
    return attempt(lambda: train(rank, transport(), {(1, 2, 1): lambda: os._exit(3)} if rank else None))


def rank_late(rank):
    """Rank 1 comes once rank 0 has given up: to the first exchange of a transport, and to a later one."""
    train(rank, transport())
    outcomes = {}
    if hasattr(dist.ProcessGroup, "get_group_store"):
        if rank:
            dist.barrier()
        outcomes["at first"] = attempt(lambda: train(rank, MeanOverRanks(timeout_seconds=0.5)))
        if not rank:
            dist.barrier()
    ranks = transport()

    def meet_late():
        if rank:
            dist.barrier()
        else:
            ranks.timeout_seconds = 0.5

    outcomes["later"] = attempt(lambda: train(rank, ranks, {(1, 2, 1): meet_late}))
    if not rank:
        dist.barrier()
    return outcomes


@pytest.mark.parametrize(
    "fault",
    [*FAULTS, *PROCESS_FAULTS, "one batch more in ddp", "rank killed", "rank late", "rank late at first"],
)
def test_the_table_in_the_documentation_has_every_fault(fault):
    assert f"| {fault} |" in TABLE


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_ranks(all_faults, 2, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", ["none", "by hand", "late within the limit"])
def test_without_a_fault_ranks_train_to_the_end(outcomes, name):
    (visited, threshold), other = (outcome[name] for outcome in outcomes)
    assert other == (visited, threshold)
    assert len(visited) > 2 * BATCHES
    assert threshold == pytest.approx(1.2 * (1.8 + 3 / 7))


def test_ranks_may_decide_apart_with_ranks_none(outcomes):
    (visited, threshold), (other_visited, other_threshold) = (outcome["apart"] for outcome in outcomes)
    assert len(visited) < len(other_visited)
    assert threshold != other_threshold


@pytest.mark.parametrize("name", [*FAULTS, *PROCESS_FAULTS])
def test_a_fault_is_an_error_on_both_ranks(outcomes, name):
    if name == "group without this rank" and torch.__version__ < (2, 14):
        pytest.skip("this PyTorch may call a group without this rank None, as if all ranks were meant")
    {**FAULTS, **PROCESS_FAULTS}[name].check([outcome[name] for outcome in outcomes])


def test_a_rank_at_its_end_is_notified_of_one_more_batch_that_another_is_stuck_in(tmp_path):
    error, _ = run_ranks(one_batch_more_in_ddp, 2, tmp_path)
    assert type(error) is RanksDivergedError
    assert "rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, has a batch 5" in str(error)


def test_if_a_rank_is_killed_the_other_one_raises_rank_lost_error(tmp_path):
    error, killed = run_ranks(rank_killed, 2, tmp_path, may_end=True)
    assert killed is None
    assert isinstance(error, RankLostError)
    assert "One of them is gone" in str(error)


def test_if_a_rank_is_too_late_both_raise_an_error(tmp_path):
    in_time, late = run_ranks(rank_late, 2, tmp_path)
    assert type(in_time["later"]) is RankTimeoutError
    assert isinstance(in_time["later"], TimeoutError)
    assert "at: epoch 1, batch 2, visit 1. Another rank is late, has ended" in str(in_time["later"])
    assert "timeout_seconds=0.5 must be longer" in str(in_time["later"])
    assert isinstance(late["later"], (RankTimeoutError, RankLostError))
    if hasattr(dist.ProcessGroup, "get_group_store"):  # otherwise ranks cannot meet before they make a group
        for outcome in (in_time, late):
            assert type(outcome["at first"]) is RankTimeoutError
            assert "begins epoch 0 at batch 0 after 0 visits. Another rank is late" in str(outcome["at first"])
