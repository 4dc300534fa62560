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
from typing import Annotated, Any

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


def _unless_given(says: str) -> object:
    """The help's text in place of a default of None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {says})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command. The help is made of this text.

    Attributes:
        model: resnet34, tnt, efficientnet_b7, efficientnet_lite0, small_resnet, or any of timm's.
        data: cifar10, cifar100, or a folder with train/<class>/ and test/<class>/.
        data_dir: Downloaded data.
        images: Train and test on so many each, always the same ones.
        test_images: Test on so many; 0 for all of them.
        arms: Of those above.
        seeds: Of the initial weights, the orders, and the labels drawn again; at least 0.
        epochs: Of every arm but longer.
        k: Batches are repeated above so many times the last epoch's mean loss.
        epoch_loss: Which visits that mean is over.
        label_noise: Labels drawn again of every 32.
        max_visits: To one batch; 0 for no limit.
        batch_size: Images in a batch.
        learning_rate: Adam's.
        pretrained: Start from ImageNet weights: timm's, or a package's for Lite0.
        reduced: A smaller form for a CPU, recorded as that; tnt has one.
        precision: The default is PyTorch's own.
        channels_last: Lay out images with their channels last.
        deterministic: Ask PyTorch for deterministic algorithms.
        device: cpu, or cuda, or cuda:1 and so on.
        at_once: Runs at once.
        executor: What makes them: processes, submitit, dask:ADDRESS or MODULE:CALLABLE (see benchmarks/running.py).
        executor_options: KEY=VALUE for it, such as slurm_partition=gpu.
        threads: CPU threads of a run; sums depend on it.
        checkpoint_seconds: Least time between states kept, at the end of an epoch; 0 for every epoch.
        out: Folder of the records.
    """

    model: str = "resnet34"
    data: str = "cifar10"
    data_dir: Path = Path("data")
    images: Annotated[int | None, _unless_given("all")] = None
    test_images: Annotated[int | None, _unless_given("as --images")] = None
    arms: tuple[str, ...] = ARMS
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 100
    k: Annotated[float | None, _unless_given("1.2; 1.5 with 100 classes")] = None
    epoch_loss: tuple[EpochLoss, ...] = ("first",)
    label_noise: tuple[int, ...] = (0,)
    max_visits: int = DEFAULT_MAX_VISITS
    batch_size: int = 32
    learning_rate: float = 1e-4
    pretrained: bool = False
    reduced: bool = False
    precision: Precision = "default"
    channels_last: bool = False
    deterministic: bool = True
    device: Annotated[str | None, _unless_given("cuda if there is one, else cpu")] = None
    at_once: int = 1
    executor: Annotated[str | None, _unless_given("this process, or processes with --at-once")] = None
    executor_options: tuple[str, ...] = ()
    threads: int = 1
    checkpoint_seconds: float = 0.0
    out: Annotated[Path | None, _unless_given("runs/<model>-<data>")] = None


