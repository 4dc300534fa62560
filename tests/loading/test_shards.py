"""Each rank's sampler takes its part of an order that all ranks draw alike, and goes on from any rank's state."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.loading.order import BaseBatches
from batch_sampler_attn.ranks import Shard
from tests.loading.helpers import Numbered, seeded


def make(rank, ranks, samples=22, batch_size=3, *, base=None, **options):
    base = RandomSampler(range(samples), generator=seeded(5)) if base is None else base
    schedule = BatchAttentionSchedule(1.2, max_visits=2, ranks=None)
    shard = {} if isinstance(base, DistributedSampler) else {"rank": rank, "world_size": ranks}
    return BatchAttentionSampler(base, batch_size, schedule=schedule, **shard, **options)


@given(st.integers(2, 40), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_ranks_have_the_whole_order_between_them_and_as_many_batches(samples, ranks, batch_size, drop_last):
    order = torch.randperm(samples, generator=seeded(5)).tolist()
    shards = [list(Shard(rank, ranks).of(order, batch_size, drop_last=drop_last)) for rank in range(ranks)]

    for rank, shard in enumerate(shards):
        assert len(shard) == Shard(rank, ranks).length(samples, batch_size, drop_last=drop_last)
    round_up = 0 if drop_last else batch_size - 1
    assert len({(len(shard) + round_up) // batch_size for shard in shards}) == 1
    seen = [index for shard in shards for index in shard]
    if drop_last:
        assert len(seen) == len({*seen}) == samples - samples % ranks
    else:
        assert {*seen} == {*order}
        # None comes twice but where a rank would be without its last batch, and then it is one for each such rank.
        extra = len(seen) - samples
        assert extra == (-samples % ranks if extra else 0)
        assert not extra or (samples // ranks) % batch_size == 0
        assert max(Counter(seen).values()) <= 1 + math.ceil(extra / min(samples, ranks))


@pytest.mark.parametrize("rank", range(3))
def test_a_batch_sampler_s_batches_are_shared_out(rank):
    batches = list(BatchSampler(SequentialSampler(range(22)), 3, False))
    # Torch's own is taken apart: it is the order of indices that is shared out.
    sampler = make(rank, 3, batch_size=None, base=BatchSampler(SequentialSampler(range(22)), 3, False))
    assert list(sampler) == [list(range(rank, 22, 3))[start : start + 3] for start in (0, 3, 6)]
    sampler = make(rank, 3, batch_size=None, base=batches)
    assert list(sampler) == [batches[rank], batches[rank + 3], batches[6 + rank] if rank < 2 else batches[0]]
    assert len(sampler) == 3


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_sampler_hands_out_its_rank_s_part(drop_last):
    order = torch.randperm(22, generator=seeded(5)).tolist()
    for rank in range(3):
        sampler = make(rank, 3, drop_last=drop_last)
        whole = order[rank::3] if not drop_last else order[rank:21:3]
        expected = [whole[start : start + 3] for start in range(0, len(whole), 3)]
        expected = [batch for batch in expected if len(batch) == 3 or not drop_last]
        assert list(sampler) == expected
        assert len(sampler) == len(expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "world_size is None"),
        ({"world_size": 2}, "rank is None.*from 0 to 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2.*from 0 to 1"),
        ({"rank": -1, "world_size": 2}, "rank is -1"),
        ({"rank": 0, "world_size": 0}, "world_size is 0"),
    ],
)
def test_ranks_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(OptionError, match=words):
        BatchAttentionSampler(RandomSampler(range(9)), 2, **arguments)


def test_a_sampler_that_shards_already_is_refused_a_second_time():
    with pytest.raises(OptionError, match="DistributedSampler is for rank 1 of 2 already"):
        BatchAttentionSampler(DistributedSampler(range(9), 2, 1), 2, rank=0, world_size=2)


def test_a_rank_with_another_rank_s_data_or_all_of_it_is_refused():
    def check(sampler, here, *shard, batch_size=2):
        BaseBatches(sampler, batch_size, False, None, *shard).check_shard(Shard(*here))

    sequential = SequentialSampler(range(9))
    check(sequential, (1, 2), 1, 2)
    check(DistributedSampler(range(9), 2, 1), (1, 2))
    check([[0, 1], [2]], (1, 2), batch_size=None)
    check(sequential, (1, 2), 0, 1)
    with pytest.raises(ProtocolError, match="is for rank 0 of 2, and the schedule decides on rank 1 of 2"):
        check(sequential, (1, 2), 0, 2)
    with pytest.raises(ProtocolError, match="is for rank 0 of 4"):
        check(DistributedSampler(range(9), 4, 0), (0, 2))
    for sampler_class in (BatchSampler, OwnBatchSampler):
        with pytest.raises(ProtocolError, match="is for rank 0 of 4"):
            check(sampler_class(DistributedSampler(range(9), 4, 0), 2, False), (0, 2), batch_size=None)
        with pytest.raises(ProtocolError, match=r"yields all of the data.* rank=1, world_size=2.*world_size=1"):
            check(sampler_class(sequential, 2, False), (1, 2), batch_size=None)
    with pytest.raises(ProtocolError, match=r"yields all of the data.* rank=1, world_size=2.*world_size=1"):
        check(sequential, (1, 2))


@pytest.mark.parametrize("shard", [None, Shard(0, 2)])
def test_what_ranks_have_in_common_of_an_order_is_what_its_sampler_says(shard):
    class Sharded(Sampler):
        """One that is for a rank already, or shared out by ours."""

        seed, epoch, shuffle, data_source = 3, 1, True, range(7)

        def __init__(self):
            if shard is None:
                self.rank, self.num_replicas = 0, 2

        def __iter__(self):
            return iter(range(5))

        def __len__(self):
            return 5

    facts = {"seed of the order": 3, "epoch of set_epoch": 1, "shuffle": True, "samples of the data": 7}
    given = {"batch_size": 2, "drop_last": False, **({} if shard is None else {"length of the order": 5})}
    assert BaseBatches(Sharded(), 2, False, None, *(shard or ())).common_to_ranks() == {**facts, **given}
    assert BaseBatches(range(5), 2, False).common_to_ranks() == {}
    shuffled = RandomSampler(range(5), generator=seeded())
    assert isinstance(BaseBatches(shuffled, 2, False, None, 0, 2).common_to_ranks()["generator"], int)


class OwnBatchSampler(BatchSampler):
    """Which is not taken apart."""


class ShardedFromOutside:
    """As accelerate's BatchSamplerShard holds what it shards."""

    num_processes = 2

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return iter(self.batch_sampler)

    def __len__(self):
        return len(self.batch_sampler)


