"""What a day's work is made of: commands that are ended in time, and go on where they were when given again."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.cifar.storage import write_whole
from benchmarks.environment import describe_environment
from benchmarks.gpu_day.measuring import append_rows, missing, read_rows
from benchmarks.gpu_day.plan import Plan

# How long a command has to record what is finished, once it was told to end.
GRACE_SECONDS = 20.0
# The longest that the tests, or one measurement, may take; half of a call's time, where that is less. What hangs would
# leave no time for the rest, in this call and in all others.
STEP_SECONDS = 240.0
# How often results are handed over meanwhile, for a machine that is taken away.
SAVE_SECONDS = 30.0
ROOT = Path(__file__).parents[2]
# Of an output, what is kept.
MOST_CHARACTERS = 200_000


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: Its exit status; None if its time was over.
        output: The end of what it wrote.
        is_stuck: Whether the time that was over was its own, and not the whole call's.
    """

    status: int | None
    output: str
    is_stuck: bool = False

    @property
    def in_words(self) -> str:
        """How it ended, for people."""
        return "no end in its time" if self.status is None else f"exit status {self.status}"


class Day:
    """A plan, the folder that it is worked at in, and the time that is left.

    Args:
        plan: What is to be run.
        work: Where results are kept between calls, with all that is needed to go on.
        seconds: In all.
        save: Hands over what is there; called now and then.
    """

    def __init__(
        self, plan: Plan, work: Path, seconds: float, *, is_dry: bool, save: Callable[[], object] = lambda: None
    ) -> None:
        self.plan, self.work, self.is_dry = plan, work, is_dry
        self._end = time.monotonic() + seconds
        self._step_seconds = min(STEP_SECONDS, seconds / 2)
        self._save = save
        self.work.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        """Until the command is to be over."""
        return self._end - time.monotonic()

    def run(self, command: Sequence[str], log: Path, *, watched: Path | None = None) -> Ended:
        """Run a Python module until its time is over, and then have it end in order.

        Args:
            command: The module, and its arguments.
            log: Gets its output.
            watched: With this file, a step's time is all that it has, from its begin or from a change of the file.
        """
        environment = dict(os.environ)
        if self.is_dry:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
            )
            try:
                status, is_stuck = self._wait(process, watched)
            finally:
                end(process)
        output = log.read_text(encoding="utf-8", errors="replace")[-MOST_CHARACTERS:]
        return Ended(status, output, is_stuck)

    def _wait(self, process: subprocess.Popen[bytes], watched: Path | None) -> tuple[int | None, bool]:
        """The exit status; None if the time was over, and whether that was a step's."""
        seen = _size_of(watched)
        stop = time.monotonic() + max(1.0, self.seconds_left - GRACE_SECONDS)
        moved = saved = time.monotonic()
        while (status := process.poll()) is None:
            now = time.monotonic()
            if now >= stop:
                return None, False
            if now - saved >= SAVE_SECONDS:
                self._save()
                saved = now
            if watched is not None:
                if (size := _size_of(watched)) != seen:
                    seen, moved = size, now
                if now - moved >= self._step_seconds:
                    return None, True
            time.sleep(0.1)
        return status, False

    # Each is to be called again until there is nothing left to do in it.

    def test(self) -> None:
        """The tests that take a GPU, until they have come to their end once, or had their time."""
        result, log = self.work / "tests.txt", self.work / "tests.log"
        if result.exists() or self.seconds_left <= GRACE_SECONDS:
            return
        # Where a test hangs, the log tells in which line.
        options = ("-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={self._step_seconds / 2:.0f}")
        ended = self.run(("pytest", *options, *self.plan.tests), log, watched=result)
        if ended.status is not None or ended.is_stuck:
            text = f"{ended.output.strip() or 'no output'}\n{ended.in_words}\n"
            write_whole(result, lambda file: file.write(text.encode()))

    def measure(self) -> None:
        """The measurements; one that breaks its process, or hangs, is recorded as failed, and the others are made."""
        record = self.work / "rows.jsonl"
        while self.seconds_left > GRACE_SECONDS and (items := missing(self.plan.items(), read_rows(record))):
            options = ("--record", str(record), *(("--dry-run",) if self.is_dry else ()))
            ended = self.run(("benchmarks.gpu_day.measuring", *options), self.work / "rows.log", watched=record)
            if ended.status is None and not ended.is_stuck:
                return
            broken = missing(items, read_rows(record))
            if ended.status != 0 and broken:
                said = (ended.output.strip().splitlines() or ["no word"])[-1]
                why = f"{ended.in_words}, after {self._step_seconds:.0f} s" if ended.is_stuck else said
                row = {"kind": "failed", "model": broken[0].model, "why": why}
                append_rows(record, broken[0], [row], describe_environment(self.plan.device))

    def make_records(self, data: str, data_dir: Path) -> None:
        """Runs of ResNet34, until the time is over or all of them are finished."""
        if self.seconds_left <= GRACE_SECONDS:
            return
        if self.is_dry:
            data = str(write_images(self.work / "images"))
        places = ("--data", data, "--data-dir", str(data_dir), "--out", str(self.work / "records"))
        log = self.work / "records.log"
        ended = self.run(("benchmarks.cifar", *self.plan.records, *places), log)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n{ended.in_words}\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """Tell a process to end, if it has not, and kill it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """Have Linux end this process when the one that began it was killed: it would keep the GPU from the next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _size_of(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


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
