"""The same training by hand around accelerate, and without it; killed, resumed, and on two ranks.

python -m tests.trainers.accelerate_runs FOLDER
"""

import os
import shutil
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import Decision
from batch_sampler_attn.accumulation import AccumulatedLoss
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.trainers.accelerate import attend
from tests.trainers.forks import KILLED, RANKS, in_a_fork, on_ranks
from tests.trainers.plain_loop import Run, finish, make_schedule, plain_loop

# Marks for every module of tests here.
MARKS = [pytest.mark.usefixtures("one_thread")]

EPOCHS = 4
# Batches of 8, the last of 4: 7 in all, so that windows of 2 and of 3 have a partial last one.
SAMPLES = 52


@dataclass
class Case:
    """How to train.

    Attributes:
        accumulation: Batches in a window.
        precision: "fp32", "bf16", or "scaler" for float16 with a gradient scaler.
        clip: The gradients' greatest norm.
        options: Of the schedule.
    """

    accumulation: int = 1
    precision: str = "fp32"
    clip: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


def make_dataset(samples=SAMPLES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, 6, generator=generator)
    noise = 1.5 * torch.randn(samples, generator=generator)
    return TensorDataset(inputs.to(dtype), (inputs.sum(1) + noise > 0).long())


def make_loader():
    return DataLoader(make_dataset(), 8, shuffle=True, generator=torch.Generator().manual_seed(4))


def make_network(dropout=0.2):
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))


def make_optimizer(network):
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)


def make_scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=7)


def make_accelerator(case=None, **options):
    case = case or Case()
    # Their state is one for all of a process, and keeps the settings of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case.precision == "bf16" else "no", **options)
    if case.precision == "scaler":
        # Which accelerate has on a GPU alone.
        accelerator.scaler = make_scaler()
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
    return accelerator


