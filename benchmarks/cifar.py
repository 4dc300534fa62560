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
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.options import DEFAULT_MAX_VISITS
from benchmarks.errors import PlanError
from benchmarks.evaluation import evaluate, measure_numerics
from benchmarks.images import NOISE_GROUP, full_path, load_images, redraw_labels
from benchmarks.models import ModelRecipe, count_parameters, find_recipe, make_model
from benchmarks.plans import PlanOptions, make_runs, parse, run_command
from benchmarks.schema import ARMS, Configuration, EpochLoss, Flipped, Precision, RunName
from benchmarks.storage import Storage
from benchmarks.training import Job, Tested, Trained

# Enough to keep a device busy; between them a run looks whether it is to stop.
_UPDATES_BETWEEN_CHECKS = 64


@dataclass(frozen=True, kw_only=True)
class Options(PlanOptions):
    """The options of the command; the help is made of the comments."""

    model: str = "resnet34"  # resnet34, tnt, efficientnet_b7, efficientnet_lite0, small_resnet, or any of timm's.
    data: str = "cifar10"  # cifar10, cifar100, or a folder with train/<class>/ and test/<class>/.
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
    checkpoint_seconds: float = 0.0  # Least time between states kept, at the end of an epoch; 0 for every epoch.


def check(options: Options) -> None:
    """Refuse options that are out of their range, before there is data."""
    least = {"epochs": 1, "batch_size": 1, "max_visits": 0, "seeds": 0, "label_noise": 0, "learning_rate": 0}
    options.check(least, {"arms": ARMS})
    if max(options.label_noise) > NOISE_GROUP:
        raise PlanError(f"--label-noise is {options.label_noise}; it must be 0 to {NOISE_GROUP}")
    if options.k is not None:
        BatchAttentionSchedule(options.k)


def plan(options: Options) -> list[RunName]:
    """Every run that was asked for."""
    arms = [arm for arm in ARMS if arm in options.arms]
    return [
        RunName(arm, reading, noise, seed)
        for noise, seed, arm in itertools.product(options.label_noise, options.seeds, arms)
        for reading in ([None] if arm == "baseline" else options.epoch_loss)
    ]


def needs(run: RunName) -> list[RunName]:
    """The runs that this one is made from: ``random`` from attention's visits, ``longer`` from their number as well.

    ``longer`` starts from the end of the baseline, whose epochs would be its own.
    """
    baseline, attention = run._replace(arm="baseline", epoch_loss=None), run._replace(arm="attention")
    return {"random": [attention], "longer": [baseline, attention]}.get(run.arm, [])


def find_device(options: Options) -> str:
    """The device to train on; that of other machines is not known here."""
    name, here = options.device or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    kind, _, index = name.partition(":")
    is_elsewhere = options.executor not in (None, "processes")
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not is_elsewhere and int(index or 0) >= here):
        raise PlanError(f"--device is {name}; it must be cpu, cuda, cuda:1 and so on, and {here} GPUs are here")
    return name


def configure(options: Options) -> Configuration:
    """What all runs have in common."""
    test_images = options.images if options.test_images is None else options.test_images or None
    data = load_images(options.data, options.data_dir, options.images, test_images).describe()
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


_load = lru_cache(maxsize=1)(load_images)


class ImageTraining:
    """Training of one run (see ``benchmarks.training.Training``)."""

    def __init__(self, job: Job) -> None:
        storage, arm, seed = Storage(job.folder), job.run.arm, job.run.seed
        assert isinstance(storage.configuration, Configuration)
        self._run, self._configuration, self._epochs = job.run, storage.configuration, 0
        configuration, data, device = storage.configuration, storage.configuration.data, torch.device(job.device)
        images = _load(job.data, job.data_dir, data.train_images, data.test_images)
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
        fields |= {"updates": summary.visits, "train_loss": summary.mean_loss}
        fields["precision"] = self._configuration.precision
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
    device, configuration = find_device(options), configure(options)
    data = configuration.data
    folder = (options.out or Path("runs") / f"{options.model}-{data.name}").resolve()
    text = f"{options.model} on {data.name}: {data.train_images:,} images to train on, {data.test_images:,} to test on"
    console.print(text, highlight=False, markup=False)

    def make_job(run: RunName) -> Job:
        fields = {"device": device, "checkpoint_seconds": options.checkpoint_seconds}
        starts_as = needs(run)[0] if run.arm == "longer" else None
        return options.make_job(folder, run, full_path(options.data), starts_as=starts_as, **fields)

    make_runs(options, Storage(folder, configuration), [plan(options)], needs, make_job, console)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_command(parse(Options, "benchmarks.cifar", __doc__, arguments), run)


if __name__ == "__main__":
    main()
