"""The base order: torch's own, whatever the sampler, with nothing of the user's changed."""

import copy
import itertools

import numpy
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import EmptyEpochError, OptionError
from tests.loading.helpers import Numbered, seeded

EPOCHS = 4


def ours(sampler, *arguments, **options):
    return BatchAttentionSampler(sampler, *arguments, schedule=BatchAttentionSchedule(1.2), **options)


def attended_order(sampler):
    """The lists of one epoch through a loader and attend()."""
    loader = DataLoader(Numbered(200), batch_sampler=sampler, collate_fn=lambda items: [index for index, _ in items])
    order = []
    for batch in sampler.schedule.attend(loader):
        order.append(batch)
        sampler.schedule.decide(1.0)
    return order


def iterated_order(sampler):
    return [list(batch) for batch in sampler]


MAKERS = {
    "random": lambda generator: RandomSampler(range(37), generator=generator),
    "random, fewer than all": lambda generator: RandomSampler(range(37), num_samples=11, generator=generator),
    "random, more than all": lambda generator: RandomSampler(range(37), num_samples=90, generator=generator),
    "random, twice all": lambda generator: RandomSampler(range(37), num_samples=74, generator=generator),
    "random with replacement": lambda generator: RandomSampler(
        range(37), replacement=True, num_samples=75, generator=generator
    ),
    "subset": lambda generator: SubsetRandomSampler([5, 3, 36, 20, 8, 11, 2], generator=generator),
    "weighted": lambda generator: WeightedRandomSampler([0.1, 0.9, 0.4, 3.0, 0.2], 31, generator=generator),
    "sequential": lambda generator: SequentialSampler(range(37)),
    "a list": lambda generator: [4, 2, 0, 1, 3, 5, 9],
    "a range": lambda generator: range(13),
}


@pytest.mark.parametrize("read", [iterated_order, attended_order])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [2, 4, 7])
@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_the_batches_and_the_generator_are_torch_s(maker, batch_size, drop_last, read):
    torchs_generator, our_generator = seeded(5), seeded(5)
    theirs = BatchSampler(maker(torchs_generator), batch_size, drop_last)
    sampler = ours(maker(our_generator), batch_size, drop_last)
    assert len(sampler) == len(theirs)
    for _ in range(EPOCHS):
        assert read(sampler) == list(theirs)
        assert torch.equal(our_generator.get_state(), torchs_generator.get_state())


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_distributed_sampler_follows_set_epoch(drop_last):
    theirs, base = (DistributedSampler(range(37), num_replicas=2, rank=1, seed=3) for _ in range(2))
    sampler = ours(base, 4, drop_last)
    for epoch in range(EPOCHS):
        theirs.set_epoch(epoch)
        base.set_epoch(epoch)
        assert attended_order(sampler) == list(BatchSampler(theirs, 4, drop_last))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_sampler_of_torch_s_is_taken_apart(drop_last):
    theirs, base = (BatchSampler(RandomSampler(range(37), generator=seeded(1)), 4, drop_last) for _ in range(2))
    sampler = ours(base)
    assert (sampler.batch_size, sampler.drop_last, len(sampler)) == (4, drop_last, len(theirs))
    for _ in range(EPOCHS):
        assert attended_order(sampler) == list(theirs)


class ReusesOneList(Sampler):
    """Fills one list again and again, batches of unlike length, shuffled by a generator of its own."""

    def __init__(self, seed=0):
        self.generator = seeded(seed)
        self.batch = []

    def __len__(self):
        return 5

    def __iter__(self):
        for first in torch.randperm(5, generator=self.generator).tolist():
            self.batch[:] = range(10 * first, 10 * first + first + 1)
            yield self.batch


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_batch_sampler_may_reuse_one_list(repeats):
    theirs = ReusesOneList()
    sampler = ours(ReusesOneList(), repeats=repeats)
    assert sampler.batch_size is None
    loader = DataLoader(Numbered(200), batch_sampler=sampler, num_workers=1)
    for epoch in range(2):
        expected = [list(batch) for batch in theirs]
        seen = []
        for indices, _ in sampler.schedule.attend(loader):
            seen.append(indices.tolist())
            # The worker has asked for further batches by the time a repeat is.
            is_repeated = epoch > 0 and sampler.schedule.visits == 0
            sampler.schedule.decide(2.0 if is_repeated else 1.0)
        assert sorted(seen) == sorted(expected * (epoch + 1))
        assert repeats == "deferred" or seen == [batch for batch in expected for _ in range(epoch + 1)]
    assert sorted(sampler) == sorted(map(list, theirs))


def test_a_subclass_of_a_batch_sampler_makes_its_own_batches():
    class Sorted(BatchSampler):
        def __iter__(self):
            return (sorted(batch) for batch in super().__iter__())

    theirs, base = (Sorted(RandomSampler(range(37), generator=seeded(1)), 4, False) for _ in range(2))
    sampler = ours(base)
    for _ in range(EPOCHS):
        assert attended_order(sampler) == list(theirs)


@pytest.mark.parametrize("kind", [numpy.int64, torch.tensor])
def test_indices_of_numpy_and_torch_are_taken_and_saved_as_numbers(kind):
    class Batches(Sampler):
        def __len__(self):
            return 2

        def __iter__(self):
            yield [kind(1), kind(2)]
            yield [kind(3)]

    sampler = ours(Batches())
    iterator = iter(sampler.schedule.attend(DataLoader(Numbered(), batch_sampler=sampler)))
    next(iterator)
    sampler.schedule.decide(1.0)
    assert sampler.state_dict()["last_base_batch"] == [1, 2]


