"""MeanOverRanks: in one process, and its own process groups among others, after others, and as a rank ends."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError, RankLostError
from batch_sampler_attn.ranks import MessageKind, RankMessage
from tests.core.helpers import COPIES
from tests.distributed.processes import PATIENCE_SECONDS, run_ranks
from tests.distributed.threads import attempt

RANKS = 3


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
    ranks = MeanOverRanks(timeout_seconds=PATIENCE_SECONDS)
    schedule = BatchAttentionSchedule(ranks=ranks)
    errors = [attempt(lambda: train(schedule, float)), attempt(lambda: schedule.decide(1.0))]
    return errors, copy.copy(ranks)._failure


def through_a_run(rank, folder):
    def loss_of(batch):
        return 1.0 + rank + batch

    pair = dist.new_group([1, 2])
    outcomes = {"schedules side by side": side_by_side(rank)}
    schedule = make_schedule()
    outcomes["all ranks"] = train(schedule, loss_of)
    outcomes["a copy of a schedule in use"] = train(pickle.loads(pickle.dumps(schedule)), loss_of)
    if rank:
        outcomes["a pair of them"] = train(make_schedule(pair), loss_of), MeanOverRanks(pair).rank

    dist.destroy_process_group()
    by_hand = BatchAttentionSchedule(1.0, max_visits=2)
    by_hand.decide(1.0)
    by_hand.decide(1.0)
    by_hand.end_epoch()
    name, rank_now, ranks = ("alone", 0, 1) if rank == 2 else ("again", rank, 2)
    dist.init_process_group("gloo", f"file://{folder}/{name}", rank=rank_now, world_size=ranks)
    outcomes["by hand"] = attempt(lambda: by_hand.decide(1.5))
    outcomes["fewer ranks after another init_process_group"] = train(schedule, lambda batch: 1.0 + rank + 2 * batch)
    if rank < 2:
        outcomes["ended"] = ended_during_the_comparison(rank)
    return outcomes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    return run_ranks(through_a_run, RANKS, folder, str(folder))


# Of losses of 1 + rank + batch in two batches, against a threshold of 2.5 where there is one.
DECIDED = {
    "all ranks": [(["advance"] * 2, 2.5)] * RANKS,
    "a pair of them": [None, ((["advance"] * 2, 3.0), 0), ((["advance"] * 2, 3.0), 1)],
    "a copy of a schedule in use": [(["advance", "repeat", "advance"], 2.5)] * RANKS,
    "schedules side by side": [(2.5, 25.0)] * RANKS,
    # Of 1 + rank + 2 * batch.
    "fewer ranks after another init_process_group": [
        *[(["advance", "repeat", "advance"], 2.5)] * 2,
        (["repeat", "advance", "repeat", "advance"], 4.0),
    ],
}


@pytest.mark.parametrize("name", DECIDED)
def test_ranks_of_a_group_decide_by_the_losses_of_their_schedule(results, name):
    assert [result.get(name) for result in results] == DECIDED[name]


def test_a_loop_by_hand_that_began_before_there_were_ranks_is_refused_among_them(results):
    for result in results[:2]:
        assert type(result["by hand"]) is ProtocolError
        assert "one of 2" in str(result["by hand"])
    assert results[2]["by hand"] is Decision.REPEAT


def test_if_a_rank_ends_as_options_are_compared_every_call_of_the_other_is_an_error(results):
    errors, of_a_copy = results[0]["ended"]
    for error in errors:
        assert type(error) is RankLostError
        assert "the comparison of options" in str(error)
    assert of_a_copy is None


# One process ----------------------------------------------------------------------------------------------


def train_alone(schedule, loss_type=torch.tensor):
    return [
        train(schedule, lambda batch, losses=losses: loss_type(losses[batch] / 2**schedule.visits))
        for losses in ([1.0, 2.0], [4.0, 1.0], [1.0, 1.0])
    ]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_without_a_process_group_it_changes_nothing(framework):
    loss_type = torch.tensor if framework == "torch" else pytest.importorskip("jax.numpy").float32
    made = train_alone(BatchAttentionSchedule(ranks=MeanOverRanks()), loss_type)
    assert made == train_alone(BatchAttentionSchedule())
    assert "repeat" in made[1][0]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_schedule_has_messages_of_its_own(copied):
    ranks = MeanOverRanks(timeout_seconds=7)
    schedule = BatchAttentionSchedule(ranks=ranks)
    twin_schedule, twin = copied((schedule, ranks))
    assert twin is not ranks
    assert twin.timeout_seconds == 7
    with pytest.raises(OptionError, match="belongs to another schedule"):
        BatchAttentionSchedule(ranks=twin)
    assert train_alone(twin_schedule) == train_alone(schedule)
