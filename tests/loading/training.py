"""A short real run that can be saved, killed and resumed."""

import copy
import json
import os
import pickle
import signal
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.loading.seeded import SeededDataset
from tests.loading.helpers import seeded


class Items(Dataset):
    """Items carry their index; some labels are wrong, so that some batches need attention."""

    def __init__(self, samples, *, is_augmented=False):
        self.inputs = torch.randn(samples, 3, generator=seeded(99))
        self.targets = (self.inputs.sum(dim=1) > 0).float()
        self.targets[::5] = 1 - self.targets[::5]
        self.is_augmented = is_augmented

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        inputs = self.inputs[index]
        return index, inputs + 0.1 * torch.rand(3) if self.is_augmented else inputs, self.targets[index]


SAMPLERS = {
    "random": lambda dataset, generator: RandomSampler(dataset, generator=generator),
    "with replacement": lambda dataset, generator: RandomSampler(
        dataset, replacement=True, num_samples=40, generator=generator
    ),
    "sequential": lambda dataset, generator: SequentialSampler(dataset),
    "distributed": lambda dataset, generator: DistributedSampler(dataset, num_replicas=1, rank=0, seed=4),
}


class Run:
    """A model in training, everything made from scratch; ``seed`` only matters to what is not loaded.

    Args:
        repeats: Of the sampler.
        generators: "own", the sampler makes one; "explicit", the user does; "shared", and the loader has it too.
        kind: One of ``SAMPLERS``.
        samples: How many there are.
        loader_class: DataLoader, or StatefulDataLoader.
        dropout: Its probability.
        is_augmented: Whether items are drawn as they are fetched.
        is_seeded: Whether augmentation follows from the visit alone.
        seed: Of the weights and of all generators.
        loader_options: Of the loader.
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
        dataset = Items(samples, is_augmented=is_augmented)
        if is_seeded:
            dataset = SeededDataset(dataset, 5)
        generator = None if generators == "own" else seeded(seed)
        if generators == "shared":
            loader_options["generator"] = generator
        if loader_options.get("num_workers"):
            loader_options.setdefault("timeout", 60)
        self.schedule = BatchAttentionSchedule(1.02, max_visits=4)
        self.base = SAMPLERS[kind](dataset, generator)
        self.sampler = BatchAttentionSampler(self.base, 4, schedule=self.schedule, repeats=repeats)
        self.loader = loader_class(dataset, batch_sampler=self.sampler, **loader_options)
        layers = [torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 1)]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.5)
        self.history = []

    def train(self, save=lambda run, moment: None):
        """To the end; ``save`` is called at every moment at which a state may be taken."""
        save(self, "between epochs")
        while self.schedule.epoch < self.EPOCHS:
            self.sampler.set_epoch(self.schedule.epoch)
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
        saved = {
            "sampler": json.dumps(self.sampler.state_dict(), allow_nan=False),
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": torch.get_rng_state(),
        }
        if self.history and hasattr(self.loader, "state_dict"):
            saved["loader"] = pickle.dumps(self.loader.state_dict())
        return saved

    def load(self, saved):
        """Resume from a checkpoint in these new objects."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.sampler.set_epoch(json.loads(saved["sampler"])["schedule"]["state"]["epoch"])
        if "loader" in saved:
            self.loader.load_state_dict(pickle.loads(saved["loader"]))
        self.sampler.load_state_dict(json.loads(saved["sampler"]))
        if "random" in saved:
            torch.set_rng_state(saved["random"])
        return self


KILLED_RUN = {"repeats": "immediate", "generators": "shared", "num_workers": 1}


def run_until_killed(path):
    """In a process of its own: save between two visits of a batch, in the second epoch, and die of SIGKILL."""

    def save_and_die(run, moment):
        is_between_visits = moment == "after the decision" and run.history[-1][3] == "repeat"
        if is_between_visits and run.schedule.batches > 2:
            torch.save({**run.checkpoint(), "done": len(run.history)}, path)
            os.kill(os.getpid(), signal.SIGKILL)

    Run(**KILLED_RUN).train(save_and_die)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_until_killed(Path(sys.argv[1]))