def test_a_sampler_that_was_sharded_or_made_anew_by_a_trainer_is_refused():
    sampler = make(0, 2)
    loader = DataLoader(Numbered(), batch_sampler=ShardedFromOutside(sampler))
    with pytest.raises(ProtocolError, match=r"has a ShardedFromOutside around this .*On ranks"):
        next(iter(sampler.schedule.attend(loader)))
    rebuilt = BatchAttentionSampler(RandomSampler(range(22)), 3, False)
    with pytest.raises(ProtocolError, match=r"another batch sampler.*use_distributed_sampler=False"):
        next(iter(sampler.schedule.attend(DataLoader(Numbered(), batch_sampler=rebuilt))))


# Saved on one rank, loaded on each ----------------------------------------------------------------------


def rest(sampler, dataset, epochs, workers=0):
    """The indices and decisions from here on."""
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    made = []
    for epoch in range(sampler.schedule.epoch, epochs):
        sampler.set_epoch(epoch)
        for batch in sampler.schedule.attend(loader):
            # Decided by the position alone, so that all ranks decide alike.
            decision = sampler.schedule.decide(1.0 + sampler.schedule.batch_index % 3)
            made.append((epoch, batch.tolist(), decision))
    return made


def stopped(sampler, dataset, visits):
    loader = DataLoader(dataset, batch_sampler=sampler)
    made = 0
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for _ in sampler.schedule.attend(loader):
            sampler.schedule.decide(1.0 + sampler.schedule.batch_index % 3)
            made += 1
            if made == visits:
                return sampler.state_dict()
    raise AssertionError


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
@pytest.mark.parametrize("kind", ["ours", "torch's"])
@pytest.mark.parametrize("visits", [2, 4, 5, 6, 7, 8])
def test_rank_0_s_state_goes_on_on_every_rank(repeats, kind, visits):
    dataset = range(22)

    def build(rank):
        base = DistributedSampler(dataset, 2, rank, seed=3) if kind == "torch's" else None
        return make(rank, 2, base=base, repeats=repeats)

    state = stopped(build(0), dataset, visits)
    for rank in range(2):
        whole = rest(build(rank), dataset, 3)
        assert any(decision is Decision.REPEAT for _, _, decision in whole)
        resumed = build(rank)
        resumed.load_state_dict(state)
        assert rest(resumed, dataset, 3) == whole[visits:]


def test_a_state_of_another_number_of_ranks_goes_on_between_epochs_alone():
    in_epoch = stopped(make(0, 2), range(22), 2)
    with pytest.raises(StateError, match="in mid-epoch on 2 ranks, and there are 3 here"):
        make(1, 3).load_state_dict(in_epoch)
    sampler = make(0, 2)
    rest(sampler, range(22), 1)
    other = make(2, 3)
    other.load_state_dict(sampler.state_dict())
    assert other.schedule.threshold == sampler.schedule.threshold
    assert len({index for _, batch, _ in rest(other, range(22), 2) for index in batch}) == 7


@pytest.mark.parametrize("shard", [None, [0], ["0", 2], [2, 2], [-1, 2], [0, 2**70]])
def test_a_damaged_shard_is_refused(shard):
    state = stopped(make(0, 2), range(22), 2)
    with pytest.raises(StateError):
        make(0, 2).load_state_dict({**state, "shard": shard})
