"""Data, loaders and marks that the tests of loading share."""

import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.recorders import MemoryRecorder
from tests.samples.runs import LooksAhead

__all__ = ["LooksAhead"]

# Four workers on two cores are on purpose; and forking while torch's own threads run is DataLoader's default on Linux.
FORKING_IS_FINE = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

# torchdata 0.11 calls what torch 2.15 has deprecated.
TORCHDATA_IS_FINE = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

REPEATS = pytest.mark.parametrize("repeats", ["immediate", "deferred"])

SAMPLES = 24
BATCH_SIZE = 2
BATCHES = SAMPLES // BATCH_SIZE


@pytest.fixture(autouse=True)
def no_deadlock():
    """A loop that waits forever fails, and the suite continues."""

    def give_up(signum, frame):
        raise TimeoutError("the test did not end within two minutes")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Numbered(Dataset):
    """Every item carries its index, and a number that is drawn as it is fetched."""

    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return index, torch.rand(())


def make(repeats, *, dataset=None, seed=0, loader_class=DataLoader, k=1.5, **loader_options):
    """A schedule with a recorder, its sampler, and a loader. Only last losses count, so that 1.0 keeps the mean."""
    dataset = Numbered() if dataset is None else dataset
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(k, epoch_loss="last", recorders=[recorder])
    base = RandomSampler(dataset, generator=seeded(seed))
    sampler = BatchAttentionSampler(base, BATCH_SIZE, schedule=schedule, repeats=repeats)
    if loader_options.get("num_workers"):
        loader_options.setdefault("timeout", 60)
    loader = loader_class(dataset, batch_sampler=sampler, **loader_options)
    return schedule, sampler, loader, recorder


def run_epoch(schedule, loader, repeated=()):
    """The indices of each visit in one epoch; batches with one of the ``repeated`` samples are visited three times."""
    seen = []
    for indices, *_ in schedule.attend(loader):
        seen.append(tuple(indices.tolist()))
        schedule.decide(2.0 if {*repeated} & {*seen[-1]} and seen.count(seen[-1]) < 3 else 1.0)
    return seen
