"""``SampleAttention`` of many kinds, in training that follows from a seed."""

import collections
import math

from torch.utils.data import DataLoader

from batch_sampler_attn import SampleAttention

SAMPLES = 18


class LooksAhead:
    """A wrapper of a loader that reads ahead, as workers do, and those who stage batches on a device."""

    def __init__(self, loader, batches):
        self.loader = loader
        self.batches = batches

    def __iter__(self):
        waiting = collections.deque()
        for batch in self.loader:
            waiting.append(batch)
            if len(waiting) > self.batches:
                yield waiting.popleft()
        yield from waiting


class Backwards:
    """A sampler of the user's: another stretch of the data in each pass, last sample first."""

    def __init__(self):
        self.passes = 0

    def set_epoch(self, epoch):
        self.passes = epoch

    def __len__(self):
        return SAMPLES - 4

    def __iter__(self):
        first = self.passes % 5
        return reversed(range(first, first + len(self)))


def kind(batch_size=3, **options):
    return lambda: SampleAttention(SAMPLES, batch_size, ranks=None, **options)


KINDS = {
    "leaves out": kind(prune_probability=0.5),
    "leaves out, weighted": kind(prune_probability=0.3, weighted=True, updates=9),
    "pools": kind(4, k=1.0, prune_probability=0.0, max_visits=3),
    "both": kind(k=0.9, prune_probability=0.5, weighted=True, max_visits=4, remember_loss="base"),
    "both, with a floor": kind(k=1.1, prune_probability=0.5, floor=-0.5, updates=4),
    "at random": kind(k=0.8, prune_probability=0.5, select="random", max_visits=9, seed=5),
    "plain at the end": kind(k=0.8, prune_probability=0.5, epochs=4, final_full_share=0.5),
    "in one batch": kind(SAMPLES, k=0.8, prune_probability=0.5, updates=3),
    "in the user's order": lambda: SampleAttention(SAMPLES, 4, k=1.0, weighted=True, sampler=Backwards()),
    "on a rank": kind(k=1.0, prune_probability=0.5, weighted=True, rank=1, world_size=2, updates=5),
}


def train(attention, rng, *, ahead=0, workers=0, stop_after=None, nonfinite=0.02):
    """One epoch, or its rest, with its indices and weights; stopped after some updates, it is left as it is."""
    context = "fork" if workers else None
    loader = DataLoader(
        range(SAMPLES), batch_sampler=attention, num_workers=workers, multiprocessing_context=context, collate_fn=list
    )
    seen = []
    for indices in attention.attend(LooksAhead(loader, ahead) if ahead else loader):
        seen.append((indices, attention.weights))
        losses = [rng.lognormvariate(-index % 3, 0.6) for index in indices]
        attention.report([rng.choice([math.nan, math.inf]) if rng.random() < nonfinite else loss for loss in losses])
        if len(seen) == stop_after:
            break
    return seen