def check(options: Options) -> None:
    """Refuse options that are out of their range, before there is data."""
    for name, least in (("epochs", 1), ("batch_size", 1), ("at_once", 1), ("threads", 1), ("max_visits", 0)):
        if getattr(options, name) < least:
            raise PlanError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least {least}")
    for name in ("arms", "epoch_loss", "label_noise", "seeds"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise PlanError(f"{name} is {list(values)}; give at least one value, and none twice")
    if not set(options.arms) <= set(ARMS):
        raise PlanError(f"--arms has {', '.join(set(options.arms) - set(ARMS))}; the arms are {', '.join(ARMS)}")
    if not 0 < options.learning_rate < math.inf or min(options.seeds) < 0:
        raise PlanError(
            f"--learning-rate is {options.learning_rate} and --seeds {options.seeds}; the rate must be a number above "
            "0, and seeds whole numbers of at least 0"
        )
    if not 0 <= min(options.label_noise) <= max(options.label_noise) <= GROUP_SIZE:
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


def find_device(options: Options) -> torch.device:
    """The device to train on; that of other machines is not known here."""
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise PlanError(f"--device is {name!r}; it must be cpu or cuda, or cuda:1 and so on")
    is_here = options.executor in (None, "processes")
    if is_here and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PlanError(f"--device is {name!r}, and there is none here; leave it out to take what there is")
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
    asked |= {
        "architecture": recipe.architecture,
        "model_options": recipe.options,
        "weights": recipe.describe_weights(),
        "parameters": count_parameters(recipe, data),
        "data": data,
        "k": options.k if options.k is not None else 1.5 if len(data.classes) == 100 else 1.2,
        "max_visits": options.max_visits or None,
    }
    return Configuration(**asked)


# One run ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _load(data: str, data_dir: Path, train_images: int, test_images: int, sha256: str) -> ImageSet:
    images = load_images(data, data_dir, train_images, test_images)
    if images.describe().sha256 != sha256:
        raise DataError(f"{data} has other images than the records were made with; give the same --data")
    return images


class ImageTraining:
    """Training of one run (see ``benchmarks.training.Training``)."""

    def __init__(self, job: Job) -> None:
        storage = Storage(job.folder)
        assert isinstance(storage.configuration, Configuration)
        self._run, self._configuration = job.run, storage.configuration
        device, data = torch.device(job.device), self._configuration.data
        images = _load(job.data, job.data_dir, data.train_images, data.test_images, data.sha256)
        true_labels = images.train.labels
        labels = redraw_labels(true_labels, len(data.classes), job.run.label_noise, job.run.seed)
        self._is_flipped = labels != true_labels
        train = torch.from_numpy(images.train.images).to(device)
        self._test = torch.from_numpy(images.test.images).to(device)
        self._test_labels = torch.from_numpy(images.test.labels).to(device)
        self._numerics = measure_numerics(train, self._configuration.precision, self._configuration.channels_last)
        # ``longer`` ends with these; other arms by their epochs.
        self._updates_wanted: int | None = None
        schedule = None
        attention = job.run._replace(arm="attention")
        if job.run.arm == "attention":
            k, max_visits = self._configuration.k, self._configuration.max_visits
            schedule = BatchAttentionSchedule(k, epoch_loss=job.run.epoch_loss or "first", max_visits=max_visits)
        elif job.run.arm == "random":
            schedule = EqualComputeControl(storage.read_visits(attention), seed=job.run.seed)
        elif job.run.arm == "longer":
            self._updates_wanted = sum(map(sum, storage.read_visits(attention)))
        self._loop = self._make_loop(train, torch.from_numpy(labels).to(device), schedule)
        self._epochs = 0

    def _make_loop(
        self, train: torch.Tensor, targets: torch.Tensor, schedule: BatchAttentionSchedule | None
    ) -> DeviceLoop:
        configuration, seed, device = self._configuration, self._run.seed, train.device
        recipe = ModelRecipe(
            configuration.model, configuration.architecture, configuration.model_options, configuration.pretrained
        )
        model = make_model(recipe, len(configuration.data.classes), seed).to(device)
        is_cuda = device.type == "cuda"
        optimizer = torch.optim.Adam(model.parameters(), lr=configuration.learning_rate, fused=True, capturable=is_cuda)
        if configuration.channels_last:
            model.to(memory_format=torch.channels_last)
        # For dropout and the like: other numbers than those of initial weights and orders.
        torch.manual_seed(seed + 2)
        if is_cuda:
            torch.cuda.manual_seed(seed + 3)
        return DeviceLoop(
            model,
            optimizer,
            nn.functional.cross_entropy,
            train,
            targets,
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
        fields = {
            "batches": summary.batches,
            "updates": summary.visits,
            "repeats": summary.repeats,
            "threshold": summary.threshold,
            "train_loss": summary.mean_loss,
            "precision": self._configuration.precision,
            "capped_batches": summary.capped_batches,
            "nonfinite_losses": summary.nonfinite_losses,
            "most_visits": summary.most_visits,
            "host_reads": summary.host_reads,
            "batches_by_visits": None if visits is None else self._count_by_visits(visits),
        }
        return Trained(fields, visits)

    def evaluate(self) -> Tested:
        """Evaluate on the test images."""
        classes = len(self._configuration.data.classes)
        result = evaluate(self._loop.model, self._test, self._test_labels, classes, self._numerics)
        fields = {"test_loss": result.loss, "accuracy": result.accuracy, "macro_f1": result.macro_f1}
        return Tested(fields, result.confusion.tolist())

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
        is_flipped = torch.from_numpy(self._is_flipped)[self._loop.order.cpu()]
        flipped = [int(batch.sum()) for batch in is_flipped.split(self._configuration.batch_size)]
        counted: dict[int, Flipped] = {}
        for count in sorted(set(visits)):
            of_batches = [wrong for wrong, each in zip(flipped, visits, strict=True) if each == count]
            with_flipped = sum(wrong > 0 for wrong in of_batches)
            counted[count] = Flipped(batches=len(of_batches), with_flipped=with_flipped, flipped=sum(of_batches))
        return counted


build = ImageTraining


# The command ------------------------------------------------------------------------------------------------


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
                data=options.data if options.data in CIFAR else str(Path(options.data).resolve()),
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
    return tyro.cli(
        Options,
        prog="python -m benchmarks.cifar",
        description=__doc__,
        args=arguments,
        # A folder or a model may be called None.
        config=(tyro.conf.DisallowNone,),
    )


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
