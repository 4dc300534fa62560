"""Train on CIFAR, or on any folder of images, with and without Batch-attention, and record every epoch.

    python -m benchmarks.cifar                                        # ResNet34 on CIFAR-10, as in the paper
    python -m benchmarks.cifar --model tnt
    python -m benchmarks.cifar --model efficientnet_b7 --data cifar100 --pretrained
    python -m benchmarks.cifar --label-noise 1 3 6                    # section 4.5: 3, 10 and 20 %
    python -m benchmarks.cifar --epoch-loss first last all            # which one has the paper's overhead?
    python -m benchmarks.cifar --model small_resnet --images 2000 --epochs 5 --device cpu --at-once 2

Arms, paired by seed (same initial weights, same order of data, same labels):

    baseline    every batch once an epoch
    attention   Batch-attention
    random      as many visits in each epoch as attention made, on batches drawn at random
    longer      the baseline, for as many updates as attention made

A command that was stopped goes on where it was when it is given again; runs that are finished are not made again.

Then: python -m benchmarks.report OUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.cifar.display import show_progress
from benchmarks.cifar.images import load_images
from benchmarks.cifar.options import Options, parse
from benchmarks.cifar.plan import Queue
from benchmarks.cifar.running import make_runs
from benchmarks.cifar.stopping import Terminated, term_raises
from benchmarks.cifar.storage import Storage
from benchmarks.cifar.training import Setup
from benchmarks.errors import BenchmarkError
from benchmarks.schema import Configuration, RunName
from benchmarks.text import visible

_GO_ON = "the same command goes on from the last epoch that was kept"


def run(options: Options, console: Console) -> Path:
    """Make all runs, and return the folder of their records.

    Raises:
        BenchmarkError: If they cannot be made. The epochs up to the states that were kept last are recorded.
    """

    def say(text: str) -> None:
        console.print(visible(text), highlight=False, markup=False)

    options.check()
    runs, device = options.plan(), options.find_device()
    images = options.sample(load_images(options.data, options.data_dir, say))
    configuration, recipe = options.configure(images)
    folder = options.find_folder(images)
    storage = Storage(folder, configuration)
    setup = Setup(options, configuration, recipe, images, storage, device)
    with storage.opened():
        storage.check_place(device, options.threads)
        finished = storage.finished()
        waiting = [name for name in runs if name not in finished]
        say(_describe(configuration, runs, len(runs) - len(waiting)))
        queue = Queue(runs, finished)
        for name in finished:
            if not queue.wants(name):  # left by a command that was killed just after it had recorded the run
                storage.forget_state(name)
        try:
            with show_progress(len(waiting), configuration.epochs, console) as report:
                make_runs(setup, queue, report)
        finally:
            storage.write_records()
    return folder


def _describe(configuration: Configuration, runs: Sequence[RunName], finished: int) -> str:
    data = configuration.data
    done = f", {finished} of them finished before" if finished else ""
    return (
        f"{configuration.model} ({configuration.parameters:,} parameters) on {data.name}: {data.train_images:,} images "
        f"of {data.height}x{data.width} to train on, {data.test_images:,} to test on, {len(data.classes)} classes; "
        f"{len(runs)} runs{done}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    console = Console()
    options = parse(arguments, __doc__)
    try:
        with term_raises():
            folder = run(options, console)
    except Terminated:
        console.print(f"terminated; {_GO_ON}", highlight=False)
        sys.exit(Terminated.EXIT_STATUS)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"stopped; {_GO_ON}")
    console.print(
        visible(f"records: {folder}; for tables and figures: python -m benchmarks.report {folder}"),
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
