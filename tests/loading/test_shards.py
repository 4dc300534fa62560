"""Each rank's sampler takes its part of an order that all ranks draw alike, and resumes from any rank's state."""

import pytest
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError, RanksDivergedError, StateError
from tests.distributed.threads import on_threads
from tests.loading.helpers import REPEATS, seeded


def make(rank, world_size, samples=22, batch_size=3, *, base=None, ranks=None, seed=5, **options):
    base = RandomSampler(range(samples), generator=seeded(seed)) if base is None else base
    schedule = BatchAttentionSchedule(1.2, max_visits=2, ranks=ranks)
    return BatchAttentionSampler(base, batch_size, schedule=schedule, rank=rank, world_size=world_size, **options)


class OwnBatches(BatchSampler):
    """Which is not taken apart."""


@pytest.mark.parametrize("rank", range(3))
def test_a_rank_takes_every_third_index_of_a_batch_sampler_of_torch_and_every_third_batch_of_others(rank):
    torchs = BatchSampler(SequentialSampler(range(22)), 3, False)
    batches, order = [*torchs], range(rank, 22, 3)
    assert [*make(rank, 3, batch_size=None, base=torchs)] == [[*order[at : at + 3]] for at in (0, 3, 6)]
    theirs = [batches[rank], batches[rank + 3], batches[6 + rank] if rank < 2 else batches[0]]
    for base in (batches, OwnBatches(SequentialSampler(range(22)), 3, False)):
        assert [*make(rank, 3, batch_size=None, base=base)] == theirs


# Ranks that train together --------------------------------------------------------------------------------------


def epoch(sampler):
    for batch in sampler.schedule.attend(DataLoader(range(22), batch_sampler=sampler)):
        # By the position alone, so that all ranks decide alike.
        yield batch.tolist(), sampler.schedule.decide(1.0 + sampler.schedule.batch_index % 3)


IN_ORDER = SequentialSampler(range(22))
ALL = r"yields all of the data.*rank=\d, world_size=2.*world_size=1, if each"
ANOTHER = r"for rank \d of 2, and the schedule decides on rank \d of 2"


def of_four(rank):
    return OwnBatches(DistributedSampler(range(22), 4, rank), 2, False)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda rank, ranks: make(rank, 2, base=IN_ORDER, ranks=ranks), None),
        (lambda rank, ranks: make(None, None, base=DistributedSampler(range(22), 2, rank), ranks=ranks), None),
        (lambda rank, ranks: make(None, None, batch_size=None, base=[[rank], [2]], ranks=ranks), None),
        (lambda rank, ranks: make(None, 1, base=IN_ORDER, ranks=ranks), None),
        (lambda rank, ranks: make(None, None, base=IN_ORDER, ranks=ranks), ALL),
        (lambda rank, ranks: make(None, None, batch_size=None, base=OwnBatches(IN_ORDER, 2, False), ranks=ranks), ALL),
        (lambda rank, ranks: make(1 - rank, 2, base=IN_ORDER, ranks=ranks), ANOTHER),
        (lambda rank, ranks: make(None, None, batch_size=None, base=of_four(rank), ranks=ranks), "is for rank . of 4"),
    ],
)
def test_a_rank_with_another_rank_s_data_or_all_of_it_is_refused(build, words):
    for result in on_threads(2, lambda rank, transport: [*epoch(build(rank, transport))]):
        if words is None:
            assert isinstance(result, list)
            continue
        with pytest.raises(ProtocolError, match=words):
            raise result


class Given(Sampler):
    """An order that each rank draws by itself, with what a sampler says of it."""

    def __init__(self, rank, **facts):
        self.rank, self.num_replicas, self.data_source = rank, 2, range(22)
        vars(self).update(facts)

    def __iter__(self):
        return iter(range(self.rank, 22, 2))

    def __len__(self):
        return 11


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("generator", lambda rank, ranks: make(rank, 2, seed=5 + rank, ranks=ranks)),
        ("length of the order", lambda rank, ranks: make(rank, 2, 21 + rank, ranks=ranks)),
        ("batch_size", lambda rank, ranks: make(rank, 2, 6, 2 + rank, ranks=ranks, drop_last=True)),
        ("drop_last", lambda rank, ranks: make(rank, 2, 18, ranks=ranks, drop_last=rank > 0)),
        ("seed of the order", lambda rank, ranks: make(None, None, base=Given(rank, seed=rank), ranks=ranks)),
        ("epoch of set_epoch", lambda rank, ranks: make(None, None, base=Given(rank, epoch=rank), ranks=ranks)),
        ("shuffle", lambda rank, ranks: make(None, None, base=Given(rank, shuffle=rank > 0), ranks=ranks)),
        (
            "samples of the data",
            lambda rank, ranks: make(None, None, base=Given(rank, data_source=range(rank + 9)), ranks=ranks),
        ),
    ],
)
def test_ranks_whose_orders_differ_are_refused_as_the_epoch_begins(name, build):
    for result in on_threads(2, lambda rank, transport: [*epoch(build(rank, transport))]):
        assert isinstance(result, RanksDivergedError)
        assert name in str(result)


# Saved on one rank, loaded on each ------------------------------------------------------------------------------


def to_the_end(sampler, stop=None):
    """The indices and decisions of the rest of three epochs, or of so many visits."""
    made = []
    while sampler.schedule.epoch < 3:
        number = sampler.schedule.epoch
        sampler.set_epoch(number)
        for visit in epoch(sampler):
            made.append((number, *visit))
            if len(made) == stop:
                return made
    return made


@REPEATS
@pytest.mark.parametrize("kind", ["ours", "torch's"])
@pytest.mark.parametrize("visits", [2, 5, 6, 8])
def test_rank_0_s_state_resumes_on_every_rank(repeats, kind, visits):
    def build(rank):
        if kind == "ours":
            return make(rank, 2, repeats=repeats)
        return make(None, None, base=DistributedSampler(range(22), 2, rank, seed=3), repeats=repeats)

    stopped = build(0)
    to_the_end(stopped, visits)
    for rank in range(2):
        whole = to_the_end(build(rank))
        assert any(decision is Decision.REPEAT for *_, decision in whole)
        resumed = build(rank)
        resumed.load_state_dict(stopped.state_dict())
        assert to_the_end(resumed) == whole[visits:]


def test_a_state_of_another_number_of_ranks_resumes_between_epochs_alone():
    stopped = make(0, 2)
    to_the_end(stopped, 2)
    with pytest.raises(StateError, match="in mid-epoch on 2 ranks, and there are 3 here"):
        make(1, 3).load_state_dict(stopped.state_dict())
    whole, other = make(0, 2), make(2, 3)
    assert len([*epoch(whole)]) == len(whole)
    other.load_state_dict(whole.state_dict())
    assert other.schedule.threshold == whole.schedule.threshold
    assert len({index for batch, _ in epoch(other) for index in batch}) == 7
