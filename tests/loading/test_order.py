"""The base order: torch's own, whatever the sampler, with nothing of the user's changed."""

import json

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import EmptyEpochError, OptionError
from tests.loading.helpers import FORKING_IS_FINE, REPEATS, WORKERS, Numbered, run_epoch, seeded

pytestmark = FORKING_IS_FINE


def ours(sampler, *arguments, **options):
    return BatchAttentionSampler(sampler, *arguments, schedule=BatchAttentionSchedule(1.2), **options)


def unchanged(base):
    """What must stay as it is of a sampler of the user's."""
    return {name: id(value) for name, value in getattr(base, "__dict__", {}).items()}


def attended(sampler):
    """The batches of one epoch through a loader and attend()."""
    return [list(batch) for batch in run_epoch(sampler.schedule, DataLoader(Numbered(200), batch_sampler=sampler))]


def iterated(sampler):
    return [list(batch) for batch in sampler]


DRAWN = {
    "random": lambda generator: RandomSampler(range(37), generator=generator),
    "random, fewer than all": lambda generator: RandomSampler(range(37), num_samples=11, generator=generator),
    "random, more than all": lambda generator: RandomSampler(range(37), num_samples=90, generator=generator),
    "random with replacement": lambda generator: RandomSampler(
        range(37), replacement=True, num_samples=75, generator=generator
    ),
    "subset": lambda generator: SubsetRandomSampler([5, 3, 36, 20, 8, 11, 2], generator=generator),
    "weighted": lambda generator: WeightedRandomSampler([0.1, 0.9, 0.4, 3.0, 0.2], 31, generator=generator),
}
MAKERS = DRAWN | {
    "sequential": lambda generator: SequentialSampler(range(37)),
    "a list": lambda generator: [4, 2, 0, 1, 3, 5, 9],
}


@pytest.mark.parametrize("read", [iterated, attended])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@settings(max_examples=12)
@given(batch_size=some.integers(1, 7), drop_last=some.booleans(), seed=some.integers(0, 2**40))
def test_the_batches_and_the_generator_are_torch_s(maker, read, batch_size, drop_last, seed):
    torchs_generator, our_generator = seeded(seed), seeded(seed)
    theirs = BatchSampler(maker(torchs_generator), batch_size, drop_last)
    base = maker(our_generator)
    sampler, before = ours(base, batch_size, drop_last), unchanged(base)
    assert len(sampler) == len(theirs)
    for _ in range(3):
        assert read(sampler) == list(theirs)
        unused = [iter(sampler), iter(sampler.schedule.attend([]))]
        assert torch.equal(our_generator.get_state(), torchs_generator.get_state())
        del unused
    assert unchanged(base) == before


class Sorted(BatchSampler):
    """Which is not taken apart, as torch's own is."""

    def __iter__(self):
        return (sorted(batch) for batch in super().__iter__())


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("kind", [BatchSampler, Sorted])
def test_a_batch_sampler_and_a_subclass_of_it_have_their_own_batches(kind, drop_last):
    theirs, base = (kind(RandomSampler(range(37), generator=seeded(1)), 4, drop_last) for _ in range(2))
    sampler = ours(base)
    is_torchs = kind is BatchSampler
    assert (sampler.batch_size, sampler.drop_last) == ((4, drop_last) if is_torchs else (None, False))
    assert len(sampler) == len(theirs)
    for _ in range(3):
        assert attended(sampler) == list(theirs)


class ReusesOneList(Sampler):
    """Fills one list again and again, batches of unlike length."""

    def __init__(self):
        self.batch = []

    def __iter__(self):
        for first in range(5):
            self.batch[:] = range(10 * first, 10 * first + first + 1)
            yield self.batch


@REPEATS
def test_a_batch_sampler_may_reuse_one_list(repeats):
    sampler, expected = ours(ReusesOneList(), repeats=repeats), [tuple(batch) for batch in ReusesOneList()]
    loader = DataLoader(Numbered(50), batch_sampler=sampler, num_workers=1)
    assert run_epoch(sampler.schedule, loader) == expected
    assert sorted(run_epoch(sampler.schedule, loader, repeated=range(50))) == sorted(3 * expected)


INDEX_KINDS = [torch.arange, numpy.arange, lambda n: [numpy.int64(index) for index in range(n)], range]


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_indices_of_any_library_become_plain_numbers(kind, in_batches):
    received = []

    class Receives(Numbered):
        def __getitem__(self, index):
            received.append(index)
            return super().__getitem__(index)

    sampler = ours([kind(12)[:5], kind(12)[5:]]) if in_batches else ours(kind(12), numpy.int64(5))
    loader = DataLoader(Receives(12), batch_sampler=sampler)
    next(iter(sampler.schedule.attend(loader)))
    assert received == [0, 1, 2, 3, 4]
    assert {type(index) for index in received} == {int}
    json.dumps(sampler.state_dict(), allow_nan=False)


