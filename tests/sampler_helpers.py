"""Data, runs and twins that the tests of the batch-sampler adapter share."""

import signal
from collections import deque

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.recorders import MemoryRecorder

# Four workers on two cores are on purpose; and forking while torch's own threads run is DataLoader's default on Linux.
FORKING_IS_FINE = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SAMPLES = 24
BATCH_SIZE = 2
BATCHES = SAMPLES // BATCH_SIZE


@pytest.fixture(autouse=True)
def no_deadlock():
    """A loop that waits for ever fails, rather than the whole suite hanging."""

    def give_up(signum, frame):
        raise TimeoutError("the test did not end within two minutes")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


class Numbered(Dataset):
    """Every item carries its index, and a number that is drawn as it is fetched."""

    def __init__(self, samples=SAMPLES):
        self.samples = samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return index, torch.rand(())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def torch_order(samples=SAMPLES, batch_size=BATCH_SIZE, *, seed=0, epochs):
    """The batches of each epoch as torch's own samplers draw them."""
    batch_sampler = BatchSampler(RandomSampler(range(samples), generator=seeded(seed)), batch_size, False)
    return [list(batch_sampler) for _ in range(epochs)]


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


class Plan:
    """Losses that make a schedule of ``make`` visit each batch as often as planned, each loss used once."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.losses_given = 0

    def loss(self, visits_left):
        self.losses_given += 1
        return (2.0 if visits_left else 1.0) + self.losses_given * 1e-6

    def run_epoch(self, attended, planned):
        """Visit the batch of indices ``b`` ``planned[b]`` times; return (indices, visit, loss, draws) of each."""
        visits = []
        times_seen = {}
        for indices, draws in attended:
            batch = tuple(indices.tolist())
            times_seen[batch] = times_seen.get(batch, 0) + 1
            loss = self.loss(planned[batch] - times_seen[batch])
            decision = self.schedule.decide(loss)
            assert decision is (Decision.REPEAT if planned[batch] > times_seen[batch] else Decision.ADVANCE)
            visits.append((batch, times_seen[batch], loss, draws))
        return visits


def immediate_order(batches, planned):
    """Twin: each batch as often as planned, at once."""
    return [batch for batch in batches for _ in range(planned[batch])]


class _DepthTwin:
    """What a loader that asks for indices some times ahead does with the deferred protocol."""

    def __init__(self, batches, planned):
        self.remaining = deque(batches)
        self.visits_left = dict(planned)
        self.pending, self.flight = deque(), deque()

    def ask(self):
        for source in (self.pending, self.remaining):
            if source:
                self.flight.append(source.popleft())
                return

    def arrive(self):
        return self.flight.popleft()

    def decide(self, batch):
        self.visits_left[batch] -= 1
        if self.visits_left[batch]:
            self.pending.append(batch)


def deferred_order(batches, planned, depth):
    """Twin: asked ``depth`` times as a pass begins and as each batch arrives; asked only when idle if depth is 0."""
    twin = _DepthTwin(batches, planned)
    order = []
    while twin.remaining or twin.pending:
        for _ in range(max(depth, 1)):
            twin.ask()
        while twin.flight:
            order.append(twin.arrive())
            if depth:
                twin.ask()
                twin.decide(order[-1])
            else:
                twin.decide(order[-1])
                twin.ask()
    return order
