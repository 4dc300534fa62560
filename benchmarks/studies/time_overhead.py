"""What Batch-attention costs in seconds: an epoch of plain training and one of attention by turns, in hand-written loops.

    python -m benchmarks.studies.time_overhead --record FILE --data FOLDER

Which arm comes first changes every epoch, so that a machine that slows down slows both. Leave the machine alone
meanwhile. The schedule's own share is the time spent in ``attend`` and ``decide``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from batch_sampler_attn import BatchAttentionSchedule
from benchmarks.environment import describe_environment
from benchmarks.evaluation import measure_numerics
from benchmarks.images import load_images
from benchmarks.models import find_recipe, make_model
from benchmarks.studies.recording import keep

LEARNING_RATE, BATCH_SIZE = 1e-4, 32


def make_arm(
    model: torch.nn.Module, inputs: Tensor, labels: Tensor, seed: int, schedule: BatchAttentionSchedule | None
) -> Callable[[], dict[str, float]]:
    """A function that trains for an epoch, plainly where there is no schedule: its updates, seconds, and the share."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=LEARNING_RATE, fused=True)
    generator = torch.Generator().manual_seed(seed)

    def run_epoch() -> dict[str, float]:
        begin, in_schedule, updates = time.perf_counter(), 0.0, 0
        order = torch.randperm(len(inputs), generator=generator).split(BATCH_SIZE)
        batches: Iterator[Tensor] = iter(order) if schedule is None else iter(schedule.attend(order))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            in_schedule += time.perf_counter() - start
            if batch is None:
                break
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            value, start = loss.item(), time.perf_counter()
            if schedule is not None:
                schedule.decide(value)
            in_schedule += time.perf_counter() - start
            updates += 1
        seconds = time.perf_counter() - begin
        return {"updates": updates, "seconds": seconds, "schedule_seconds": in_schedule if schedule else 0.0}

    return run_epoch


def measure(
    record: Path,
    *,
    model: str = "resnet34",
    data: str = "cifar10",
    data_dir: Path = Path("data"),
    images: int = 2000,
    epochs: int = 20,
    seeds: int = 1,
    threads: int = 1,
) -> None:
    """Append a JSON line an epoch to ``record``; ``model`` and ``data`` are those of benchmarks.cifar."""
    torch.set_num_threads(threads)
    loaded = load_images(data, data_dir).sample(images, 1)
    recipe = find_recipe(model, *loaded.train.images.shape[2:], pretrained=False)
    pixels, labels = map(torch.from_numpy, loaded.train)
    inputs = measure_numerics(pixels, "default", channels_last=False).prepare(pixels)
    about = {"model": model, "data": loaded.name, "images": images, "threads": threads}

    def lines() -> Iterator[dict[str, Any]]:
        for seed in range(seeds):
            arms = {
                name: make_arm(make_model(recipe, len(loaded.classes), seed), inputs, labels, seed, schedule)
                for name, schedule in (("baseline", None), ("attention", BatchAttentionSchedule(k=1.2)))
            }
            for epoch in track(range(1, epochs + 1), description=f"seed {seed}"):
                for name in sorted(arms, reverse=epoch % 2 == 0):
                    line = {**about, "seed": seed, "arm": name, "epoch": epoch, **arms[name]()}
                    yield {**line, "load_average": os.getloadavg()[0]}

    keep(record, lines(), describe_environment("cpu"))


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