def test_a_sampler_without_length_will_do():
    class Endless:
        def __iter__(self):
            return iter(range(9))

    sampler = ours(Endless(), 4)
    assert attended_order(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    with pytest.raises(TypeError):
        len(sampler)


class Nothing:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("sampler", "arguments"), [(Nothing(), (4,)), (range(0), (4,)), ([], ()), (range(3), (4, True))]
)
def test_a_sampler_that_yields_no_batch_is_an_empty_epoch(sampler, arguments):
    with pytest.raises(EmptyEpochError, match="without a batch"):
        attended_order(ours(sampler, *arguments))


# Nothing of the user's is changed ----------------------------------------------------------------------


@pytest.mark.parametrize("generator", [None, 1], ids=["no generator", "a generator"])
@pytest.mark.parametrize("maker", ["random", "random with replacement", "subset", "weighted"])
def test_the_user_s_sampler_is_never_changed(maker, generator):
    base = MAKERS[maker](None if generator is None else seeded())
    before, same_generator = dict(vars(base)), base.generator
    sampler = ours(base, 4)
    attended_order(sampler)
    sampler.load_state_dict(sampler.state_dict())
    attended_order(sampler)
    assert vars(base).keys() == before.keys()
    assert all(vars(base)[name] is value for name, value in before.items())
    assert base.generator is same_generator


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("generator", [None, 1], ids=["no generator", "a generator"])
def test_making_iterators_has_no_effect(maker, generator):
    generator = None if generator is None else seeded()
    sampler = ours(maker(generator), 3)
    torch.manual_seed(0)
    before = sampler.state_dict(), torch.get_rng_state()
    unused, used = iter(sampler), iter(sampler)
    iter(sampler.schedule.attend(DataLoader(Numbered(), batch_sampler=sampler)))
    assert sampler.state_dict() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    next(used)
    del unused


@pytest.mark.parametrize("maker", ["random", "random with replacement", "subset", "weighted"])
def test_without_a_generator_torch_s_global_one_is_drawn_from_once(maker):
    sampler = ours(MAKERS[maker](None), 4)
    torch.manual_seed(7)
    first = iterated_order(sampler)
    after_one_draw = torch.get_rng_state()
    second = iterated_order(sampler)
    assert first != second
    assert torch.equal(torch.get_rng_state(), after_one_draw)
    torch.manual_seed(7)
    assert iterated_order(ours(MAKERS[maker](None), 4)) == first
    torch.manual_seed(7)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(torch.get_rng_state(), after_one_draw)


def test_the_first_epoch_without_a_generator_is_torch_s_for_the_same_global_seed():
    torch.manual_seed(11)
    theirs = list(BatchSampler(RandomSampler(range(37)), 4, False))
    torch.manual_seed(11)
    assert iterated_order(ours(RandomSampler(range(37)), 4)) == theirs


def test_a_subclass_that_counts_its_epochs_keeps_counting():
    class CountsEpochs(RandomSampler):
        epochs = 0

        def __iter__(self):
            self.epochs += 1
            return iter(numpy.roll(numpy.arange(9), self.epochs).tolist())

    base = CountsEpochs(range(9))
    sampler = ours(base, 9)
    assert [iterated_order(sampler)[0][0] for _ in range(3)] == [8, 7, 6]
    assert base.epochs == 3


def test_a_generator_that_is_not_torch_s_is_the_sampler_s_own_affair():
    class OfNumpy(Sampler):
        def __init__(self):
            self.generator = numpy.random.default_rng(0)

        def __len__(self):
            return 9

        def __iter__(self):
            return iter(self.generator.permutation(9).tolist())

    twin, sampler = OfNumpy(), ours(OfNumpy(), 9)
    assert [attended_order(sampler) for _ in range(3)] == [[list(twin)] for _ in range(3)]
    assert sampler.state_dict()["generator"] is None


# Refused at construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "arguments", "words"),
    [
        (None, (4,), ["sampler is None", "of indices with a batch_size, or of batches"]),
        (7, (4,), ["sampler is 7", "iterable again"]),
        (TensorDataset(torch.zeros(8)), (4,), ["sampler is", "of indices with a batch_size"]),
        (DataLoader(range(8)), (), ["sampler is", "of batches without both"]),
        (iter([1, 2, 3]), (2,), ["list_iterator", "again in every epoch"]),
        ((index for index in range(5)), (2,), ["generator", "again in every epoch"]),
        (itertools.count(), (2,), ["count", "again in every epoch"]),
        (BatchSampler(range(8), 2, False), (2,), ["BatchSampler", "batch_size 2", "without both"]),
        (BatchSampler(range(8), 3, False), (None, True), ["drop_last True", "without both"]),
        *((range(8), (size,), ["batch_size is", "at least 1"]) for size in (0, -1, 2.0, "2", True)),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_a_way_out(sampler, arguments, words):
    schedule = BatchAttentionSchedule()
    with pytest.raises(OptionError, match=".*".join(words)):
        BatchAttentionSampler(sampler, *arguments, schedule=schedule)
    # The schedule is still free.
    BatchAttentionSampler(range(4), 2, schedule=schedule)


def test_indices_without_a_batch_size_are_refused_as_they_come():
    sampler = ours(SequentialSampler(range(8)))
    with pytest.raises(OptionError, match=r"SequentialSampler yields 0, a single index; pass a batch_size"):
        attended_order(sampler)


def test_a_sampler_can_be_copied_with_its_schedule():
    sampler = ours(RandomSampler(range(8), generator=seeded()), 2)
    twin = copy.deepcopy(sampler)
    assert twin.schedule is not sampler.schedule
    assert attended_order(twin) == attended_order(sampler)