def cross_entropy(network, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(network(inputs), targets)


def train_epoch(accelerator, schedule, network, optimizer, lr_scheduler, loader, case, rates, on_window=None):
    """As in the README."""
    for window in attend(schedule, accelerator, loader, case.accumulation):
        loss = AccumulatedLoss()
        for index, batch in enumerate(window):
            with nullcontext() if index == len(window) - 1 else accelerator.no_sync(network):
                batch_loss = cross_entropy(network, batch)
                accelerator.backward(batch_loss / len(window))
            loss.add(batch_loss, len(batch[0]))
        if case.clip is not None:
            accelerator.clip_grad_norm_(network.parameters(), case.clip)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        if schedule.decide(loss.mean, samples=loss.samples) is Decision.ADVANCE:
            lr_scheduler.step()
        if on_window is not None:
            on_window()


def by_accelerate(case) -> Run:
    accelerator = make_accelerator(case)
    network = make_network()
    optimizer, lr_scheduler = make_optimizer(network)
    parts = accelerator.prepare(network, optimizer, lr_scheduler, make_loader())
    schedule, recorder = make_schedule(**case.options)
    rates = []
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        train_epoch(accelerator, schedule, *parts, case, rates)
    return finish(schedule, recorder, accelerator.unwrap_model(parts[0]), rates)


def by_hand(case) -> Run:
    """The plain loop's, without accelerate."""
    network = make_network()
    optimizer, lr_scheduler = make_optimizer(network)
    dtype = {"bf16": torch.bfloat16, "scaler": torch.half}.get(case.precision)
    torch.manual_seed(6)
    return plain_loop(
        network,
        lambda batch: cross_entropy(network, batch),
        optimizer,
        lr_scheduler,
        make_loader(),
        epochs=EPOCHS,
        accumulation=case.accumulation,
        autocast=(lambda: torch.autocast("cpu", dtype=dtype)) if dtype else nullcontext,
        scaler=make_scaler() if case.precision == "scaler" else None,
        clip=case.clip,
        divisor=len,
        **case.options,
    )


# Killed and resumed ----------------------------------------------------------------------------------------

RESUMED = Case(accumulation=2)
WINDOWS = 4
# After so many decisions of the whole run: in mid-epoch, at an epoch's last window, and after a REPEAT.
KILLS = ("mid-epoch", "last-step", "repeats")
# By attend() itself, or by accelerate's skip_first_batches for the rest of the epoch.
RESUMES = ("whole", "skipping")


def train(folder, kill=None, resumed=None):
    """One training, with a checkpoint after each decision, to its end or to where it is killed."""
    accelerator = make_accelerator(RESUMED, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    network = make_network()
    optimizer, lr_scheduler = make_optimizer(network)
    *parts, loader = accelerator.prepare(network, optimizer, lr_scheduler, make_loader())
    schedule, recorder = make_schedule()
    accelerator.register_for_checkpointing(schedule)
    rates = []

    def on_window():
        accelerator.save_state(str(folder / "state"))
        state = schedule.state_dict()["state"]
        place = state["epoch"], state["batches"], state["visits"]
        if kill == "mid-epoch" and place == (1, 2, 0):
            os._exit(KILLED)
        if kill == "last-step" and place == (1, WINDOWS, 0):
            os._exit(KILLED)
        if kill == "repeats" and state["epoch"] == 2 and state["visits"] == 2:
            os._exit(KILLED)

    torch.manual_seed(6)
    skipped = None
    if resumed:
        accelerator.load_state(str(folder / "state"))
        if resumed == "skipping":
            skipped = accelerator.skip_first_batches(loader, schedule.batch_index * RESUMED.accumulation)
    while schedule.epoch < EPOCHS:
        train_epoch(accelerator, schedule, *parts, loader if skipped is None else skipped, RESUMED, rates, on_window)
        skipped = None
    return finish(schedule, recorder, accelerator.unwrap_model(parts[0]), rates)


def resume_each(folder):
    """The whole run, and for each kill the resumed run's part of it."""
    (folder / "whole").mkdir()
    assert in_a_fork(train, folder / "whole", result=folder / "whole.pt") == 0
    for kill in KILLS:
        (folder / kill).mkdir()
        assert in_a_fork(train, folder / kill, kill, result=folder / "none.pt") == KILLED, kill
        for resumed in RESUMES:
            shutil.copytree(folder / kill, folder / f"{kill}-{resumed}")
            result = folder / f"{kill}-{resumed}.pt"
            assert in_a_fork(train, folder / f"{kill}-{resumed}", resumed=resumed, result=result) == 0, kill


# On two ranks ----------------------------------------------------------------------------------------------


def rank_parts():
    network = make_network(dropout=0.0).double()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return network, optimizer


def on_a_rank(_, accumulation):
    case = Case(accumulation)
    accelerator = make_accelerator(case)
    assert accelerator.num_processes == RANKS
    network, optimizer = rank_parts()
    # accelerate steps a learning-rate schedule once for each rank.
    lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98**0.5)
    loader = DataLoader(make_dataset(56, torch.float64), 4)
    parts = accelerator.prepare(network, optimizer, lr_scheduler, loader)
    schedule, recorder = make_schedule(k=0.9, ranks=MeanOverRanks(timeout_seconds=60))
    rates = []
    for _ in range(EPOCHS):
        train_epoch(accelerator, schedule, *parts, case, rates)
    return finish(schedule, recorder, accelerator.unwrap_model(parts[0]), rates)


def in_one_process(accumulation):
    network, optimizer = rank_parts()
    return plain_loop(
        network,
        lambda batch: cross_entropy(network, batch),
        optimizer,
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98),
        DataLoader(make_dataset(56, torch.float64), 8),
        epochs=EPOCHS,
        accumulation=accumulation,
        divisor=len,
        k=0.9,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    resume_each(folder)
    for accumulation in (1, 2):
        on_ranks(on_a_rank, accumulation, results=folder / str(accumulation))
