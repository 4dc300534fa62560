"""Both adapters for DataLoaders, in the same training, since they make the same promises of loaders and of states."""

import json
import random

from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from tests.loading.helpers import seeded
from tests.samples.runs import Backwards

SAMPLES, EPOCHS = 18, 3


class Batches:
    """``BatchAttentionSampler``; some of its batches are visited up to three times, and some are skipped."""

    def __init__(self, repeats, base=None, **options):
        self.schedule = BatchAttentionSchedule(0.7, max_visits=3, **options)
        # Those do not count in windows, whose last would end within a pass.
        self.skipped_share = 0 if options else 0.1
        base = RandomSampler(range(SAMPLES), generator=seeded()) if base is None else base
        self.sampler = BatchAttentionSampler(base, 2, schedule=self.schedule, repeats=repeats)

    @property
    def epoch(self):
        return self.schedule.epoch

    @property
    def place(self):
        return self.schedule.epoch, self.schedule.batch_index, self.schedule.visits

    def attend(self, loader):
        self.sampler.set_epoch(self.epoch)
        return self.schedule.attend(loader)

    def report(self, items):
        # The loss follows from the place, so that a batch that comes again has the same.
        rng = random.Random(str(self.place))
        if rng.random() < self.skipped_share:
            self.schedule.skip()
        else:
            self.schedule.decide(rng.lognormvariate(0, 0.5))


class Samples:
    """``SampleAttention``, with samples of three kinds."""

    def __init__(self, **options):
        self.sampler = SampleAttention(SAMPLES, 3, ranks=None, **options)

    @property
    def epoch(self):
        return self.sampler.epoch

    @property
    def place(self):
        return self.sampler.epoch, self.sampler.updates, self.sampler.weights

    def attend(self, loader):
        return self.sampler.attend(loader)

    def report(self, items):
        place, indices = self.place[:2], [item if isinstance(item, int) else item[0] for item in items]
        self.sampler.report([random.Random(f"{place} {i}").lognormvariate(-i % 3, 0.6) for i in indices])


DRIVERS = {
    "immediate": lambda: Batches("immediate"),
    "deferred": lambda: Batches("deferred"),
    "samples": lambda: Samples(k=0.9, weighted=True, updates=4, max_visits=4, remember_loss="base"),
}
MORE_DRIVERS = DRIVERS | {
    "immediate, by our generator": lambda: Batches("immediate", RandomSampler(range(SAMPLES))),
    "immediate, in windows": lambda: Batches("immediate", epoch_length=12),
    "immediate, in order": lambda: Batches("immediate", SequentialSampler(range(SAMPLES))),
    "deferred, in order": lambda: Batches("deferred", SequentialSampler(range(SAMPLES))),
    "deferred, drawn one by one": lambda: Batches(
        "deferred", RandomSampler(range(SAMPLES), replacement=True, num_samples=31, generator=seeded())
    ),
    "deferred, distributed": lambda: Batches("deferred", DistributedSampler(range(SAMPLES), 1, 0, seed=4)),
    "samples at random": lambda: Samples(k=0.8, select="random", max_visits=9, floor=-0.5, updates=4, seed=5),
    "samples, then plain": lambda: Samples(k=0.8, epochs=4, final_full_share=0.5, updates=4),
    "samples of an order": lambda: Samples(k=1.0, weighted=True, sampler=Backwards(SAMPLES)),
    "samples, all alike": lambda: Samples(prune_probability=0.0, updates=9),
    "samples of a rank": lambda: Samples(k=1.0, weighted=True, rank=1, world_size=2, updates=5),
}


def load(driver, loader_class=DataLoader, dataset=range(SAMPLES), **options):
    """A loader of lists of items."""
    if options.get("num_workers"):
        options = {"multiprocessing_context": "fork", "timeout": 60, **options}
    return loader_class(dataset, batch_sampler=driver.sampler, **{"collate_fn": list, **options})


def nothing():
    pass


def train(driver, loader, *, stop=None, seen=None, on_batch=nothing, on_report=nothing, on_epoch=nothing):
    """To the end of the third epoch; or up to so many visits. ``seen`` has the place and the items of each."""
    seen = [] if seen is None else seen
    while driver.epoch < EPOCHS:
        for items in driver.attend(loader):
            seen.append((driver.place, items))
            on_batch()
            driver.report(items)
            on_report()
            if len(seen) == stop:
                return seen
        on_epoch()
    return seen


def saved(driver):
    """Its state, as JSON text."""
    return json.dumps(driver.sampler.state_dict(), allow_nan=False)


def resumed(kind, state):
    """A new driver that has loaded such a state."""
    driver = MORE_DRIVERS[kind]()
    driver.sampler.load_state_dict(json.loads(state))
    return driver
