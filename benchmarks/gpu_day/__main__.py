"""What a GPU is wanted for, in one command: tests, milliseconds an update, bit-equality, then records of ResNet34.

    python -m benchmarks.gpu_day --out FOLDER --minutes 9
    python -m benchmarks.gpu_day --out FOLDER --dry-run       # the same on the CPU, at tiny size, in under a minute

Most telling first, until the time is over; the same command goes on from there. FOLDER gets eight files at most, each
of 16 MiB at most, among them a short table, which is printed last; they are renewed every half minute, and at SIGTERM.
What is needed to go on is in --work; where that is lost, finished runs and measurements are taken up from FOLDER, or
from the --earlier one. What fails or hangs is told of, and leaves the rest its time.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import tyro

from benchmarks.errors import StorageError
from benchmarks.gpu_day import BEGUN
from benchmarks.gpu_day.plan import DRY, FULL
from benchmarks.gpu_day.results import claim, hand_over, take_up, write_table
from benchmarks.gpu_day.steps import Day


def run(
    out: Path,
    *,
    minutes: float = 9.0,
    dry_run: bool = False,
    data: str = "cifar10",
    data_dir: Path = Path("data"),
    work: Path | None = None,
    earlier: Path | None = None,
) -> None:
    """Do what can be done in the time.

    Args:
        out: Gets the results.
        minutes: From beginning to end, with half a minute for what cannot be stopped.
        dry_run: On the CPU, at tiny size, on random images.
        data: cifar10, or a folder with its images, as ``benchmarks.cifar`` takes it.
        data_dir: Downloaded and decoded data.
        work: Where it goes on from; by default runs/gpu_day, or runs/gpu_day_dry.
        earlier: Results of earlier calls, where they are not in ``out``.
    """
    plan = DRY if dry_run else FULL
    if not dry_run and not torch.cuda.is_available():
        sys.exit("error: there is no CUDA device here; --dry-run shows what would be done, on the CPU")
    work = (work or Path("runs") / ("gpu_day_dry" if dry_run else "gpu_day")).resolve()

    def save() -> str:
        return write_table(plan, work, out, hand_over(work, out))

    try:
        claim(out, work)
    except StorageError as error:
        sys.exit(f"error: {error}")
    day = Day(plan, work, minutes * 60 - (time.monotonic() - BEGUN), is_dry=dry_run, save=save)
    for results in (out, earlier):
        if results is not None:
            take_up(results, work)

    def stop(*_: object) -> None:
        # Before the wait for what runs: there may be no time for more.
        save()
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        for step in (day.test, day.measure, lambda: day.make_records(data, data_dir.resolve())):
            try:
                step()
            except Exception:  # of whatever kind, the other steps do not depend on it
                traceback.print_exc()
            save()
    finally:
        print(save())


def main() -> None:
    """The command."""
    tyro.cli(run, prog="python -m benchmarks.gpu_day", description=__doc__)


if __name__ == "__main__":
    main()
