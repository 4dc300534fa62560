"""What process groups go through in a run, as each of three ranks does it."""

import importlib.util
import pickle

import torch
import torch.distributed as dist

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.ranks import MessageKind, RankMessage
from tests.distributed.processes import outcome

LIMIT_SECONDS = 120.0
HAS_JAX = importlib.util.find_spec("jax") is not None


def make_schedule(group=None, **options):
    ranks = MeanOverRanks(group, timeout_seconds=LIMIT_SECONDS)
    return BatchAttentionSchedule(1.0, max_visits=2, ranks=ranks, **options)


def train(schedule, loss_of, batches=2):
    """One epoch; the decisions on it, and the threshold after it."""
    decisions = []
    for batch in schedule.attend(range(batches)):
        schedule.report(loss_of(batch))
        decisions.append(schedule.decide().value)
    return decisions, schedule.threshold


def through_a_run(rank, folder):
    pair = dist.new_group([0, 1])
    outcomes = {
        "class as ranks": outcome(lambda: BatchAttentionSchedule(ranks=MeanOverRanks)),
        "two at once": two_at_once(rank),
        "refused in a later window": outcome(lambda: refused_in_a_later_window(rank)),
    }
    if HAS_JAX:
        outcomes["jax"] = outcome(lambda: jax_losses(rank))
    schedule = make_schedule()
    outcomes["whole"] = outcome(lambda: train(schedule, lambda batch: 1.0 + rank + batch))
    twin = pickle.loads(pickle.dumps(schedule))
    outcomes["twin"] = outcome(lambda: train(twin, lambda batch: 1.0 + rank + batch))
    if rank < 2:
        outcomes["group"] = outcome(lambda: train(make_schedule(pair), lambda batch: 1.0 + rank + batch))

    dist.destroy_process_group()
    by_hand = BatchAttentionSchedule(1.0, max_visits=2)
    by_hand.decide(1.0)
    by_hand.decide(1.0)
    by_hand.end_epoch()
    is_alone = rank == 2
    ranks = {"rank": 0, "world_size": 1} if is_alone else {"rank": rank, "world_size": 2}
    dist.init_process_group("gloo", init_method=f"file://{folder}/{'alone' if is_alone else 'again'}", **ranks)
    outcomes["decided before there were ranks"] = outcome(lambda: by_hand.decide(1.5).value)
    # As elsewhere, ranks that lost one go on with its schedule.
    outcomes["again"] = outcome(lambda: train(schedule, lambda batch: 1.0 + rank + 2 * batch))
    if not is_alone:
        outcomes["ended as options were told"] = ended_as_options_were_told(rank)
    return outcomes


def two_at_once(rank):
    one, other = make_schedule(), make_schedule()
    for batch, _ in zip(one.attend(range(2)), other.attend(range(2)), strict=True):
        one.report(1.0 + rank + batch)
        other.report(10.0 * (1.0 + rank + batch))
        other.decide()
        one.decide()
    return one.threshold, other.threshold


def refused_in_a_later_window(rank):
    for batch in (schedule := make_schedule(epoch_length=2)).attend(range(8)):
        schedule.decide(torch.ones(2) if rank == 1 and batch == 4 else 1.0)


def jax_losses(rank):
    import jax.numpy as jnp

    return train(make_schedule(), lambda batch: jnp.float32(1.5 + rank + batch))


def ended_as_options_were_told(rank):
    ranks = MeanOverRanks(timeout_seconds=LIMIT_SECONDS)
    schedule = BatchAttentionSchedule(1.0, max_visits=2, ranks=ranks)
    if rank == 0:
        return [outcome(lambda: train(schedule, float)), outcome(lambda: schedule.decide(1.0))]
    # It finds out with the others that something differs, and is gone before it says what it has.
    return ranks.start(RankMessage(MessageKind.BEGIN, 0, 0, 0, digest=12345))()
