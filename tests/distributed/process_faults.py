"""Faults of ranks that are processes: of their data, their groups, and their end."""

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.distributed.faults import BATCHES, DIVERGED, FAULTS, Fault, make_schedule, train
from tests.distributed.processes import attempt, end_at_once

# No rank waits so long, however slow the machine is.
PATIENCE_SECONDS = 600.0


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
    return attempt(lambda: train(rank, transport(), {(1, 2, 1): end_at_once} if rank else None))


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
