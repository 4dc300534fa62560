"""States of loops that an earlier release saved, each with what came of it there.

``python -m tests.device.earlier_states FILE`` writes those of the code that is here; a release that changes what a
state holds adds a file of its own and keeps the others.
"""

import copy
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData

FOLDER = Path(__file__).parent / "data"
EPOCHS_AFTERWARDS = 2


class Kind(NamedTuple):
    """A loop, and where it was saved."""

    schedule: str = "attention"
    staged: bool = False
    optimizer: str = "adam"
    epochs: int = 1
    updates: int = 2


KINDS = {
    "resident, in mid-epoch": Kind(updates=5),
    "staged and augmented, in mid-epoch": Kind(staged=True, optimizer="momentum", updates=4),
    "between epochs": Kind(optimizer="rmsprop", updates=0),
    "before the first epoch": Kind(epochs=0, updates=0),
    "control, in mid-epoch": Kind(schedule="control", updates=3),
    "window, in mid-epoch": Kind(schedule="window", updates=6),
    "without a schedule, in mid-epoch": Kind(schedule="none", optimizer="momentum"),
}

SCHEDULES = {
    "attention": lambda: BatchAttentionSchedule(1.0, max_visits=4),
    "control": lambda: EqualComputeControl([[1, 2, 1, 3, 1]] * 4, seed=3),
    "window": lambda: BatchAttentionSchedule(1.1, window=3, epoch_loss="all"),
    "none": lambda: None,
}

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.02),
}


def add_noise(inputs, uniforms):
    return inputs + 0.1 * uniforms


def make_loop(kind):
    generator = torch.Generator().manual_seed(1)
    # Without random numbers of torch's, whose kernels differ between machines.
    inputs, targets = torch.arange(27.0).reshape(9, 3).sin(), torch.arange(9.0).reshape(9, 1).cos()
    if kind.staged:
        dataset = TensorDataset(inputs, targets)
        loader = DataLoader(dataset, 2, sampler=RandomSampler(dataset, generator=generator), generator=generator)
        data = StagedData(loader, 2, "cpu", slots=3)
    else:
        data = ResidentData(inputs, targets, 2, generator=generator)
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0.1]]))
        model.bias.zero_()
    return DeviceLoop(
        model,
        OPTIMIZERS[kind.optimizer](model.parameters()),
        nn.functional.mse_loss,
        data,
        schedule=SCHEDULES[kind.schedule](),
        augmentation=Augmentation(add_noise, draws=3) if kind.staged else None,
        count_visits=True,
    )


def train_on(loop):
    """What comes of a loop: its summaries, visits and weights, as plain numbers."""
    summaries, visits = [], []
    for _ in range(EPOCHS_AFTERWARDS):
        summary = loop.run_epoch()
        summaries.append([summary.epoch, summary.visits, summary.repeats, summary.host_reads, summary.mean_loss])
        visits.append(loop.visit_counts)
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in loop.model.parameters()])
    return {"summaries": summaries, "visits": visits, "updates": loop.updates, "weights": weights.tolist()}


def write(path):
    saved, written_once = {}, {}

    def share(value):
        """The same object for equal states of generators, which are most of the file."""
        if isinstance(value, torch.Tensor) and value.dtype is torch.uint8:
            return written_once.setdefault(value.numpy().tobytes(), value)
        return {key: share(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    for name, kind in KINDS.items():
        loop = make_loop(kind)
        for _ in range(kind.epochs):
            loop.run_epoch()
        loop.run_updates(kind.updates)
        state = share(copy.deepcopy(loop.state_dict()))
        saved[name] = {"state": state, "end": train_on(loop)}
    torch.save(saved, path)


if __name__ == "__main__":
    write(sys.argv[1])
