"""The raw records of the benchmarks: a folder of these files.

configuration.json   what all of its runs have in common
runs.jsonl           one line a run: where it ran, and its confusion matrices
epochs.jsonl         one line an evaluation of a run: after an epoch, or for ``benchmarks.selection`` after the last
visits.jsonl         one line a run: how often it visited each batch, for controls made later
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1

# Of ``benchmarks.cifar``; those of ``benchmarks.selection`` have names of their own.
ARMS: Final[tuple[str, ...]] = ("baseline", "attention", "random", "longer")
EpochLoss = Literal["first", "last", "all"]
Precision = Literal["default", "fp32", "tf32", "bf16", "fp16"]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
ConfusionMatrix = list[list[Count]]  # images by true class (row) and predicted class (column)


class Checked(BaseModel):
    """A record whose fields have exactly these names and types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Checked):
    """A data set."""

    name: str  # ``cifar10``, ``cifar100``, or that of the folder
    train_images: Count
    test_images: Count
    classes: list[str]  # in the order of the labels
    height: Count
    width: Count
    sha256: str  # of all pixels and labels


class Common(Checked):
    """What all runs of a folder have in common."""

    schema_version: Literal[1] = SCHEMA_VERSION

    def digest(self) -> str:
        """A short name for exactly this configuration, which every line of its records carries."""
        # A field that older records lack changes no digest where it is None.
        later = {name for name in ("weights",) if getattr(self, name, None) is None}
        return hashlib.sha256(self.model_dump_json(exclude=later).encode()).hexdigest()[:12]


class Configuration(Common):
    """Of ``benchmarks.cifar``."""

    model: str  # as it was asked for
    architecture: str  # the name in timm
    model_options: dict[str, Any]
    pretrained: bool  # whether it starts from ImageNet weights
    weights: str | None = None  # the package of these; None for timm's, and without
    parameters: Count  # numbers that are trained
    data: Data
    epochs: Count  # of every arm but ``longer``
    k: float  # the threshold over the last epoch's mean loss
    batch_size: Count
    learning_rate: float  # Adam's
    max_visits: int | None  # to one batch; None for no limit, as in the paper
    precision: Precision  # ``default`` is PyTorch's own: TF32 in cuDNN's convolutions and not in matrix products
    channels_last: bool
    deterministic: bool  # whether PyTorch was asked for deterministic algorithms


class SelectionConfiguration(Common):
    """Of ``benchmarks.selection``."""

    study: Literal["images", "kinds"]  # four settings of one set of images; four kinds of data
    data: str | None  # the name of the images; None for ``kinds``, where each run names its own by digest
    data_sha256: str | None
    settings: dict[str, dict[str, float | None]]  # the sizes of each


class RunName(NamedTuple):
    """Which run it is, among those of a configuration."""

    arm: str
    epoch_loss: EpochLoss | None  # the schedule's, or that of the paired attention run; None for the baseline
    label_noise: int  # labels drawn again of every 32
    seed: int  # of the initial weights, the orders, and the labels drawn again
    setting: str | None = None  # of ``benchmarks.selection``: the data
    rate: float | None = None  # times the base learning rate, where a study compares rates

    def __str__(self) -> str:
        noise = f"noise{self.label_noise}" if self.setting is None else None
        rate = f"rate{self.rate:g}" if self.rate is not None else None
        parts = self.setting, self.arm, self.epoch_loss, noise, f"seed{self.seed}", rate
        return "-".join(part for part in parts if part)


class OfRun(Checked):
    """The part of every line that says which run it belongs to; the fields are those of ``RunName``."""

    configuration: str
    arm: str
    epoch_loss: EpochLoss | None = None
    label_noise: Count = 0
    seed: int
    setting: str | None = None
    rate: float | None = None

    @property
    def run(self) -> RunName:
        """The run."""
        return RunName(self.arm, self.epoch_loss, self.label_noise, self.seed, self.setting, self.rate)


class Flipped(Checked):
    """Batches with the same number of visits in an epoch, and the wrong labels in them."""

    batches: Count
    with_flipped: Count  # batches with at least one image whose label is not its true one
    flipped: Count  # such images in all of them


class Chosen(Checked):
    """Part of an evaluation where an arm chooses samples."""

    forward_samples: Count  # samples that the network ran on in training, also without an update
    pruned: Count
    counts: list[Count]  # training samples of each group: a class, or a subgroup that has no label
    recalls: list[float]  # per cent of the test samples of each group
    learning_rate: float | None = None  # the peak; None in older records of ``images``, where it is 0.1
    score: float | None = None  # of ``kinds``: accuracy in per cent, of text minus the mean loss over sorts
    validation: float | None = None  # the same on validation data
    group_losses: list[float] | None = None  # mean test loss of each group
    data_sha256: str | None = None  # of the data that the setting draws from


class Epoch(OfRun):
    """An evaluation of a run, and the training since the one before."""

    epoch: Positive
    batches: Positive  # fewer in the last epoch of ``longer``
    updates: Positive  # one for each visit
    repeats: Count  # updates beyond one for each batch
    threshold: float | None = None  # the loss above which a batch was repeated; None where none could be
    train_loss: float | None  # mean batch loss over the visits that ``epoch_loss`` says; None where none was finite
    test_loss: float | None = None  # mean cross-entropy; None where it is not finite
    accuracy: Share
    macro_f1: Share
    seconds: Seconds  # of training, without evaluation
    evaluation_seconds: Seconds
    finished_at: str  # in UTC
    shared_device: bool  # with other runs, or other work on the CPU: then the seconds mean nothing
    precision: Precision = "default"
    capped_batches: Count = 0  # left above the threshold because of ``max_visits``
    nonfinite_losses: Count = 0
    most_visits: Count = 1  # to one batch
    host_reads: int | None = None  # how often the host waited for the device to learn its position
    batches_by_visits: dict[int, Flipped] | None = None  # None for arms without repeats
    chosen: Chosen | None = None  # None in ``benchmarks.cifar``


class Evaluated(Checked):
    """Confusion on the test set after an epoch."""

    epoch: Positive
    confusion: ConfusionMatrix


class Surroundings(Checked):
    """What a run ran on, from an epoch on."""

    from_epoch: Positive
    device: str
    threads: Count
    at_once: Positive  # runs at the same time
    environment: dict[str, Any]  # ``benchmarks.environment.describe_environment()``


class Run(OfRun):
    """One run."""

    is_finished: bool
    flipped_labels: Count = 0  # training images whose label is not their true one
    surroundings: list[Surroundings]  # more than one if it was stopped and resumed elsewhere
    best: Evaluated | None = None  # at the first epoch of the highest test accuracy; None in ``benchmarks.selection``
    last: Evaluated | None = None
    doses: dict[str, Any] | None = None  # samples that each pass left out, for a random twin


class OfVisits(OfRun):
    """How often an attention run visited its batches: what its controls are made from."""

    visits: list[list[Count]]  # to each batch, in order of position, in each epoch


class RunFile(Checked):
    """All that is recorded of one run."""

    run: Run
    epochs: list[Epoch]
    visits: list[list[int]]  # empty for arms without repeats