class Estimates:
    """Batches whose number is not known, or not exactly, as where samples of like length are put together."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter([[0, 1], [2, 3, 4], [5], [6, 7]])

    def __len__(self):
        if self.length is None:
            raise TypeError
        return self.length


@pytest.mark.parametrize("length", [3, 4, 6, None])
@WORKERS
@REPEATS
def test_a_batch_sampler_whose_length_is_an_estimate_is_trained_on_whole_and_resumed(repeats, workers, length):
    def run(state=None):
        sampler = ours(Estimates(length), repeats=repeats)
        if state:
            sampler.load_state_dict(state)
        for indices, *_ in sampler.schedule.attend(DataLoader(Numbered(), batch_sampler=sampler, num_workers=workers)):
            sampler.schedule.decide(1.0)
            yield indices.tolist(), sampler.state_dict()

    seen, states = zip(*run(), strict=True)
    assert [*seen] == [*Estimates(None)]
    for done in (1, 3):
        assert [indices for indices, _ in run(states[done - 1])] == [*seen[done:]]


@pytest.mark.parametrize(
    ("sampler", "arguments"), [(Sorted([], 4, False), ()), (range(0), (4,)), ([], ()), (range(3), (4, True))]
)
def test_a_sampler_that_yields_no_batch_is_an_empty_epoch(sampler, arguments):
    with pytest.raises(EmptyEpochError, match="without a batch"):
        attended(ours(sampler, *arguments))


# set_epoch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda it: ours(it, 4), lambda it: ours(Sorted(it, 4, False))], ids=["itself", "in a batch sampler"]
)
def test_a_distributed_sampler_follows_set_epoch(wrap):
    theirs, base = (DistributedSampler(range(37), num_replicas=2, rank=1, seed=3) for _ in range(2))
    sampler = wrap(base)
    for epoch in (0, 2, 1):
        theirs.set_epoch(epoch)
        sampler.set_epoch(epoch)
        assert [sorted(batch) for batch in attended(sampler)] == [*Sorted(theirs, 4, False)]
    ours(range(4), 2).set_epoch(5)  # has none


@pytest.mark.parametrize("planned_before", [{"planned": ()}, {}], ids=["none", "not even a list"])
def test_a_batch_sampler_may_plan_its_batches_in_set_epoch(planned_before):
    class Plans:
        def set_epoch(self, epoch):
            self.planned = [[0, 1], [2, 3], [epoch]]

        def __iter__(self):
            return iter(self.planned)

        def __len__(self):
            return len(self.planned)

    plans = Plans()
    vars(plans).update(planned_before)
    sampler = ours(plans)
    for epoch in (7, 8):
        sampler.set_epoch(epoch)
        assert attended(sampler) == [[0, 1], [2, 3], [epoch]]
        assert len(sampler) == 3


# Nothing of the user's is changed -------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", DRAWN.values(), ids=DRAWN)
def test_without_a_generator_torch_s_global_one_is_drawn_from_once_and_sets_the_order(maker):
    def orders_and_state():
        torch.manual_seed(7)
        base = maker(None)
        sampler, before = ours(base, 4), unchanged(base)
        unused = iter(sampler), iter(sampler.schedule.attend([]))
        assert sampler.state_dict()["generator"] is None
        orders = [iterated(sampler), iterated(sampler)]
        assert unchanged(base) == before
        del unused
        return orders, torch.get_rng_state().tolist()

    orders, state = orders_and_state()
    assert orders[0] != orders[1]
    assert orders_and_state() == (orders, state)
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.get_rng_state().tolist() == state


def test_the_first_epoch_without_a_generator_is_torch_s_for_the_same_global_seed():
    torch.manual_seed(11)
    theirs = list(BatchSampler(RandomSampler(range(37)), 4, False))
    torch.manual_seed(11)
    assert iterated(ours(RandomSampler(range(37)), 4)) == theirs


class OfNumpy(RandomSampler):
    """A subclass is not copied, or it would lose its count of epochs; and its generator is not one of torch's."""

    epochs = 0

    def __init__(self):
        super().__init__(range(9), generator=numpy.random.default_rng(0))

    def __iter__(self):
        self.epochs += 1
        return iter([*self.generator.permutation(9), self.epochs])


def test_a_sampler_s_own_state_is_its_own_affair():
    twin, sampler = OfNumpy(), ours(OfNumpy(), 10)
    assert [attended(sampler) for _ in range(3)] == [[list(twin)] for _ in range(3)]
    assert sampler.state_dict()["generator"] is None


class Interrupts(Sampler):
    """Draws, and may be interrupted before it yields anything."""

    is_interrupted = False

    def __init__(self):
        self.generator = seeded()

    def __iter__(self):
        order = torch.randperm(8, generator=self.generator).tolist()
        if self.is_interrupted:
            raise KeyboardInterrupt
        yield from order


def test_a_state_that_is_saved_after_an_interrupted_draw_has_the_generator_before_it():
    sampler, whole, resumed = (ours(Interrupts(), 2) for _ in range(3))
    expected = [attended(whole) for _ in range(3)]
    assert attended(sampler) == expected[0]
    sampler.sampler.is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        attended(sampler)
    resumed.load_state_dict(sampler.state_dict())
    assert [attended(resumed), attended(resumed)] == expected[1:]


def test_indices_without_a_batch_size_are_refused_as_they_come():
    with pytest.raises(OptionError, match="SequentialSampler yields 0, a single index; pass a batch_size"):
        attended(ours(SequentialSampler(range(8))))
