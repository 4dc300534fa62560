"""Data, runs and twins that the tests of the batch-sampler adapter share."""

import copy
import json
import os
import pickle
import signal
import sys
from collections import deque
from pathlib import Path

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.loading.seeded import SeededDataset
from batch_sampler_attn.recorders import MemoryRecorder

# Four workers on two cores are on purpose; and forking while torch's own threads run is DataLoader's default on Linux.
FORKING_IS_FINE = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create .* worker processes:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

# torchdata 0.11 calls what torch 2.15 has deprecated.
TORCHDATA_IS_FINE = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

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


class LooksAhead:
    """Fetches one batch before it yields the last, as accelerate's loaders do."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        iterator = iter(self.loader)
        try:
            ahead = next(iterator)
        except StopIteration:
            return
        for batch in iterator:
            yield ahead
            ahead = batch
        yield ahead


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


# A short real run that can be saved, killed and resumed ------------------------------------------------


class Samples(Dataset):
    """Items carry their index; some labels are wrong, so that some batches need attention."""

    def __init__(self, samples, *, is_augmented=False):
        generator = seeded(99)
        self.inputs = torch.randn(samples, 3, generator=generator)
        self.targets = (self.inputs.sum(dim=1) > 0).float()
        self.targets[::5] = 1 - self.targets[::5]
        self.is_augmented = is_augmented

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        inputs = self.inputs[index]
        if self.is_augmented:
            inputs = inputs + 0.1 * torch.rand(3)
        return index, inputs, self.targets[index]


def sampler_of(kind, dataset, generator):
    if kind == "random":
        return RandomSampler(dataset, generator=generator)
    if kind == "with replacement":
        return RandomSampler(dataset, replacement=True, num_samples=40, generator=generator)
    if kind == "sequential":
        return SequentialSampler(dataset)
    assert kind == "distributed"
    return DistributedSampler(dataset, num_replicas=1, rank=0, seed=4)


class Run:
    """A model in training, everything made from scratch; ``seed`` only matters to what is not loaded.

    Args:
        is_seeded: Whether augmentation follows from the visit alone.
        generators: "own", the sampler makes one; "explicit", the user does; "shared", and the loader has it too.
    """

    EPOCHS = 3

    def __init__(
        self,
        repeats,
        *,
        generators="own",
        kind="random",
        samples=20,
        loader_class=DataLoader,
        dropout=0.3,
        is_augmented=False,
        is_seeded=False,
        seed=0,
        **loader_options,
    ):
        torch.manual_seed(seed)
        dataset = Samples(samples, is_augmented=is_augmented)
        if is_seeded:
            dataset = SeededDataset(dataset, 5)
        generator = None if generators == "own" else seeded(seed)
        if generators == "shared":
            loader_options["generator"] = generator
        if loader_options.get("num_workers"):
            loader_options.setdefault("timeout", 60)
        self.schedule = BatchAttentionSchedule(1.02, max_visits=4)
        self.base = sampler_of(kind, dataset, generator)
        self.sampler = BatchAttentionSampler(self.base, 4, schedule=self.schedule, repeats=repeats)
        self.loader = loader_class(dataset, batch_sampler=self.sampler, **loader_options)
        layers = [torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.5)
        self.history = []

    def train(self, save=lambda run, moment: None):
        """Go on to the end, and tell ``save`` of every moment at which a state may be taken."""
        save(self, "between epochs")
        while self.schedule.epoch < self.EPOCHS:
            if hasattr(self.base, "set_epoch"):
                self.base.set_epoch(self.schedule.epoch)
            for indices, inputs, targets in self.schedule.attend(self.loader):
                save(self, "before the visit")
                visit = self.schedule.visits + 1
                outputs = self.model(inputs).squeeze(1)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                threshold = self.schedule.threshold
                decision = self.schedule.decide(loss)
                weights = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
                visited = [indices.tolist(), visit, loss.item(), decision.value, threshold]
                self.history.append([*visited, weights.numpy().tobytes().hex()])
                save(self, "after the decision")
            save(self, "between epochs")
        return self

    def checkpoint(self):
        """All that a user would save; the sampler's state as JSON text."""
        is_begun = self.schedule.epoch > 0 or self.schedule.batches > 0 or self.schedule.visits > 0
        saved = {
            "sampler": json.dumps(self.sampler.state_dict(), allow_nan=False),
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": torch.get_rng_state(),
        }
        if is_begun and hasattr(self.loader, "state_dict"):
            saved["loader"] = pickle.dumps(self.loader.state_dict())
        return saved

    def load(self, saved):
        """Go on from a checkpoint in these fresh objects."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if hasattr(self.base, "set_epoch"):
            self.base.set_epoch(json.loads(saved["sampler"])["schedule"]["state"]["epoch"])
        if "loader" in saved:
            self.loader.load_state_dict(pickle.loads(saved["loader"]))
        self.sampler.load_state_dict(json.loads(saved["sampler"]))
        if "random" in saved:
            torch.set_rng_state(saved["random"])
        return self


KILLED_RUN = {"repeats": "immediate", "generators": "shared", "num_workers": 2}


def run_until_killed(path):
    """In a process of its own: save between two visits of a batch, in the second epoch, and die of SIGKILL."""

    def save_and_die(run, moment):
        is_between_visits = moment == "after the decision" and run.history[-1][3] == "repeat"
        if is_between_visits and run.schedule.batches > 2:
            torch.save({**run.checkpoint(), "done": len(run.history)}, path)
            os.kill(os.getpid(), signal.SIGKILL)

    Run(**KILLED_RUN).train(save_and_die)


def run_from_checkpoint(path):
    """In another process: go on, and leave the history beside the checkpoint."""
    run = Run(**KILLED_RUN, seed=1).load(torch.load(path, weights_only=False)).train()
    path.with_suffix(".json").write_text(json.dumps(run.history))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"until-killed": run_until_killed, "from-checkpoint": run_from_checkpoint}[sys.argv[1]](Path(sys.argv[2]))
