"""Attention to samples in short runs, as several tests need it."""

from torch.utils.data import DataLoader

from batch_sampler_attn import SampleAttention
from tests.loading.helpers import LooksAhead

__all__ = ["BATCH_SIZE", "SAMPLES", "LooksAhead", "load", "make", "run_epoch"]

SAMPLES, BATCH_SIZE = 22, 4


def make(samples=SAMPLES, **options):
    return SampleAttention(samples, BATCH_SIZE, **{"k": 1.1, "prune_probability": 0.5, "weighted": True, **options})


def load(attention, dataset=range(SAMPLES), **options):
    """A loader of lists of samples."""
    if options.get("num_workers"):
        options["multiprocessing_context"] = "fork"
    return DataLoader(dataset, batch_sampler=attention, **{"collate_fn": list, **options})


def run_epoch(attention, loader=None, loss=lambda index: 0.2 + index % 3):
    """The batches of an epoch, or of its rest."""
    seen = []
    for batch in attention.attend(loader):
        seen.append(attention.indices)
        assert list(batch) == seen[-1]
        attention.report([loss(index) for index in seen[-1]])
    return seen
