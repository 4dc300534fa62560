"""Data, loaders and marks that the tests of loading share."""

import random

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.recorders import MemoryRecorder

FORKING_IS_FINE = [
    # Four workers on two cores are on purpose; and forking while torch's own threads run is DataLoader's default.
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # torchdata 0.11 calls what torch 2.15 has deprecated.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]
REPEATS = pytest.mark.parametrize("repeats", ["immediate", "deferred"])
WORKERS = pytest.mark.parametrize("workers", [0, 1])

SAMPLES = 24
BATCH_SIZE = 2
BATCHES = SAMPLES // BATCH_SIZE


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Numbered(Dataset):
    """An item is its index, and a number from each generator that augmentation draws from as it is fetched."""

    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return index, torch.rand((), dtype=torch.float64).item(), random.random(), numpy.random.random()  # noqa: NPY002


def make(repeats, *, dataset=None, base=None, batches_per_epoch=None, epoch_length=None, **loader_options):
    """A schedule with a recorder, its sampler, and a loader. Only last losses count, so that 1.0 keeps the mean."""
    dataset = Numbered() if dataset is None else dataset
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.5, epoch_loss="last", epoch_length=epoch_length, recorders=[recorder])
    base = RandomSampler(dataset, generator=seeded()) if base is None else base
    sampler = BatchAttentionSampler(
        base, BATCH_SIZE, schedule=schedule, repeats=repeats, batches_per_epoch=batches_per_epoch
    )
    if loader_options.get("num_workers"):
        loader_options.setdefault("timeout", 60)
    loader = DataLoader(dataset, batch_sampler=sampler, **loader_options)
    return schedule, sampler, loader, recorder


def run_epoch(schedule, loader, repeated=()):
    """The indices of each visit in one epoch; batches with one of the ``repeated`` samples are visited three times."""
    seen = []
    for indices, *_ in schedule.attend(loader):
        seen.append(tuple(indices.tolist()))
        schedule.decide(2.0 if {*repeated} & {*seen[-1]} and seen.count(seen[-1]) < 3 else 1.0)
    return seen
