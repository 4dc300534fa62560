"""Augmentation that follows from the visit alone: the same with any workers, other at other visits."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, SequentialSampler, StackDataset, Subset

from batch_sampler_attn import BatchAttentionSampler, SeededDataset
from batch_sampler_attn.errors import BatchAttentionWarning
from tests.loading.drivers import MORE_DRIVERS, SAMPLES, load, train
from tests.loading.helpers import FORKING_IS_FINE, Numbered, seeded
from tests.samples.runs import LooksAhead

pytestmark = [*FORKING_IS_FINE, pytest.mark.usefixtures("one_thread")]


class NumberedInBatches(Numbered):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def items_of_visits(repeats="immediate", dataset_class=Numbered, seed=0, wrap=lambda loader: loader, **options):
    """The items of each visit, by its place."""
    driver = MORE_DRIVERS[f"{repeats}, in order"]()
    loader = load(driver, dataset=SeededDataset(dataset_class(SAMPLES), seed), **options)
    return dict(train(driver, wrap(loader)))


@pytest.mark.parametrize(
    "options",
    [
        {"repeats": "deferred"},
        {"num_workers": 1},
        {"num_workers": 3, "persistent_workers": True, "repeats": "deferred"},
        {"num_workers": 1, "repeats": "deferred", "wrap": LooksAhead},
        pytest.param(
            {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_draws_are_those_of_the_visit_in_any_process(options):
    expected = items_of_visits()
    draws = [items for batch in expected.values() for _, *items in batch]
    for of_one_generator in zip(*draws, strict=True):
        assert len({*of_one_generator}) == len(draws) > 3 * SAMPLES
    assert items_of_visits(**options) == expected
    assert items_of_visits(dataset_class=NumberedInBatches, **options) == expected
    others = [items for batch in items_of_visits(seed=1, **options).values() for _, *items in batch]
    assert not {draw for items in others for draw in items} & {draw for items in draws for draw in items}


# The global generators ------------------------------------------------------------------------------------------


class Breaks(Numbered):
    def __getitem__(self, index):
        return super().__getitem__(index) if index < 6 else [][index]


def test_the_global_generators_of_the_training_process_do_not_change():
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    loader = DataLoader(SeededDataset(Breaks()), batch_sampler=sampler, generator=torch.Generator())
    batches, before = iter(sampler.schedule.attend(loader)), states()
    for _ in range(2):
        next(batches)
        assert states() == before
        sampler.schedule.decide(1.0)
    with pytest.raises(IndexError):
        next(batches)
    assert states() == before


def test_batches_of_no_visit_draw_from_the_global_generators():
    torch.manual_seed(2)
    expected = [Numbered()[index][1] for index in range(SAMPLES)]
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    for options in ({"batch_size": 3}, {"batch_sampler": sampler}):
        torch.manual_seed(2)
        loader = DataLoader(SeededDataset(Numbered(SAMPLES)), generator=seeded(), **options)
        assert [drawn for _, draws, *_ in loader for drawn in draws.tolist()] == expected


# Inside another data set ----------------------------------------------------------------------------------------


class Wrapped(Dataset):
    """A data set of the user's around another one."""

    def __init__(self, inside):
        self.base = inside
        self.itself = self
        self.transform = None

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return self.base[index]


WRAPPERS = {
    "Subset": lambda dataset: Subset(dataset, range(SAMPLES)),
    "ConcatDataset": lambda dataset: ConcatDataset([dataset]),
    "StackDataset": lambda dataset: StackDataset(dataset),
    "StackDataset by name": lambda dataset: StackDataset(numbers=dataset),
    "of the user's": Wrapped,
    "two": lambda dataset: Subset(Wrapped(dataset), range(SAMPLES)),
}


def read(dataset):
    sampler = BatchAttentionSampler(SequentialSampler(range(SAMPLES)), 3)
    next(iter(sampler.schedule.attend(DataLoader(dataset, batch_sampler=sampler))))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_seeded_data_set_inside_another_one_warns_and_around_it_does_not(wrap):
    with pytest.warns(
        BatchAttentionWarning, match=r"SeededDataset inside a \w+ has no effect.*SeededDataset\(Subset\("
    ):
        read(wrap(SeededDataset(Numbered())))
    for dataset in (SeededDataset(wrap(Numbered())), wrap(Numbered())):
        read(dataset)


def test_a_worker_warns_that_a_seeded_data_set_has_no_effect():
    # The worker has inherited that warnings are errors.
    with pytest.raises(BatchAttentionWarning, match=r"no effect on the batches of a worker\. It must be the dataset"):
        list(DataLoader(SeededDataset(Numbered()), num_workers=1, multiprocessing_context="fork"))
