"""The runs of a few folders of records, by what is compared: arms with the same seed, labels and configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report import paper
from benchmarks.report.naming import base_name, tell_apart
from benchmarks.report.statistics import Sample, sample
from benchmarks.schema import Arm, Configuration, Epoch, EpochLoss, Run, RunName, Surroundings
from benchmarks.text import visible

At = Literal["best", "last"]
Measure = Callable[[Sequence[Epoch]], float]


class Condition(NamedTuple):
    """What the arms that are compared have in common.

    Attributes:
        epoch_loss: The attention run's reading.
        label_noise: How many labels of every 32 were redrawn.
    """

    epoch_loss: EpochLoss
    label_noise: int


class Experiment(NamedTuple):
    """All finished runs of one configuration.

    Attributes:
        configuration: What they have in common.
        runs: By name.
        epochs: Of each run, in order.
        unfinished: How many runs were left out because they are not finished.
        apart: What tells it from another configuration of the same model and data in one report; empty without one.
    """

    configuration: Configuration
    runs: dict[RunName, Run]
    epochs: dict[RunName, list[Epoch]]
    unfinished: int
    apart: str = ""

    @property
    def name(self) -> str:
        """Model and data, and what tells it from others, as a title."""
        apart = f" ({self.apart})" if self.apart else ""
        return base_name(self.configuration) + apart

    @property
    def slug(self) -> str:
        """The same, as the begin of a file's name."""
        return f"{self.configuration.model}-{self.configuration.data.name}".lower().replace("/", "-").replace(" ", "-")

    @property
    def reductions(self) -> list[str]:
        """In what this is less than, or other than, what the paper did; empty where it is the same."""
        configuration, data = self.configuration, self.configuration.data
        theirs = paper.EXPERIMENTS.get(configuration.model)
        said: list[str] = []
        if theirs is None or theirs.data != data.name:
            said.append(f"{configuration.model} on {data.name}, which the paper has not")
        options = configuration.model_options
        smaller = [] if theirs is None else [each for each in options.items() if each[0] != "img_size"]
        said += [f"{name} {value}" for name, value in smaller if theirs and theirs.options.get(name) != value]
        compared = [
            (data.train_images != paper.TRAIN_IMAGES, f"{data.train_images:,} training images"),
            (data.test_images != paper.TEST_IMAGES, f"{data.test_images:,} test images"),
            (configuration.epochs != paper.EPOCHS, f"{configuration.epochs} epochs"),
            (configuration.batch_size != paper.BATCH_SIZE, f"batches of {configuration.batch_size}"),
            (configuration.learning_rate != paper.LEARNING_RATE, f"learning rate {configuration.learning_rate:g}"),
            (theirs is not None and configuration.k != theirs.k, f"K {configuration.k:g}"),
            (
                theirs is not None and configuration.pretrained != theirs.pretrained,
                "with ImageNet weights" if configuration.pretrained else "without ImageNet weights",
            ),
            (configuration.precision in ("bf16", "fp16"), configuration.precision),
            (any(place.device == "cpu" for place in self._places()), "on a CPU"),
        ]
        said += [text for is_other, text in compared if is_other]
        capped = sum(epoch.capped_batches for epochs in self.epochs.values() for epoch in epochs)
        if capped:
            said.append(f"{capped:,} batches left at max_visits, where the paper has no limit")
        return said

    @property
    def machines(self) -> list[str]:
        """What the runs ran on, a line each."""
        return sorted({one_line(place.environment) for place in self._places()})

    def _places(self) -> list[Surroundings]:
        return [place for run in self.runs.values() for place in run.surroundings]

    def conditions(self) -> list[Condition]:
        """Those that there are attention runs for, by label noise."""
        found = {
            Condition(run.epoch_loss, run.label_noise)
            for run in self.runs
            if run.arm == "attention" and run.epoch_loss is not None
        }
        order = get_args(EpochLoss)
        return sorted(found, key=lambda condition: (condition.label_noise, order.index(condition.epoch_loss)))

    def label_noises(self) -> list[int]:
        """The levels of label noise."""
        return sorted({run.label_noise for run in self.runs})

    def seeds(self, arms: Sequence[Arm], condition: Condition) -> list[int]:
        """The seeds for which there are finished runs of all these arms."""
        of_arms = [{run.seed for run in self.runs if run == _name(arm, condition, run.seed)} for arm in arms]
        return sorted(set.intersection(*of_arms))

    def epochs_of(self, arm: Arm, condition: Condition, seed: int) -> list[Epoch]:
        """The epochs of one run."""
        return self.epochs[_name(arm, condition, seed)]

    def run_of(self, arm: Arm, condition: Condition, seed: int) -> Run:
        """One run."""
        return self.runs[_name(arm, condition, seed)]

    def measure(self, arm: Arm, condition: Condition, measure: Measure) -> Sample:
        """A number from each run of an arm."""
        return sample([measure(self.epochs_of(arm, condition, seed)) for seed in self.seeds([arm], condition)])

    def differences(self, condition: Condition, other: Arm, measure: Measure) -> Sample:
        """Attention's number less that of another arm, paired by seed."""
        seeds = self.seeds(["attention", other], condition)
        return sample(
            [
                measure(self.epochs_of("attention", condition, seed)) - measure(self.epochs_of(other, condition, seed))
                for seed in seeds
            ]
        )

    def is_timed(self, arms: Sequence[Arm], condition: Condition) -> bool:
        """Whether seconds may be compared: no run of these arms shared its device, and all had the same."""
        names = [_name(arm, condition, seed) for arm in arms for seed in self.seeds(arms, condition)]
        is_shared = any(epoch.shared_device for name in names for epoch in self.epochs[name])
        places = {
            (place.device, one_line({**place.environment, "date": ""}))
            for name in names
            for place in self.runs[name].surroundings
        }
        return not is_shared and len(places) == 1


