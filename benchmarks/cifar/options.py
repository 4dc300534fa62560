"""What the command is asked for, and what follows from it: its runs, their configuration and their device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.options import DEFAULT_MAX_VISITS
from benchmarks.cifar.images import ImageSet
from benchmarks.cifar.models import ModelRecipe, count_parameters, find_recipe
from benchmarks.cifar.plan import plan_runs
from benchmarks.errors import PlanError
from benchmarks.schema import ARMS, Configuration, EpochLoss, Precision, RunName


def _unless_given(says: str) -> object:
    """What the help says in place of a default of None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {says})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command. The help is made of this text.

    Attributes:
        model: resnet34, tnt, efficientnet_b7, efficientnet_lite0, small_resnet, or any of timm's.
        data: cifar10, cifar100, or a folder with train/<class>/ and test/<class>/.
        data_dir: Downloaded and decoded data.
        images: Train and test on so many each, always the same ones.
        test_images: Test on so many; 0 for all of them.
        arms: Of those above.
        seeds: Of the initial weights, the orders, and the labels redrawn; at least 0.
        epochs: Of every arm but longer.
        k: Batches are repeated above so many times the last epoch's mean loss.
        epoch_loss: Which visits that mean is over.
        label_noise: Labels redrawn of every 32.
        max_visits: To one batch; 0 for no limit.
        batch_size: Images in a batch.
        learning_rate: Adam's.
        pretrained: Begin with ImageNet weights: timm's, or a package's for Lite0.
        reduced: A smaller form for a CPU, recorded as that; tnt has one.
        precision: The default is PyTorch's own.
        channels_last: Lay out images with their channels last.
        deterministic: Ask PyTorch for deterministic algorithms.
        device: cpu, or cuda, or cuda:1 and so on.
        at_once: Runs at once: by turns on a GPU, in processes on a CPU.
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
    threads: int = 1
    checkpoint_seconds: float = 0.0
    out: Annotated[Path | None, _unless_given("runs/<model>-<data>")] = None

    def check(self) -> None:
        """Look at all that can be judged before there is data.

        Raises:
            PlanError: If a number is out of its range.
            OptionError: If ``k`` is nothing that Batch-attention takes.
        """
        for name, least in (("epochs", 1), ("batch_size", 1), ("at_once", 1), ("threads", 1), ("max_visits", 0)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise PlanError(f"--{option} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.learning_rate < math.inf:
            raise PlanError(f"--learning-rate is {self.learning_rate}; it must be a number above 0")
        if self.k is not None:
            BatchAttentionSchedule(self.k)  # refuses what it does not take

    def plan(self) -> list[RunName]:
        """Every run that was asked for, with those that it needs.

        Raises:
            PlanError: If nothing was asked for, something twice, or what there is not.
        """
        return plan_runs(self.arms, self.epoch_loss, self.label_noise, self.seeds)

    def find_device(self) -> torch.device:
        """The device to train on.

        Raises:
            PlanError: If there is none of that name.
        """
        name = self.device
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

    def sample(self, images: ImageSet) -> ImageSet:
        """As many images as were asked for.

        Raises:
            DataError: If there are not as many.
        """
        return images.sample(self.images, self.images if self.test_images is None else self.test_images)

    def find_folder(self, images: ImageSet) -> Path:
        """Where the records of runs on these images go."""
        return self.out or Path("runs") / f"{self.model}-{images.name}"

    def configure(self, images: ImageSet) -> tuple[Configuration, ModelRecipe]:
        """What all runs on these images have in common.

        Raises:
            BenchmarkError: If there is no such model, or it cannot be trained on them.
        """
        data = images.describe()
        if data.train_images % self.batch_size == 1:
            raise PlanError(
                f"{data.train_images} images in batches of {self.batch_size} leave one for the last, which batch "
                "normalization cannot train on; give another --batch-size"
            )
        recipe = find_recipe(self.model, data.height, data.width, pretrained=self.pretrained, reduced=self.reduced)
        # What an option and a field of the records are both named is the same thing, but for what follows.
        asked = {name: value for name, value in vars(self).items() if name in Configuration.model_fields}
        asked |= {
            "architecture": recipe.architecture,
            "model_options": recipe.options,
            "weights": None if recipe.weights is None else recipe.weights.describe(),
            "parameters": count_parameters(recipe, data),
            "data": data,
            "k": self.k if self.k is not None else 1.5 if len(data.classes) == 100 else 1.2,
            "max_visits": self.max_visits or None,
        }
        return Configuration(**asked), recipe


def parse(arguments: Sequence[str] | None, description: str | None = None) -> Options:
    """The options on a command line, which ends the process with status 2 where it is none.

    Args:
        arguments: Its words; None for those of the process.
        description: What the help begins with; None for nothing but the options.
    """
    return tyro.cli(
        Options,
        prog="python -m benchmarks.cifar",
        description=description,
        args=arguments,
        # A folder or a model may be called None.
        config=(tyro.conf.DisallowNone,),
    )
