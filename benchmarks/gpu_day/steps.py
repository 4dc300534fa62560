"""What a day's work is made of: commands that are ended in time, and go on where they were when given again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.environment import describe_environment
from benchmarks.gpu_day.measuring import append_rows, missing, read_rows
from benchmarks.gpu_day.plan import Plan

# How long a command has to record what is finished, once it was told to end.
GRACE_SECONDS = 20.0
ROOT = Path(__file__).parents[2]
# Of an output, what is kept.
MOST_CHARACTERS = 200_000


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: Its exit status; None if its time was over.
        output: The end of what it wrote.
    """

    status: int | None
    output: str


class Day:
    """A plan, the folder that it is worked at in, and the time that is left.

    Args:
        plan: What is to be run.
        work: Where results are kept between calls, with all that is needed to go on.
        seconds: In all.
    """

    def __init__(self, plan: Plan, work: Path, seconds: float, *, is_dry: bool) -> None:
        self.plan, self.work, self.is_dry = plan, work, is_dry
        self._end = time.monotonic() + seconds
        self.work.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        """Until the command is to be over."""
        return self._end - time.monotonic()

    def run(self, command: Sequence[str], log: Path) -> Ended:
        """Run a Python module until its time is over, and then have it end in order; ``log`` gets its output."""
        environment = dict(os.environ)
        if self.is_dry:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            status: int | None = None
            try:
                status = process.wait(max(1.0, self.seconds_left - GRACE_SECONDS))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
            finally:
                end(process)
        return Ended(status, log.read_text(encoding="utf-8", errors="replace")[-MOST_CHARACTERS:])

    # Each is to be called again until there is nothing left to do in it.

    def test(self) -> None:
        """The tests that take a GPU, until they have come to their end once."""
        result = self.work / "tests.txt"
        if not result.exists() and self.seconds_left > GRACE_SECONDS:
            ended = self.run(("pytest", "-q", "-p", "no:cacheprovider", *self.plan.tests), self.work / "tests.log")
            if ended.status is not None:
                result.write_text(
                    f"{ended.output.strip() or 'no output'}\nexit status {ended.status}\n", encoding="utf-8"
                )

    def measure(self) -> None:
        """The measurements; one that breaks its process is recorded as failed, and the others are made."""
        record = self.work / "rows.jsonl"
        while self.seconds_left > GRACE_SECONDS and (items := missing(self.plan.items(), read_rows(record))):
            options = ("--record", str(record), *(("--dry-run",) if self.is_dry else ()))
            ended = self.run(("benchmarks.gpu_day.measuring", *options), self.work / "rows.log")
            if ended.status is None:
                return
            if ended.status != 0:
                there = read_rows(record)
                broken = next(item for item in items if item in missing(items, there))
                why = (ended.output.strip().splitlines() or ["no word"])[-1]
                row = {"kind": "failed", "model": broken.model, "why": why}
                append_rows(record, broken, [row], describe_environment(self.plan.device))

    def make_records(self, data: str, data_dir: Path) -> None:
        """Runs of ResNet34, until the time is over or all of them are finished."""
        if self.seconds_left <= GRACE_SECONDS:
            return
        if self.is_dry:
            data = str(write_images(self.work / "images"))
        places = ("--data", data, "--data-dir", str(data_dir), "--out", str(self.work / "records"))
        self.run(("benchmarks.cifar", *self.plan.records, *places), self.work / "records.log")


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was told to end, and kill it if it does not."""
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def write_images(folder: Path, *, classes: int = 3, train: int = 24, test: int = 8, size: int = 16) -> Path:
    """A folder of random images, for runs whose results are of no account."""
    rng = np.random.default_rng(0)
    for split, number in (("train", train), ("test", test)):
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            for index in range(number):
                pixels = rng.integers(0, 200, (size, size, 3)) + 20 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return folder
