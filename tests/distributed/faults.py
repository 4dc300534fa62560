"""What goes wrong on one rank of two, as each rank does it: the rows of the table in docs/ranks.md."""

import time

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.distributed import MeanOverRanks
from tests.distributed.processes import end_at_once, outcome

LIMIT_SECONDS = 6.0
BATCHES = 5
# Some batches repeat in the second epoch.
LOSSES = [1.0, 4.0, 1.0, 2.0, 1.0]


def train(*, rank, k=1.2, batches=BATCHES, is_known=True, state=None, before=None, calls=2, by_hand=False):
    """Two epochs; ``before(epoch, batch)`` may do something, or say "skip", "forget" or "refuse", at a first visit."""
    schedule = BatchAttentionSchedule(k, max_visits=3, ranks=MeanOverRanks(timeout_seconds=LIMIT_SECONDS))
    if state is not None:
        schedule.load_state_dict(state)
    made = []

    def visit(epoch, batch):
        word = before(epoch, batch) if before is not None and schedule.visits == 0 else None
        if word == "skip":
            schedule.skip()
        if word in ("skip", "forget"):
            return None
        made.append(batch)
        loss = torch.ones(2) if word == "refuse" else LOSSES[batch % len(LOSSES)] + rank
        return tell(schedule, loss, 4 - rank, calls)

    for epoch in range(2):
        if by_hand:
            for batch in range(batches):
                while visit(epoch, batch) is Decision.REPEAT:
                    pass
            schedule.end_epoch()
        else:
            for batch in schedule.attend(range(batches) if is_known else (batch for batch in range(batches))):
                visit(epoch, batch)
    return made, schedule.threshold


def tell(schedule, loss, samples, calls):
    if calls == 1:
        return schedule.decide(loss, samples=samples)
    schedule.report(loss, samples=samples)
    return schedule.decide()


def at(epoch, batch, word):
    return lambda now_epoch, now_batch: word if (now_epoch, now_batch) == (epoch, batch) else None


def none(rank):
    return train(rank=rank)


def none_by_hand(rank):
    return train(rank=rank, by_hand=True, calls=1)


def other_options(rank):
    return train(rank=rank, k=1.2 + rank / 10)


def other_options_by_hand(rank):
    return train(rank=rank, k=1.2 + rank / 10, by_hand=True)


def other_threshold(rank):
    schedule = BatchAttentionSchedule(1.2, max_visits=3, ranks=None)
    for _ in schedule.attend(range(BATCHES)):
        schedule.decide(1.0 + rank)
    return train(rank=rank, state=schedule.state_dict())


def one_batch_more(rank):
    return train(rank=rank, batches=BATCHES + rank)


def one_batch_more_unknown(rank):
    return train(rank=rank, batches=BATCHES + rank, is_known=False)


def one_batch_more_by_hand(rank):
    return train(rank=rank, batches=BATCHES + rank, by_hand=True)


def a_call_left_out(rank):
    return train(rank=rank, before=at(0, 2, "forget") if rank else None)


def a_call_left_out_by_hand(rank):
    return train(rank=rank, before=at(0, 2, "forget") if rank else None, by_hand=True)


def a_batch_skipped(rank):
    return train(rank=rank, before=at(1, 2, "skip") if rank else None)


def a_loss_refused(rank):
    return train(rank=rank, before=at(1, 2, "refuse") if rank else None)


def samples_on_one_rank(rank):
    schedule = BatchAttentionSchedule(ranks=MeanOverRanks(timeout_seconds=LIMIT_SECONDS))
    for _ in schedule.attend(range(3)):
        schedule.decide(1.0, samples=None if rank else 3)


def no_reduce(rank):
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend(range(3)):
        schedule.decide(1.0)


def no_reduce_by_hand(rank):
    BatchAttentionSchedule().decide(1.0)


def no_reduce_and_meant(rank):
    schedule = BatchAttentionSchedule(ranks=None)
    for _ in range(2):
        for _ in schedule.attend(range(2 + rank)):
            schedule.decide(1.0 + rank)
    return schedule.threshold


def attend_sampler(base, batch_size=2, **shard):
    schedule = BatchAttentionSchedule(ranks=MeanOverRanks(timeout_seconds=LIMIT_SECONDS))
    sampler = BatchAttentionSampler(base, batch_size, schedule=schedule, **shard)
    for _ in schedule.attend(DataLoader(range(12), batch_sampler=sampler)):
        schedule.decide(1.0)


def other_order(rank):
    generator = torch.Generator().manual_seed(rank)
    attend_sampler(RandomSampler(range(12), generator=generator), rank=rank, world_size=2)


def other_data(rank):
    attend_sampler(DistributedSampler(range(11 + rank)))


def other_batch_size(rank):
    # Six indices on each rank, in two batches.
    attend_sampler(DistributedSampler(range(12)), 4 + rank)


def other_epoch(rank):
    shards = DistributedSampler(range(12))
    shards.set_epoch(rank)
    attend_sampler(shards)


def all_of_the_data(rank):
    attend_sampler(RandomSampler(range(12)))


def sampler_made_anew(rank):
    BatchAttentionSampler(DistributedSampler(range(12)), 2, False)


def reducer_shared(rank):
    reduce = MeanOverRanks()
    for _ in range(2):
        BatchAttentionSchedule(ranks=ranks)


def group_without_this_rank(rank):
    group = dist.new_group([1 - rank], use_local_synchronization=True)
    MeanOverRanks(group)


# After these, the process group is whole.
MILD = [
    none,
    none_by_hand,
    other_options,
    other_options_by_hand,
    other_threshold,
    one_batch_more,
    one_batch_more_unknown,
    one_batch_more_by_hand,
    a_batch_skipped,
    a_loss_refused,
    samples_on_one_rank,
    no_reduce,
    no_reduce_by_hand,
    no_reduce_and_meant,
    other_order,
    other_data,
    other_batch_size,
    other_epoch,
    all_of_the_data,
    sampler_made_anew,
    reducer_shared,
    group_without_this_rank,
    a_call_left_out_by_hand,
    a_call_left_out,
]


def mild_ones(rank):
    outcomes = {}
    for fault in MILD:
        outcomes[fault.__name__] = outcome(lambda fault=fault: fault(rank))
        dist.barrier()
    return outcomes


def rank_killed(rank):
    def before(epoch, batch):
        if rank and (epoch, batch) == (1, 2):
            end_at_once()

    return outcome(lambda: train(rank=rank, before=before))


def rank_late(rank, seconds):
    def before(epoch, batch):
        if rank and (epoch, batch) == (1, 2):
            time.sleep(seconds)

    result = outcome(lambda: train(rank=rank, before=before))
    # Whoever was in time stays, so that the other one does not find it gone.
    time.sleep(seconds)
    return result


def rank_late_at_first(rank, seconds):
    # Another schedule's group is there already.
    train(rank=rank)
    if rank:
        time.sleep(seconds)
    result = outcome(lambda: train(rank=rank))
    if not rank:
        time.sleep(seconds)
    return result
