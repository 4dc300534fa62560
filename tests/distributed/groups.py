"""What process groups go through in a run, as each of three ranks does it."""

import pickle

import torch.distributed as dist

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.ranks import MessageKind, RankMessage
from tests.distributed.processes import attempt

# No rank waits so long, however slow the machine is.
PATIENCE_SECONDS = 600.0


def make_schedule(group=None):
    return BatchAttentionSchedule(1.0, max_visits=2, ranks=MeanOverRanks(group, timeout_seconds=PATIENCE_SECONDS))


def train(schedule, loss_of):
    """An epoch of two batches; the decisions, and the threshold afterwards."""
    decisions = []
    for batch in schedule.attend(range(2)):
        schedule.report(loss_of(batch))
        decisions.append(schedule.decide().value)
    return decisions, schedule.threshold


def side_by_side(rank):
    one, other = make_schedule(), make_schedule()
    for batch, _ in zip(one.attend(range(2)), other.attend(range(2)), strict=True):
        one.report(1.0 + rank + batch)
        other.report(10.0 * (1.0 + rank + batch))
        other.decide()
        one.decide()
    return one.threshold, other.threshold


def ended_during_the_comparison(rank):
    """Rank 1 notices together with rank 0 that they differ, and ends before it says how."""
    if rank:
        ranks = MeanOverRanks(timeout_seconds=PATIENCE_SECONDS)
        return ranks.start(RankMessage(MessageKind.BEGIN, 0, 0, 0, digest=12345))()
    schedule = make_schedule()
    return [attempt(lambda: train(schedule, float)), attempt(lambda: schedule.decide(1.0))]


def through_a_run(rank, folder):
    def loss_of(batch):
        return 1.0 + rank + batch

    pair = dist.new_group([1, 2])
    outcomes = {"side by side": side_by_side(rank)}
    schedule = make_schedule()
    outcomes["whole"] = train(schedule, loss_of)
    outcomes["twin"] = train(pickle.loads(pickle.dumps(schedule)), loss_of)
    if rank:
        outcomes["pair"] = train(make_schedule(pair), loss_of), MeanOverRanks(pair).rank

    dist.destroy_process_group()
    by_hand = BatchAttentionSchedule(1.0, max_visits=2)
    by_hand.decide(1.0)
    by_hand.decide(1.0)
    by_hand.end_epoch()
    name, rank_now, ranks = ("alone", 0, 1) if rank == 2 else ("again", rank, 2)
    dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank_now, world_size=ranks)
    outcomes["by hand"] = attempt(lambda: by_hand.decide(1.5))
    outcomes["fewer ranks"] = train(schedule, lambda batch: 1.0 + rank + 2 * batch)
    if rank < 2:
        outcomes["ended"] = ended_during_the_comparison(rank)
    return outcomes
