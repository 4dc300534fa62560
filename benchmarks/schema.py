"""The raw records of the benchmarks: what is in them.

A folder of records holds three files that reports are made of:

    configuration.json   what all of its runs have in common
    runs.jsonl           one line a run: where it ran, and its confusion matrices
    epochs.jsonl         one line an evaluation of a run: after an epoch, or for ``benchmarks.selection`` after the last

and a fourth, visits.jsonl, which only the benchmark itself reads again. Records of ``benchmarks.selection`` from before
this format have plan.json and other lines; ``benchmarks.reading`` turns them into these classes.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1

# Of ``benchmarks.cifar``; those of ``benchmarks.selection`` have names of their own.
Arm = str
ARMS: Final[tuple[Arm, ...]] = ("baseline", "attention", "random", "longer")
EpochLoss = Literal["first", "last", "all"]
Precision = Literal["default", "fp32", "tf32", "bf16", "fp16"]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ConfusionMatrix = list[list[Count]]


class Checked(BaseModel):
    """A record whose fields have the types that are written here, and no others beside them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Checked):
    """A data set.

    Attributes:
        name: ``cifar10`` or ``cifar100`` where the classes are theirs, else the name of the folder.
        train_images: How many.
        test_images: How many.
        classes: Their names, in the order of the labels.
        height: Of every image, in pixels.
        width: Of every image, in pixels.
        sha256: Of all pixels and labels.
    """

    name: str
    train_images: Count
    test_images: Count
    classes: list[str]
    height: Count
    width: Count
    sha256: str


