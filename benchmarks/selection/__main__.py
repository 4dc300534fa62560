"""Train with arms that choose samples, or batches, or none, at exactly the same number of updates, and record each run.

    python -m benchmarks.selection --out FOLDER                        # CIFAR-10: all settings and arms, 8 seeds
    python -m benchmarks.selection --out FOLDER --settings long_tail --arms plain left_out left_out_random
    python -m benchmarks.selection --out FOLDER --share 1/2            # every other run; 2/2 in another process

Settings: balanced (10,000 images), long_tail (--imbalance 50), hidden_kinds (ten kinds under two labels, a long tail
over the kinds that no label tells of), noisy (balanced, 10 % of the labels redrawn). Every seed draws other images and
initial weights; all arms of a seed have the same. The test set is all of CIFAR-10's.

One value of each option is run, fixed beforehand, and none was chosen by these results. K is the paper's and the
probability of leaving out InfoBatch's. The last, plain share of training is SampleAttention's default of 15 %, in whole
epochs (InfoBatch's is 12.5 %). left_out_weighted is our reading of InfoBatch, and selective_backprop our reading of
Composer's Selective Backprop, at every update of its share of training; plain_longer is plain training with as many
more updates as its looking costs. selective_backprop_composer calls Composer
itself, and infobatch InfoBatch itself, with their defaults; they are made only where --arms names them, for they need
the packages mosaicml and infobatch (the latter from a checkout of github.com/NUS-HPC-AI-Lab/InfoBatch).

Processes may share one --out. Give them other --seeds, or a --share each: a run that two begin is kept once.

A finished run is not made again: give the same command to go on. Then: python -m benchmarks.selection.report FOLDER
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from benchmarks.cifar.images import load_images
from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError, PlanError
from benchmarks.selection.arms import ARMS, PEERS, applies, updates_of
from benchmarks.selection.records import Folder, Plan, Run
from benchmarks.selection.settings import SETTINGS, Task, make_task
from benchmarks.selection.training import BATCH_SIZE, train
from benchmarks.text import visible


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of records, begun or to begin")
    add("--data", default="cifar10", help="cifar10, or a folder with train/<class>/ and test/<class>/")
    add("--data-dir", type=Path, default=Path("data"), help="downloaded and decoded data (default: %(default)s)")
    add("--settings", nargs="+", default=list(SETTINGS), metavar="SETTING", help=", ".join(SETTINGS))
    own = [arm for arm in ARMS if arm not in PEERS]
    add(
        "--arms", nargs="+", default=own, metavar="ARM", help=f"{', '.join(ARMS)} (default: all but {', '.join(PEERS)})"
    )
    add("--seeds", nargs="+", type=int, default=list(range(8)), metavar="SEED", help="default: 0 to 7")
    add("--updates", type=int, default=1500, help="of every arm alike (default: %(default)s)")
    add("--imbalance", type=float, default=50.0, help="of a long tail: most over least (default: %(default)s)")
    add("--images", type=int, default=None, help="train on fewer, for a trial (default: all of the setting)")
    add("--share", default="1/1", help="make the first of two shares of the runs, as 1/2 (default: %(default)s)")
    add("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    options = parser.parse_args(arguments)
    _check(options)
    return options


def _check(options: argparse.Namespace) -> None:
    _check_names("--settings", options.settings, SETTINGS)
    _check_names("--arms", options.arms, list(ARMS))
    if options.updates < 1 or options.threads < 1 or min(options.seeds) < 0:
        raise PlanError(
            f"got --updates {options.updates}, --threads {options.threads}, --seeds {' '.join(map(str, options.seeds))}"
            "; there has to be an update and a thread, and seeds are at least 0"
        )
    if not 1 <= options.imbalance < math.inf or (options.images is not None and options.images < BATCH_SIZE):
        raise PlanError(
            f"got --imbalance {options.imbalance}, --images {options.images}; there has to be an imbalance of at least "
            f"1, which is a number, and, if any, at least {BATCH_SIZE} images"
        )


def _check_names(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise PlanError(f"{option} has {', '.join(unknown)}; it takes {', '.join(allowed)}")


def plan_runs(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """The runs of this process: whole seeds first, so that whatever is finished is paired.

    Raises:
        PlanError: If the share is none, or no arm is for any of the settings.
    """
    first, _, of = options.share.partition("/")
    if not (first.isdigit() and of.isdigit() and 1 <= int(first) <= int(of)):
        raise PlanError(f"--share is {options.share!r}; it must be such as 1/2")
    all_names = [
        (setting, seed, arm)
        for seed in options.seeds
        for setting in options.settings
        for arm in options.arms
        if applies(arm, setting)
    ]
    if not all_names:
        raise PlanError(
            f"{', '.join(options.arms)} needs labels that tell of an imbalance; give --settings long_tail, or other "
            "--arms"
        )
    # What is named twice is made once.
    return list(dict.fromkeys(all_names))[int(first) - 1 :: int(of)]


def make_enough(task: Task) -> Task:
    """The task, if it fills a batch.

    Raises:
        PlanError: If it does not.
    """
    if len(task.labels) < BATCH_SIZE:
        raise PlanError(
            f"the setting is left with {len(task.labels)} images, less than a batch of {BATCH_SIZE}; give more --images"
        )
    return task


def describe_run(arm: str) -> dict[str, Any]:
    """What a run is made on, with the version of a package that the arm calls."""
    environment = describe_environment("cpu")
    if arm in PEERS:
        package = PEERS[arm].package
        environment["packages"][package] = importlib.metadata.version(package)
    return environment


def run(options: argparse.Namespace, console: Console) -> None:
    """Make the runs that are missing."""
    planned = plan_runs(options)
    for arm in {arm for _, _, arm in planned} & PEERS.keys():
        # Before the first run, rather than hours later.
        PEERS[arm].load()
    torch.set_num_threads(options.threads)
    data = load_images(
        options.data,
        options.data_dir,
        lambda text: console.print(visible(text), highlight=False, markup=False),
    )
    folder = Folder(options.out)
    folder.open(
        Plan(
            data=data.name,
            data_sha256=data.describe().sha256,
            updates=options.updates,
            batch_size=BATCH_SIZE,
            imbalance=options.imbalance,
            images=options.images,
        )
    )
    finished = {run.name for run in folder.read_runs()}
    missing = [name for name in planned if name not in finished]
    console.print(f"{len(missing)} runs to make")
    made_for, task = None, None
    for number, (setting, seed, arm) in enumerate(missing, start=1):
        if task is None or made_for != (setting, seed):
            made_for, task = (
                (setting, seed),
                make_enough(make_task(data, setting, seed, options.imbalance, options.images)),
            )
        updates = updates_of(arm, options.updates)
        outcome = train(task, ARMS[arm](task.labels, BATCH_SIZE, updates, seed), seed, updates)
        folder.add(
            Run(
                setting=setting,
                arm=arm,
                seed=seed,
                counts=list(task.counts),
                environment=describe_run(arm),
                **outcome._asdict(),
            )
        )
        console.print(
            f"{number}/{len(missing)} {setting} {arm} seed {seed}: {outcome.accuracy:.2f} % in {outcome.seconds:.0f} s"
        )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    console = Console()
    try:
        run(parse(arguments), console)
    except BenchmarkError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
