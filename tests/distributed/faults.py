"""What goes wrong on one rank of two, as each rank does it: the rows of the table in docs/ranks.md."""

import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.distributed import MeanOverRanks
from tests.distributed.processes import end_at_once, outcome

# No rank waits so long, however slow the machine is, unless a test is about the limit.
PATIENCE_SECONDS = 120.0
LIMIT_SECONDS = 8.0
BATCHES = 5
# Some batches repeat in the second epoch.
LOSSES = [1.0, 4.0, 1.0, 2.0, 1.0]


def make_schedule(k=1.2, seconds=PATIENCE_SECONDS):
    return BatchAttentionSchedule(k, max_visits=3, ranks=MeanOverRanks(timeout_seconds=seconds))


def train(
    *,
    rank,
    k=1.2,
    batches=BATCHES,
    is_known=True,
    state=None,
    before=None,
    calls=2,
    by_hand=False,
    update=None,
    seconds=PATIENCE_SECONDS,
):
    """Two epochs.

    ``before(epoch, batch)`` may do something, or say "skip", "forget" or "refuse", at a first visit. ``update()`` is
    what all ranks do together between the forward pass and the decision.
    """
    schedule = make_schedule(k, seconds)
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
        return tell(schedule, loss, 4 - rank, calls, update or (lambda: None))

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


def tell(schedule, loss, samples, calls, update):
    if calls == 1:
        update()
        return schedule.decide(loss, samples=samples)
    schedule.report(loss, samples=samples)
    update()
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


def the_last_batch_skipped(rank):
    return train(rank=rank, before=at(1, BATCHES - 1, "skip") if rank else None, calls=1)


def the_first_batch_skipped_by_hand(rank):
    return train(rank=rank, before=at(0, 0, "skip") if rank else None, by_hand=True)


def skipped_alike(rank):
    return train(rank=rank, before=lambda epoch, batch: "skip" if batch % 4 == 0 else None, is_known=False)


def begun_again(rank, then):
    """After two batches, ``then(schedule)``; the next epoch is longer on rank 1."""
    schedule = make_schedule()
    for batch in schedule.attend(range(BATCHES)):
        schedule.decide(1.0)
        if batch == 1:
            break
    then(schedule)
    for _ in schedule.attend(range(schedule.batch_index, BATCHES + rank)):
        schedule.decide(1.0)


def other_length_after_an_epoch_abandoned(rank):
    begun_again(rank, lambda schedule: schedule.abandon_epoch())


def other_state_loaded_in_an_epoch(rank):
    alone = make_schedule().state_dict()
    begun_again(0, lambda schedule: schedule.load_state_dict(schedule.state_dict() if rank else alone))


def a_loss_refused(rank):
    return train(rank=rank, before=at(1, 2, "refuse") if rank else None)


def samples_on_one_rank(rank):
    schedule = make_schedule()
    for _ in schedule.attend(range(3)):
        schedule.decide(1.0, samples=None if rank else 3)


def no_choice(rank):
    schedule = BatchAttentionSchedule()
    for _ in schedule.attend(range(3)):
        schedule.decide(1.0)


def no_choice_by_hand(rank):
    BatchAttentionSchedule().decide(1.0)


def no_choice_and_meant(rank):
    schedule = BatchAttentionSchedule(ranks=None)
    for _ in range(2):
        for _ in schedule.attend(range(2 + rank)):
            schedule.decide(1.0 + rank)
    return schedule.threshold


def attend_sampler(base, batch_size=2, **shard):
    schedule = make_schedule()
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


def sampler_made_again(rank):
    BatchAttentionSampler(DistributedSampler(range(12)), 2, False)


def transport_shared(rank):
    ranks = MeanOverRanks()
    for _ in range(2):
        BatchAttentionSchedule(ranks=ranks)


def group_without_this_rank(rank):
    group = dist.new_group([1 - rank], use_local_synchronization=True)
    MeanOverRanks(group)


def late_within_the_limit(rank):
    def before(epoch, batch):
        if rank and (epoch, batch) == (1, 2):
            time.sleep(2.0)

    return train(rank=rank, before=before)


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
    late_within_the_limit,
    a_batch_skipped,
    the_last_batch_skipped,
    the_first_batch_skipped_by_hand,
    skipped_alike,
    other_length_after_an_epoch_abandoned,
    other_state_loaded_in_an_epoch,
    a_loss_refused,
    samples_on_one_rank,
    no_choice,
    no_choice_by_hand,
    no_choice_and_meant,
    other_order,
    other_data,
    other_batch_size,
    other_epoch,
    all_of_the_data,
    sampler_made_again,
    transport_shared,
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


def one_batch_more_in_ddp(rank):
    """Told after the update, which the rank at fault waits in: alone, in a collective of DDP."""
    model = DistributedDataParallel(torch.nn.Linear(1, 1))

    def update():
        model(torch.ones(1, 1)).sum().backward()

    return outcome(lambda: train(rank=rank, batches=BATCHES + rank, is_known=False, calls=1, update=update))


def rank_killed(rank):
    def before(epoch, batch):
        if rank and (epoch, batch) == (1, 2):
            end_at_once()

    return outcome(lambda: train(rank=rank, before=before))


def late(rank):
    """Whole epochs, and then a rank that is too late: at the first exchange of a schedule, and in a later one."""
    train(rank=rank)

    def sleep(epoch=1, batch=2):
        if rank and (epoch, batch) == (1, 2):
            time.sleep(2 * LIMIT_SECONDS)

    outcomes = {}
    if hasattr(dist.ProcessGroup, "get_group_store"):
        sleep()
        outcomes["rank_late_at_first"] = outcome(lambda: train(rank=rank, seconds=LIMIT_SECONDS))
    outcomes["rank_late"] = outcome(lambda: train(rank=rank, before=sleep, seconds=LIMIT_SECONDS))
    # The rank that was in time stays, so that the other one does not find it gone.
    time.sleep(2 * LIMIT_SECONDS)
    return outcomes