class Configuration(Checked):
    """What all runs of a folder have in common.

    Attributes:
        schema_version: Of these records.
        model: As it was asked for.
        architecture: The name that it was made by.
        model_options: The arguments that it was made with.
        pretrained: Whether it began with ImageNet weights.
        weights: The package that these came from; None where it did not, or they are timm's.
        parameters: How many numbers are trained.
        data: What it was trained on.
        epochs: Of every arm but ``longer``.
        k: Threshold in units of the last epoch's mean loss.
        batch_size: Images in a batch.
        learning_rate: Adam's.
        max_visits: The most visits to one batch; None for no limit, as in the paper.
        precision: ``default`` is PyTorch's own: TF32 in cuDNN's convolutions and not in matrix products.
        channels_last: Whether images were laid out with their channels last.
        deterministic: Whether PyTorch was asked for deterministic algorithms.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    architecture: str
    model_options: dict[str, Any]
    pretrained: bool
    weights: str | None = None
    parameters: Count
    data: Data
    epochs: Count
    k: float
    batch_size: Count
    learning_rate: float
    max_visits: int | None
    precision: Precision
    channels_last: bool
    deterministic: bool

    def digest(self) -> str:
        """A short name for exactly this configuration, which every line of its records carries."""
        # What came later leaves the names of older records as they are.
        later = {name for name in ("weights",) if getattr(self, name) is None}
        return hashlib.sha256(self.model_dump_json(exclude=later).encode()).hexdigest()[:12]


class SelectionConfiguration(Checked):
    """What all runs of a folder of ``benchmarks.selection`` have in common.

    Attributes:
        schema_version: Of these records.
        study: ``images``: four settings of one set of images; ``kinds``: four kinds of data.
        data: The name of the images; None for ``kinds``, where each run names its own by digest.
        data_sha256: Of these images.
        settings: The sizes of each setting.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    study: Literal["images", "kinds"]
    data: str | None
    data_sha256: str | None
    settings: dict[str, dict[str, float | None]]

    def digest(self) -> str:
        """A short name for exactly this configuration, which every line of its records carries."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


class RunName(NamedTuple):
    """Which run it is, among those of a configuration.

    Attributes:
        arm: One of ``ARMS``, or of the arms of ``benchmarks.selection``.
        epoch_loss: The schedule's reading, or that of the attention run that the control is paired with; None for
            the baseline, and in ``benchmarks.selection``.
        label_noise: How many labels of every 32 were redrawn.
        seed: Of the initial weights, the orders, and the labels redrawn.
        setting: Of ``benchmarks.selection``: the data; None in ``benchmarks.cifar``.
        rate: Times the base learning rate, where a study compares rates.
    """

    arm: str
    epoch_loss: EpochLoss | None
    label_noise: int
    seed: int
    setting: str | None = None
    rate: float | None = None

    def __str__(self) -> str:
        reading = "" if self.epoch_loss is None else f"-{self.epoch_loss}"
        noise = f"-noise{self.label_noise}" if self.setting is None else ""
        rate = "" if self.rate is None else f"-rate{self.rate:g}"
        return f"{self.setting + '-' if self.setting else ''}{self.arm}{reading}{noise}-seed{self.seed}{rate}"


class OfRun(Checked):
    """What every line says of the run that it belongs to; the fields are those of ``RunName``."""

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
    """Batches with the same number of visits in an epoch, and the wrong labels in them.

    Attributes:
        batches: How many batches.
        with_flipped: How many of them hold an image whose label is another than its true one.
        flipped: How many such images they hold in all.
    """

    batches: Count
    with_flipped: Count
    flipped: Count


class Chosen(Checked):
    """What an evaluation says beside accuracy where an arm chooses samples.

    Attributes:
        forward_samples: Samples that the network ran on in training, those included that were only looked at.
        pruned: Samples that were left out.
        counts: Training samples of each group: a class, or a kind that no label tells.
        recalls: Per cent of the test samples of each group.
        learning_rate: The peak; None in older records of ``images``, where it is 0.1.
        score: What arms of ``kinds`` are compared by: accuracy in per cent, of text minus the mean loss over sorts.
        validation: The same on validation data.
        group_losses: Mean test loss of each group.
        data_sha256: Of the data that the setting draws from.
    """

    forward_samples: Count
    pruned: Count
    counts: list[Count]
    recalls: list[float]
    learning_rate: float | None = None
    score: float | None = None
    validation: float | None = None
    group_losses: list[float] | None = None
    data_sha256: str | None = None


class Epoch(OfRun):
    """One evaluation of one run: an epoch, or the whole training in ``benchmarks.selection``.

    Attributes:
        epoch: From 1. The last epoch of ``longer`` may have fewer batches than the others.
        batches: Base batches.
        updates: Weight updates, one for each visit.
        repeats: Updates beyond one for each batch.
        threshold: The loss above which a batch was repeated; None where none could be.
        train_loss: Mean batch loss: over the first visits, but for ``attention`` over those that ``epoch_loss`` says.
            None where no loss was finite.
        test_loss: Mean cross-entropy over the test set; None where it is not finite.
        accuracy: On the test set.
        macro_f1: On the test set.
        seconds: Training, with everything that the schedule costs and without evaluation.
        evaluation_seconds: Evaluation.
        finished_at: When, in UTC.
        shared_device: Whether other runs used the device at the time, or other work the CPU: then the seconds say
            nothing.
        precision: As in the configuration.
        capped_batches: Batches left above the threshold because of ``max_visits``.
        nonfinite_losses: Visits whose loss was NaN or infinite.
        most_visits: The most visits to one batch.
        host_reads: How often the host waited for the device to learn where it was.
        batches_by_visits: How many batches took how many visits, and the wrong labels in them. None for arms
            without repeats.
        chosen: Where an arm chooses samples; None in ``benchmarks.cifar``.
    """

    epoch: Annotated[int, Field(ge=1)]
    batches: Annotated[int, Field(ge=1)]
    updates: Annotated[int, Field(ge=1)]
    repeats: Count
    threshold: float | None = None
    train_loss: float | None
    test_loss: float | None = None
    accuracy: Share
    macro_f1: Share
    seconds: Annotated[float, Field(ge=0)]
    evaluation_seconds: Annotated[float, Field(ge=0)]
    finished_at: str
    shared_device: bool
    precision: Precision = "default"
    capped_batches: Count = 0
    nonfinite_losses: Count = 0
    most_visits: Count = 1
    host_reads: int | None = None
    batches_by_visits: dict[int, Flipped] | None = None
    chosen: Chosen | None = None


class Evaluated(Checked):
    """Confusion on the test set after an epoch.

    Attributes:
        epoch: From 1.
        confusion: Images by true class (row) and predicted class (column).
    """

    epoch: Annotated[int, Field(ge=1)]
    confusion: ConfusionMatrix


class Surroundings(Checked):
    """What a run ran on, from an epoch on.

    Attributes:
        from_epoch: From 1.
        device: As PyTorch names it.
        threads: CPU threads of the run.
        at_once: How many runs there were at once.
        environment: ``benchmarks.environment.describe_environment()``.
    """

    from_epoch: Annotated[int, Field(ge=1)]
    device: str
    threads: Count
    at_once: Annotated[int, Field(ge=1)]
    environment: dict[str, Any]


class Run(OfRun):
    """One run.

    Attributes:
        is_finished: Whether all of its epochs are there.
        flipped_labels: Training images whose label is another than their true one.
        surroundings: Where it ran; more than one entry if it was stopped and went on elsewhere.
        best: At the first epoch of the highest test accuracy, which is the paper's choice; None where an arm chooses
            samples.
        last: At the last epoch; None as above.
        doses: How many samples each pass left out, which a random twin is made from.
    """

    is_finished: bool
    flipped_labels: Count = 0
    surroundings: list[Surroundings]
    best: Evaluated | None = None
    last: Evaluated | None = None
    doses: dict[str, Any] | None = None


class OfVisits(OfRun):
    """How often an attention run visited its batches: what its controls are made from.

    Attributes:
        visits: To each batch, in order of position, in each epoch.
    """

    visits: list[list[Count]]


class RunFile(Checked):
    """What is kept of a run while others may be made from it.

    Attributes:
        run: Its line.
        epochs: Its epochs' lines.
        visits: Visits to each batch in each epoch; empty for arms without repeats.
    """

    run: Run
    epochs: list[Epoch]
    visits: list[list[int]]
