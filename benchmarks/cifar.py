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
    random      as many visits in each epoch as attention made, to batches drawn at random
    longer      the baseline, for as many updates as attention made

A command that was stopped resumes when it is given again; finished runs are not made again.

Then: python -m benchmarks.report OUT
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.errors import BatchAttentionError
from batch_sampler_attn.options import DEFAULT_MAX_VISITS
from benchmarks.errors import BenchmarkError, DataError, PlanError
from benchmarks.evaluation import evaluate, measure_numerics
from benchmarks.images import CIFAR, ImageSet, load_images
from benchmarks.label_noise import GROUP_SIZE, redraw_labels
from benchmarks.models import ModelRecipe, count_parameters, find_recipe, make_model
from benchmarks.running import run_all
from benchmarks.schema import ARMS, Configuration, EpochLoss, Flipped, Precision, RunName
from benchmarks.storage import Storage
from benchmarks.training import Job, Tested, Trained

# Enough to keep a device busy; between them a run looks whether it is to stop.
_UPDATES_BETWEEN_CHECKS = 64


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; the help is made of the comments."""

    model: str = "resnet34"  # resnet34, tnt, efficientnet_b7, efficientnet_lite0, small_resnet, or any of timm's.
    data: str = "cifar10"  # cifar10, cifar100, or a folder with train/<class>/ and test/<class>/.
    data_dir: Path = Path("data")  # Downloaded data.
    images: int | None = None  # Train and test on so many each, always the same ones; all by default.
    test_images: int | None = None  # Test on so many; 0 for all of them, as --images by default.
    arms: tuple[str, ...] = ARMS  # Of those above.
    seeds: tuple[int, ...] = (0, 1, 2)  # Of the initial weights, the orders, and the labels drawn again; at least 0.
    epochs: int = 100  # Of every arm but longer.
    k: float | None = None  # Threshold, times the last epoch's mean loss; by default 1.2, with 100 classes 1.5.
    epoch_loss: tuple[EpochLoss, ...] = ("first",)  # Which visits that mean is over.
    label_noise: tuple[int, ...] = (0,)  # Labels drawn again of every 32.
    max_visits: int = DEFAULT_MAX_VISITS  # To one batch; 0 for no limit.
    batch_size: int = 32  # Images in a batch.
    learning_rate: float = 1e-4  # Adam's.
    pretrained: bool = False  # Start from ImageNet weights: timm's, or a package's for Lite0.
    reduced: bool = False  # A smaller form for a CPU, recorded as that; tnt has one.
    precision: Precision = "default"  # The default is PyTorch's own.
    channels_last: bool = False  # Lay out images with their channels last.
    deterministic: bool = True  # Ask PyTorch for deterministic algorithms.
    device: str | None = None  # cpu, or cuda, or cuda:1 and so on; by default cuda if there is one.
    at_once: int = 1  # Runs at once.
    executor: str | None = None  # processes, submitit, dask:ADDRESS or MODULE:CALLABLE (see benchmarks/running.py).
    executor_options: tuple[str, ...] = ()  # KEY=VALUE for it, such as slurm_partition=gpu.
    threads: int = 1  # CPU threads of a run; sums depend on it.
    checkpoint_seconds: float = 0.0  # Least time between states kept, at the end of an epoch; 0 for every epoch.
    out: Path | None = None  # Folder of the records; runs/MODEL-DATA by default.


def check(options: Options) -> None:
    """Refuse options that are out of their range, before there is data."""
    least = {"epochs": 1, "batch_size": 1, "at_once": 1, "threads": 1, "max_visits": 0, "seeds": 0, "label_noise": 0}
    for name, lowest in least.items():
        value = getattr(options, name)
        if min(value if isinstance(value, tuple) else [value], default=lowest) < lowest:
            raise PlanError(f"--{name.replace('_', '-')} is {value}; it must be at least {lowest}")
    for name in ("arms", "epoch_loss", "label_noise", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise PlanError(f"{name} is {list(values)}; give at least one value, and none twice")
    if not set(options.arms) <= set(ARMS):
        raise PlanError(f"--arms has {', '.join(set(options.arms) - set(ARMS))}; the arms are {', '.join(ARMS)}")
    if not 0 < options.learning_rate < math.inf:
        raise PlanError(f"--learning-rate is {options.learning_rate}; it must be a number above 0")
    if max(options.label_noise) > GROUP_SIZE:
        raise PlanError(f"--label-noise is {options.label_noise}; it must be 0 to {GROUP_SIZE}, of every {GROUP_SIZE}")
    if options.k is not None:
        BatchAttentionSchedule(options.k)


def plan(options: Options) -> list[RunName]:
    """Every run that was asked for, after the runs that it needs."""
    runs: dict[RunName, None] = {}
    arms = [arm for arm in ARMS if arm in options.arms]
    for noise, seed, arm in itertools.product(options.label_noise, options.seeds, arms):
        for reading in [None] if arm == "baseline" else options.epoch_loss:
            run = RunName(arm, reading, noise, seed)
            runs |= dict.fromkeys([*needs(run), run])
    return list(runs)


def needs(run: RunName) -> list[RunName]:
    """The runs that this one is made from: ``random`` from attention's visits, ``longer`` from their number as well.

    ``longer`` starts from the end of the baseline, whose epochs would be its own.
    """
    attention = run._replace(arm="attention")
    return {"random": [attention], "longer": [_baseline_of(run), attention]}.get(run.arm, [])


def _baseline_of(run: RunName) -> RunName:
    return run._replace(arm="baseline", epoch_loss=None)


def full_path(data: str) -> str:
    """The data as workers elsewhere find it."""
    return data if data in CIFAR else str(Path(data).resolve())


def find_device(options: Options) -> torch.device:
    """The device to train on; that of other machines is not known here."""
    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise PlanError(f"--device is {options.device!r}; it must be cpu or cuda, or cuda:1 and so on")
    is_here = options.executor in (None, "processes")
    if is_here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PlanError(f"--device is {options.device!r}, and there is none here; leave it out to take what there is")
    return device


def configure(options: Options) -> Configuration:
    """What all runs have in common."""
    test_images = options.images if options.test_images is None else options.test_images or None
    data = load_images(options.data, options.data_dir, options.images, test_images).describe()
    if data.train_images % options.batch_size == 1:
        raise PlanError(
            f"{data.train_images} images in batches of {options.batch_size} leave one for the last, which batch "
            "normalization cannot train on; give another --batch-size"
        )
    recipe = find_recipe(options.model, data.height, data.width, pretrained=options.pretrained, reduced=options.reduced)
    # Options and fields of the same name are the same thing, but for these.
    asked = {name: value for name, value in vars(options).items() if name in Configuration.model_fields}
    asked |= recipe._asdict() | {
        "weights": recipe.describe_weights(),
        "parameters": count_parameters(recipe, data),
        "data": data,
        "k": options.k if options.k is not None else 1.5 if len(data.classes) == 100 else 1.2,
        "max_visits": options.max_visits or None,
    }
    return Configuration(**asked)


@lru_cache(maxsize=1)
def _load(data: str, data_dir: Path, train_images: int, test_images: int, sha256: str) -> ImageSet:
    images = load_images(data, data_dir, train_images, test_images)
    if images.describe().sha256 != sha256:
        raise DataError(f"{data} has other images than the records were made with; give the same --data")
    return images


class ImageTraining:
    """Training of one run (see ``benchmarks.training.Training``)."""

    def __init__(self, job: Job) -> None:
        storage, arm, seed = Storage(job.folder), job.run.arm, job.run.seed
        assert isinstance(storage.configuration, Configuration)
        self._run, self._configuration, self._epochs = job.run, storage.configuration, 0
        configuration, data, device = storage.configuration, storage.configuration.data, torch.device(job.device)
        images = _load(job.data, job.data_dir, data.train_images, data.test_images, data.sha256)
        labels = redraw_labels(images.train.labels, len(data.classes), job.run.label_noise, seed)
        self._is_flipped = torch.from_numpy(labels != images.train.labels)
        train = torch.from_numpy(images.train.images).to(device)
        self._test = torch.from_numpy(images.test.images).to(device)
        self._test_labels = torch.from_numpy(images.test.labels).to(device)
        self._numerics = measure_numerics(train, configuration.precision, configuration.channels_last)

        visits = storage.read_visits(job.run._replace(arm="attention")) if arm in ("random", "longer") else []
        # ``longer`` ends with these; other arms by their epochs.
        self._updates_wanted = sum(map(sum, visits)) if arm == "longer" else None
        schedule: BatchAttentionSchedule | None = None
        if arm == "random":
            schedule = EqualComputeControl(visits, seed=seed)
        elif arm == "attention":
            epoch_loss, max_visits = job.run.epoch_loss or "first", configuration.max_visits
            schedule = BatchAttentionSchedule(configuration.k, epoch_loss=epoch_loss, max_visits=max_visits)

        recipe = ModelRecipe(*(getattr(configuration, name) for name in ModelRecipe._fields))
        model, is_cuda = make_model(recipe, len(data.classes), seed).to(device), device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), lr=configuration.learning_rate, fused=True, capturable=is_cuda)
        if configuration.channels_last:
            model.to(memory_format=torch.channels_last)
        # For dropout and the like: other numbers than those of initial weights and orders.
        torch.manual_seed(seed + 2)
        if is_cuda:
            torch.cuda.manual_seed(seed + 3)
        self._loop = DeviceLoop(
            model,
            optimizer,
            nn.functional.cross_entropy,
            train,
            torch.from_numpy(labels).to(device),
            configuration.batch_size,
            schedule=schedule,
            generator=torch.Generator().manual_seed(seed),
            prepare=self._numerics.prepare,
            autocast=self._numerics.autocast,
            scaler=torch.amp.GradScaler(device.type) if configuration.precision == "fp16" else None,
        )

    @property
    def is_finished(self) -> bool:
        """Whether every update has been made."""
        if self._updates_wanted is None:
            return self._epochs == self._configuration.epochs
        return self._loop.updates >= self._updates_wanted

    def train_epoch(self, check: Callable[[], None]) -> Trained:
        """Train for an epoch; for less where the updates of ``longer`` end before."""
        loop, summary = self._loop, None
        left = sys.maxsize if self._updates_wanted is None else self._updates_wanted - loop.updates
        while summary is None and left > 0:
            check()
            made = loop.enqueue(min(left, _UPDATES_BETWEEN_CHECKS))
            left -= made
            # The host waits for the device only where it cannot enqueue more.
            if made < _UPDATES_BETWEEN_CHECKS or left == 0:
                summary = loop.synchronize()
        summary = summary or loop.schedule.summary
        self._epochs += 1
        visits = loop.visit_counts if self._run.arm in ("attention", "random") else None
        names = "batches", "repeats", "threshold", "capped_batches", "nonfinite_losses", "most_visits", "host_reads"
        fields = {name: getattr(summary, name) for name in names}
        fields |= {
            "updates": summary.visits,
            "train_loss": summary.mean_loss,
            "precision": self._configuration.precision,
        }
        if visits is not None:
            fields["batches_by_visits"] = self._count_by_visits(visits)
        return Trained(fields, visits)

    def evaluate(self) -> Tested:
        """Evaluate on the test images."""
        classes = len(self._configuration.data.classes)
        return Tested(*evaluate(self._loop.model, self._test, self._test_labels, classes, self._numerics))

    def describe(self) -> dict[str, Any]:
        """How many labels are wrong."""
        return {"flipped_labels": int(self._is_flipped.sum())}

    def state_dict(self) -> dict[str, Any]:
        """What to resume from."""
        # On a CPU, dropout draws from PyTorch's own generator, which the loop does not save.
        return {"loop": self._loop.state_dict(), "random": torch.get_rng_state(), "epochs": self._epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""
        self._loop.load_state_dict(state["loop"])
        torch.set_rng_state(state["random"])
        self._epochs = state["epochs"]

    def _count_by_visits(self, visits: list[int]) -> dict[int, Flipped]:
        is_flipped = self._is_flipped[self._loop.order.cpu()]
        flipped: dict[int, list[int]] = {count: [] for count in sorted(set(visits))}
        for count, batch in zip(visits, is_flipped.split(self._configuration.batch_size), strict=True):
            flipped[count].append(int(batch.sum()))
        return {
            count: Flipped(batches=len(each), with_flipped=sum(wrong > 0 for wrong in each), flipped=sum(each))
            for count, each in flipped.items()
        }


build = ImageTraining


def run(options: Options, console: Console) -> Path:
    """Make all runs, and return the folder of their records."""
    check(options)
    runs, device, configuration = plan(options), find_device(options), configure(options)
    data = configuration.data
    folder = (options.out or Path("runs") / f"{options.model}-{data.name}").resolve()
    storage = Storage(folder, configuration)
    with storage.opened():
        storage.check_place(device.type, options.threads)
        finished = storage.finished()
        waiting = [name for name in runs if name not in finished]
        text = (
            f"{configuration.model} ({configuration.parameters:,} parameters) on {data.name}: {data.train_images:,} "
            f"images of {data.height}x{data.width} to train on, {data.test_images:,} to test on, {len(data.classes)} "
            f"classes; {len(runs)} runs, {len(waiting)} to be made"
        )
        console.print(text, highlight=False, markup=False)
        starts = {name: _baseline_of(name) for name in waiting if name.arm == "longer"}
        jobs = [
            Job(
                folder=folder,
                run=name,
                data=full_path(options.data),
                data_dir=options.data_dir.resolve(),
                device=str(device),
                threads=options.threads,
                at_once=options.at_once,
                checkpoint_seconds=options.checkpoint_seconds,
                starts_as=starts.get(name),
                keeps_state=name in starts.values(),
            )
            for name in waiting
        ]
        try:
            run_all(
                jobs,
                needs=needs,
                executor=options.executor,
                at_once=options.at_once,
                console=console,
                executor_options=options.executor_options,
            )
        finally:
            finished = storage.finished()
            for name in finished - {start for longer, start in starts.items() if longer not in finished}:
                storage.forget_state(name)
            storage.write_records()
    return folder


def parse(arguments: Sequence[str] | None) -> Options:
    """The options on a command line, which ends the process with status 2 where they are wrong."""
    # A folder or a model may be called None.
    config = (tyro.conf.DisallowNone,)
    return tyro.cli(Options, prog="python -m benchmarks.cifar", description=__doc__, args=arguments, config=config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error that is meant for the user is one line, and the exit status 1."""
    console = Console()
    options = parse(arguments)
    try:
        folder = run(options, console)
    except (BenchmarkError, BatchAttentionError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes from the last epoch that was kept")
    text = f"records: {folder}; for tables and figures: python -m benchmarks.report {folder}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
