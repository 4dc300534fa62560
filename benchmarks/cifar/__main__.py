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

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from batch_sampler_attn.errors import BatchAttentionError
from batch_sampler_attn.options import DEFAULT_MAX_VISITS, Options
from benchmarks.cifar.display import show_progress
from benchmarks.cifar.images import ImageSet, load_images
from benchmarks.cifar.label_noise import GROUP_SIZE
from benchmarks.cifar.models import MODELS, ModelRecipe, count_parameters, find_recipe
from benchmarks.cifar.plan import Queue, plan_runs
from benchmarks.cifar.running import make_runs
from benchmarks.cifar.stopping import Terminated, term_raises
from benchmarks.cifar.storage import Storage
from benchmarks.cifar.training import Setup
from benchmarks.errors import BenchmarkError, PlanError
from benchmarks.schema import ARMS, PRECISIONS, Configuration, RunName

_GO_ON = "the same command goes on from the last epoch that was kept"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cifar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="resnet34", help=f"{', '.join(MODELS)}, or any of timm's (default: %(default)s)")
    add("--data", default="cifar10", help="cifar10, cifar100, or a folder with train/<class>/ and test/<class>/")
    add("--data-dir", type=Path, default=Path("data"), help="downloaded and decoded data (default: %(default)s)")
    add("--images", type=int, default=None, help="train and test on so many each, always the same ones (default: all)")
    add("--test-images", type=int, default=None, help="test on so many; 0 for all of them (default: as --images)")
    add("--arms", nargs="+", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)} (default: all)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    add("--epochs", type=int, default=100, help="default: 100")
    add("--k", type=float, default=None, help="default: 1.2; 1.5 with 100 classes")
    add("--epoch-loss", nargs="+", default=["first"], choices=["first", "last", "all"], help="default: first")
    add(
        "--label-noise",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help=f"labels redrawn of every {GROUP_SIZE} (default: 0)",
    )
    add(
        "--max-visits", type=int, default=DEFAULT_MAX_VISITS, help="to one batch; 0 for no limit (default: %(default)s)"
    )
    add("--batch-size", type=int, default=32, help="default: 32")
    add("--learning-rate", type=float, default=1e-4, help="Adam's (default: 1e-4)")
    add("--pretrained", action="store_true", help="begin with ImageNet weights: timm's, or a package's for Lite0")
    add("--reduced", action="store_true", help="a smaller form for a CPU, recorded as that; tnt has one")
    add("--precision", choices=PRECISIONS, default="default", help="default: PyTorch's own")
    add("--channels-last", action="store_true", help="lay out images with their channels last")
    add(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask PyTorch for deterministic algorithms (default: yes)",
    )
    add("--device", default=None, help="default: cuda if there is one, else cpu")
    add("--at-once", type=int, default=1, help="runs at once: by turns on a GPU, in processes on a CPU (default: 1)")
    add("--threads", type=int, default=1, help="CPU threads of a run; sums depend on it (default: 1)")
    add("--checkpoint-seconds", type=float, default=0, help="least time between states kept (default: every epoch)")
    add("--out", type=Path, default=None, help="folder of the records (default: runs/<model>-<data>)")
    return parser.parse_args(arguments)


def configure(options: argparse.Namespace, images: ImageSet) -> tuple[Configuration, ModelRecipe]:
    """What all runs of the command have in common.

    Raises:
        BenchmarkError: If it makes no sense.
    """
    data = images.describe()
    for name, least in (("epochs", 1), ("batch_size", 1), ("at_once", 1), ("threads", 1), ("max_visits", 0)):
        if getattr(options, name) < least:
            option = name.replace("_", "-")
            raise PlanError(f"--{option} is {getattr(options, name)}; it must be at least {least}")
    if not 0 < options.learning_rate < math.inf:
        raise PlanError(f"--learning-rate is {options.learning_rate}; it must be a number above 0")
    if data.train_images % options.batch_size == 1:
        raise PlanError(
            f"{data.train_images} images in batches of {options.batch_size} leave one for the last, which batch "
            "normalization cannot train on; give another --batch-size"
        )
    recipe = find_recipe(options.model, data.height, data.width, pretrained=options.pretrained, reduced=options.reduced)
    k = options.k
    if k is None:
        k = 1.5 if len(data.classes) == 100 else 1.2
    Options(k, max_visits=options.max_visits or None).check()
    configuration = Configuration(
        model=options.model,
        architecture=recipe.architecture,
        model_options=recipe.options,
        pretrained=options.pretrained,
        weights=None if recipe.weights is None else recipe.weights.describe(),
        parameters=count_parameters(recipe, data),
        data=data,
        epochs=options.epochs,
        k=k,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_visits=options.max_visits or None,
        precision=options.precision,
        channels_last=options.channels_last,
        deterministic=options.deterministic,
    )
    return configuration, recipe


def choose_device(name: str | None) -> torch.device:
    """The device to train on.

    Raises:
        PlanError: If there is none of that name.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PlanError(f"--device is {name!r}; it must be cpu or cuda, or cuda:1 and so on") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise PlanError(f"--device is {name!r}; it must be cpu or cuda, or cuda:1 and so on")
    if (device.index or 0) >= torch.cuda.device_count():
        raise PlanError(f"--device is {name!r}, and there is none here; leave it out to take what there is")
    return device


def run(options: argparse.Namespace, console: Console) -> Path:
    """Make all runs, and return the folder of their records.

    Raises:
        BenchmarkError: If they cannot be made. The epochs up to the states that were kept last are recorded.
    """
    runs = plan_runs(options.arms, options.epoch_loss, options.label_noise, options.seeds)
    device = choose_device(options.device)
    images = load_images(
        options.data, options.data_dir, lambda text: console.print(text, highlight=False, markup=False)
    )
    images = images.sample(options.images, options.images if options.test_images is None else options.test_images)
    configuration, recipe = configure(options, images)
    folder: Path = options.out or Path("runs") / f"{options.model}-{images.name}"
    storage = Storage(folder, configuration)
    setup = Setup(
        configuration, recipe, images, storage, device, options.threads, options.at_once, options.checkpoint_seconds
    )
    with storage.opened():
        storage.check_place(device, options.threads)
        finished = storage.finished()
        waiting = [name for name in runs if name not in finished]
        console.print(_describe(configuration, runs, len(runs) - len(waiting)), highlight=False, markup=False)
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
    options = parse(arguments)
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
        f"records: {folder}; for tables and figures: python -m benchmarks.report {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
