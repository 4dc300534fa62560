"""What Batch-attention costs in seconds: plain training and attention side by side, alternating by epoch.

    python -m benchmarks.studies.time_overhead --record FILE --data FOLDER

Both train the same model in a hand-written loop that reads its loss, as most loops do. An epoch of one follows an epoch
of the other, and which comes first changes every time, so that a machine that slows down slows both. Leave the machine
alone meanwhile. The schedule's own share is the time spent in ``attend`` and ``decide``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from batch_sampler_attn import BatchAttentionSchedule
from benchmarks.cifar.evaluation import measure_numerics
from benchmarks.cifar.images import load_images
from benchmarks.cifar.models import find_recipe, make_model
from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError

LEARNING_RATE = 1e-4
BATCH_SIZE = 32


class Timed(NamedTuple):
    """One epoch.

    Attributes:
        updates: Weight updates.
        seconds: Of the whole epoch.
        schedule_seconds: Of these, in the schedule.
    """

    updates: int
    seconds: float
    schedule_seconds: float


class Arm:
    """A model with its optimizer and order of data.

    Args:
        model: To train.
        inputs: Images as the model gets them.
        labels: Of these.
        seed: Of the order.
        schedule: Decides about repeats; None for plain training.
    """

    def __init__(
        self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int, schedule: BatchAttentionSchedule | None
    ) -> None:
        self._model = model.train()
        self._optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
        self._inputs, self._labels = inputs, labels
        self._generator = torch.Generator().manual_seed(seed)
        self._schedule = schedule

    def run_epoch(self) -> Timed:
        """Train for an epoch."""
        run = self._run_plainly if self._schedule is None else self._run_attended
        begun = time.perf_counter()
        updates, schedule_seconds = run()
        return Timed(updates, time.perf_counter() - begun, schedule_seconds)

    def _run_plainly(self) -> tuple[int, float]:
        updates = 0
        for batch in self._batches():
            self._update(batch)
            updates += 1
        return updates, 0.0

    def _run_attended(self) -> tuple[int, float]:
        assert self._schedule is not None
        schedule, updates, in_schedule = self._schedule, 0, 0.0
        fetching = _Stopwatch(self._batches())
        attended = iter(schedule.attend(fetching))
        while True:
            begun = time.perf_counter()
            batch = next(attended, None)
            # What the loader takes is no cost of the schedule's.
            in_schedule += time.perf_counter() - begun - fetching.take()
            if batch is None:
                return updates, in_schedule
            loss = self._update(batch)
            updates += 1
            begun = time.perf_counter()
            schedule.decide(loss)
            in_schedule += time.perf_counter() - begun

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._inputs), generator=self._generator)
        for indices in order.split(BATCH_SIZE):
            yield self._inputs[indices], self._labels[indices]

    def _update(self, batch: tuple[Tensor, Tensor]) -> float:
        inputs, labels = batch
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._model(inputs), labels)
        loss.backward()
        self._optimizer.step()
        return loss.item()


class _Stopwatch:
    """Goes through batches, and tells how long each took to come."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        begun = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._seconds = time.perf_counter() - begun

    def take(self) -> float:
        """The seconds since this was asked last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def alternate(
    make_arm: Callable[[BatchAttentionSchedule | None], Arm], epochs: int, description: str
) -> Iterator[tuple[str, int, Timed]]:
    """Train both arms, an epoch of each by turns."""
    arms = {"baseline": make_arm(None), "attention": make_arm(BatchAttentionSchedule(k=1.2))}
    for epoch in track(range(1, epochs + 1), description=description):
        for name in sorted(arms, reverse=epoch % 2 == 0):
            yield name, epoch, arms[name].run_epoch()


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
    """Measure every seed, and record every epoch.

    Args:
        record: Gets one JSON line an epoch.
        model: As of benchmarks.cifar.
        data: As of benchmarks.cifar.
        data_dir: Downloaded and decoded data.
        images: To train on.
        epochs: Of each arm.
        seeds: How many.
        threads: CPU threads.

    Raises:
        BenchmarkError: If data or model cannot be had.
    """
    torch.set_num_threads(threads)
    loaded = load_images(data, data_dir).sample(images, 1)
    height, width = loaded.train.images.shape[2:]
    recipe = find_recipe(model, height, width, pretrained=False)
    pixels, labels = map(torch.from_numpy, loaded.train)
    inputs = measure_numerics(pixels, "default", channels_last=False).prepare(pixels)
    about = {"model": model, "data": loaded.name, "images": images, "threads": threads}
    environment = describe_environment("cpu")
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("w", encoding="utf-8") as file:
        for seed in range(seeds):

            def make_arm(schedule: BatchAttentionSchedule | None, seed: int = seed) -> Arm:
                return Arm(make_model(recipe, len(loaded.classes), seed), inputs, labels, seed, schedule)

            for arm, epoch, timed in alternate(make_arm, epochs, f"seed {seed}"):
                line = {**about, "environment": environment, "seed": seed, "arm": arm, "epoch": epoch}
                line |= {**timed._asdict(), "load_average": os.getloadavg()[0]}
                file.write(json.dumps(line) + "\n")
                file.flush()


def summarize(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Overhead in updates and in seconds, the schedule's share, and the ratio of the medians of an update's time."""
    of_arm = {arm: [line for line in lines if line["arm"] == arm] for arm in ("baseline", "attention")}
    total = {
        (arm, name): sum(line[name] for line in of_arm[arm])
        for arm in of_arm
        for name in ("updates", "seconds", "schedule_seconds")
    }
    update = {arm: statistics.median(line["seconds"] / line["updates"] for line in of_arm[arm]) for arm in of_arm}
    return {
        "more_updates": total["attention", "updates"] / total["baseline", "updates"] - 1,
        "more_seconds": total["attention", "seconds"] / total["baseline", "seconds"] - 1,
        "schedule_share": total["attention", "schedule_seconds"] / total["attention", "seconds"],
        "update_ratio": update["attention"] / update["baseline"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    try:
        tyro.cli(measure, description=__doc__, args=arguments)
    except BenchmarkError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