def read_experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Read folders of records; those of the same configuration are put together.

    Raises:
        RecordsError: If a folder cannot be read, or if two folders have the same run.
    """
    found: dict[str, Experiment] = {}
    names: dict[str, str] = {}
    for folder in folders:
        records = read_records(folder)
        finished = {name: run for name, run in records.runs.items() if run.is_finished}
        new = Experiment(
            records.configuration,
            finished,
            {name: records.epochs[name] for name in finished},
            len(records.runs) - len(finished),
        )
        digest = records.configuration.digest()
        if digest in found:
            new = _join(found[digest], new, folder)
        found[digest] = new
        names.setdefault(digest, folder.resolve().name)
    shown = [_with_visible_names(experiment) for experiment in found.values()]
    told = tell_apart([experiment.configuration for experiment in shown], [*map(visible, names.values())])
    named = [experiment._replace(apart=apart) for experiment, apart in zip(shown, told, strict=True)]
    experiments = sorted(named, key=lambda experiment: experiment.name)
    for experiment in experiments:
        if not experiment.runs:
            raise RecordsError(
                f"no run of {experiment.name} is finished; give its benchmarks.cifar command again first"
            )
    return experiments


def accuracy(at: At) -> Measure:
    """Test accuracy, in per cent, at the best epoch or at the last."""
    return lambda epochs: 100 * (epochs[-1].accuracy if at == "last" else max(epoch.accuracy for epoch in epochs))


def macro_f1(at: At) -> Measure:
    """Macro-F1, in per cent, at the epoch where it is best, as in the paper's Table 1, or at the last."""
    return lambda epochs: 100 * (epochs[-1].macro_f1 if at == "last" else max(epoch.macro_f1 for epoch in epochs))


def test_loss(at: At) -> Measure:
    """Test loss at the epoch where it is least, as in Table 1, or at the last; NaN where it is not finite."""

    def measure(epochs: Sequence[Epoch]) -> float:
        losses = [float("nan") if epoch.test_loss is None else epoch.test_loss for epoch in epochs]
        return losses[-1] if at == "last" else float(np.nanmin(losses)) if not np.isnan(losses).all() else float("nan")

    return measure


def overhead_percent(epochs: Sequence[Epoch]) -> float:
    """Repeats in per cent of base batches, over all epochs."""
    return 100 * sum(epoch.repeats for epoch in epochs) / sum(epoch.batches for epoch in epochs)


def wrong_predictions(run: Run, at: At) -> NDArray[np.int64]:
    """Images that were wrongly predicted to be of each class (paper, Table 2); (classes,)."""
    matrix = confusion(run, at)
    return np.asarray(matrix.sum(axis=0) - matrix.diagonal())


def confusion(run: Run, at: At) -> NDArray[np.int64]:
    """Test images by true class (row) and predicted class (column)."""
    return np.asarray(run.best.confusion if at == "best" else run.last.confusion)


def variance(counts: Sequence[int] | NDArray[np.int64]) -> float:
    """The population variance, which is what the paper's Table 2 gives."""
    return float(np.var(counts))


def _name(arm: Arm, condition: Condition, seed: int) -> RunName:
    return RunName(arm, None if arm == "baseline" else condition.epoch_loss, condition.label_noise, seed)


def _with_visible_names(experiment: Experiment) -> Experiment:
    """The experiment as it can be shown: its names go to a terminal, into figures, and into names of files."""
    fields = _visible(experiment.configuration.model_dump())
    return experiment._replace(configuration=Configuration.model_validate(fields))


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible(each) for each in value]
    if isinstance(value, dict):
        return {_visible(name): _visible(each) for name, each in value.items()}
    return value


def _join(one: Experiment, other: Experiment, folder: Path) -> Experiment:
    if twice := sorted(map(str, set(one.runs) & set(other.runs))):
        raise RecordsError(f"{folder} has {', '.join(twice[:3])}, and so has another folder; give each run once")
    return Experiment(
        one.configuration, one.runs | other.runs, one.epochs | other.epochs, one.unfinished + other.unfinished
    )
