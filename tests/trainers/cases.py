"""What is trained, and how: the same data, network and options for each trainer."""

from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

# Marks for every module of tests here; the warnings are Lightning's own, and of forked workers and ranks.
MARKS = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The '(train|val|test)_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:It is recommended to use `self.log.*sync_dist=True"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

EPOCHS = 4
# Batches of 8, the last of 4: 7 in all, so that windows of 2 and of 3 have a partial last one.
SAMPLES, BATCHES = 52, 7


@dataclass
class Case:
    """How to train."""

    accumulation: int = 1  # batches in a window
    precision: str = "fp32"  # or "bf16", or "scaler" for float16 with a gradient scaler
    scale: float = 2.0**4  # where the scaler begins; 2**15 overflows, and skips updates
    clip: float | None = None
    # In transformers also "gpt2", whose losses are divided by the window's tokens, or "counted", which receives their
    # number and takes the mean over the batch.
    model: str = "network"
    optimizer: str = "adam"  # or "sgd"
    dropout: float = 0.2
    batch_norm: bool = False
    workers: int = 0
    epochs: float = EPOCHS
    options: dict[str, Any] = field(default_factory=dict)  # of the schedule, or of the attention to samples
    trainer: dict[str, Any] = field(default_factory=dict)  # further options of the trainer

    def __str__(self):
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return ",".join(f"{name}={value}" for name, value in changed.items() if value != getattr(Case, name, {}))

    @property
    def windows(self):
        """Windows in an epoch."""
        return -(-BATCHES // self.accumulation)

    def autocast(self):
        dtype = {"bf16": torch.bfloat16, "scaler": torch.half}.get(self.precision)
        return torch.autocast("cpu", dtype=dtype) if dtype else nullcontext()

    def scaler(self):
        is_used = self.precision == "scaler"
        return torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=7, enabled=is_used)


PLAIN = Case()


class Points(Dataset):
    """Vectors of two classes, with noise."""

    def __init__(self, samples=SAMPLES, dtype=torch.float32):
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(samples, 6, generator=generator)
        noise = 1.5 * torch.randn(samples, generator=generator)
        self.inputs, self.targets = inputs.to(dtype), (inputs.sum(1) + noise > 0).long()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index]


def make_loader():
    """A loader with a generator of its own, so that it draws none of the random numbers of dropout."""
    return DataLoader(Points(), 8, shuffle=True, generator=torch.Generator().manual_seed(4))


def make_network(case=PLAIN):
    torch.manual_seed(5)
    middle = [nn.BatchNorm1d(16)] if case.batch_norm else []
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Dropout(case.dropout), nn.Linear(16, 2))


def make_optimizer(network, case):
    """The optimizer, and its learning-rate schedule."""
    if case.optimizer == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)


def plain(instance):
    """The class that a test has added methods to."""
    return type(instance).__base__


def cross_entropy(network, batch, reduction="mean"):
    return nn.functional.cross_entropy(network(batch[0]), batch[1], reduction=reduction)


class Resumable:
    """A loader that resumes where its state was saved, as torchdata's does; the order follows from the epoch."""

    def __init__(self):
        self.dataset, self.sampler = Points(), self
        self.epoch = self.position = 0
        self.is_resumed = False

    def __len__(self):
        return BATCHES

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        first = self.position % len(self) if self.is_resumed else 0
        self.is_resumed = False
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch))
        for position, indices in enumerate(order.split(8)):
            if position >= first:
                self.position = position + 1
                yield list(self.dataset[indices])

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position, self.is_resumed = state["position"], True
