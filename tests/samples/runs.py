"""Attention to samples in short runs, as several tests need it; importing this needs no PyTorch."""

import collections

from batch_sampler_attn import SampleAttention

SAMPLES, BATCH_SIZE = 22, 4


class LooksAhead:
    """Reads a loader ahead, as loaders of accelerate do, and those that stage batches on a device."""

    def __init__(self, loader, batches=1):
        self.loader, self.batches = loader, batches

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        waiting = collections.deque()
        for batch in self.loader:
            waiting.append(batch)
            if len(waiting) > self.batches:
                yield waiting.popleft()
        yield from waiting


class Backwards:
    """A sampler of the user's: another stretch of the data in each pass, last sample first."""

    def __init__(self, samples):
        self.samples, self.passes = samples, 0

    def set_epoch(self, epoch):
        self.passes = epoch

    def __len__(self):
        return self.samples - 4

    def __iter__(self):
        first = self.passes % 5
        return reversed(range(first, first + len(self)))


def make(samples=SAMPLES, **options):
    return SampleAttention(samples, BATCH_SIZE, **{"k": 1.1, "prune_probability": 0.5, "weighted": True, **options})


def load(attention, dataset=range(SAMPLES), **options):
    """A loader of lists of samples."""
    from torch.utils.data import DataLoader

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
