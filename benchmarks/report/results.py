"""The finished runs of folders of records, as tables: runs with the same data and seed are compared."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.errors import RecordsError
from benchmarks.reading import Records, read_records
from benchmarks.report import paper
from benchmarks.report.statistics import Sample, sample
from benchmarks.schema import ARMS, Configuration, Epoch, EpochLoss, Run, Surroundings

OTHERS = ("baseline", "random", "longer")
# Where configurations differ in one of these, they differ in others too, or a reader would not see by what.
_UNSAID = {"schema_version", "parameters", "classes", "sha256", "channels_last"}
# A row of a table of runs: its columns are attributes.
Row = Any


class Runs:
    """Runs that are compared, by arm and seed.

    Args:
        frame: A row a run, with its arm and seed, and a column a measure.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.arms: list[str] = list(dict.fromkeys(frame["arm"]))
        self._rows = {arm: {row.seed: row for row in each.itertuples()} for arm, each in frame.groupby("arm")}

    def pairs(self, arm: str, other: str) -> list[tuple[Row, Row]]:
        """The runs of two arms, for every seed that both have."""
        ours, theirs = self._rows.get(arm, {}), self._rows.get(other, {})
        return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]

    def values(self, arm: str, measure: str) -> Sample:
        """A measure of an arm's runs."""
        return sample([getattr(ours, measure) for ours, _ in self.pairs(arm, arm)])

    def gain(self, arm: str, other: str, measure: str = "accuracy") -> Sample:
        """An arm's measure minus another's, paired by seed."""
        return sample([getattr(ours, measure) - getattr(theirs, measure) for ours, theirs in self.pairs(arm, other)])


class Condition(NamedTuple):
    """What the arms that are compared have in common.

    Attributes:
        epoch_loss: The attention run's reading.
        label_noise: How many labels of every 32 were redrawn.
    """

    epoch_loss: EpochLoss
    label_noise: int

    @property
    def noise(self) -> str:
        """The label noise in words."""
        return f"{self.label_noise} of 32" if self.label_noise else "none"

    def __str__(self) -> str:
        return f"{self.epoch_loss}, label noise {self.noise}" if self.label_noise else self.epoch_loss


class Experiment:
    """All finished runs of one configuration.

    Args:
        records: Of the folders of this configuration.
        suffix: What distinguishes it from other configurations of the same model and data; may be empty.
    """

    def __init__(self, records: Sequence[Records], suffix: str = "") -> None:
        configuration = records[0].configuration
        assert isinstance(configuration, Configuration)
        self.configuration = configuration
        self.name = _base_name(configuration) + (f" ({suffix})" if suffix else "")
        self.epochs = {
            name: epochs for each in records for name, epochs in each.epochs.items() if each.runs[name].is_finished
        }
        self.unfinished = sum(len(each.runs) for each in records) - len(self.epochs)
        runs = [run for each in records for name, run in each.runs.items() if run.is_finished]
        self._frame = pd.DataFrame([_measure(run, self.epochs[run.run]) for run in runs])
        self.places: list[Surroundings] = [place for run in runs for place in run.surroundings]

    @cached_property
    def arms(self) -> list[tuple[Condition, str]]:
        """Every arm that there are runs of, with its condition; a baseline once for each label noise."""
        names = {(Condition(name.epoch_loss or "first", name.label_noise), name.arm) for name in self.epochs}
        readings = get_args(EpochLoss)

        def key(name: tuple[Condition, str]) -> tuple[int, bool, int, int]:
            condition, arm = name
            return condition.label_noise, arm != "baseline", readings.index(condition.epoch_loss), ARMS.index(arm)

        return sorted(names, key=key)

    @property
    def conditions(self) -> list[Condition]:
        """Those that there are attention runs of."""
        return [condition for condition, arm in self.arms if arm == "attention"]

    def of(self, condition: Condition) -> Runs:
        """The runs of a condition; baselines belong to every reading."""
        is_noise = self._frame["label_noise"] == condition.label_noise
        return Runs(self._frame[is_noise & self._frame["epoch_loss"].isin([condition.epoch_loss, "-"])])

    def judged_condition(self, epoch_loss: str) -> Condition:
        """The condition that claims are of: no label noise, and the reading asked for, or else the first there is."""
        readings = [condition.epoch_loss for condition in self.conditions]
        return Condition(next((each for each in readings if each == epoch_loss), (readings or ["first"])[0]), 0)

    def is_timed(self, condition: Condition) -> bool:
        """Whether the seconds of attention and baseline may be compared: one machine, and nothing else on it."""
        rows = [row for pair in self.of(condition).pairs("attention", "baseline") for row in pair]
        places = {
            (place.device, one_line({**place.environment, "date": ""})) for row in rows for place in row.surroundings
        }
        return len(places) == 1 and not any(epoch.shared_device for row in rows for epoch in row.epochs)

    @property
    def machines(self) -> list[str]:
        """What the runs ran on, a line each."""
        return sorted({one_line(place.environment) for place in self.places})

    @property
    def reductions(self) -> list[str]:
        """In what this is less than, or other than, what the paper did; empty where it is the same."""
        own, data = self.configuration, self.configuration.data
        theirs = paper.EXPERIMENTS.get(own.model)
        options = {} if theirs is None else {name: own.model_options[name] for name in own.model_options}
        options.pop("img_size", None)
        capped = sum(epoch.capped_batches for epochs in self.epochs.values() for epoch in epochs)
        compared = [
            (theirs is None or theirs.data != data.name, f"{_base_name(own)}, which the paper has not"),
            *((theirs and theirs.options.get(name) != value, f"{name} {value}") for name, value in options.items()),
            (data.train_images != paper.TRAIN_IMAGES, f"{data.train_images:,} training images"),
            (data.test_images != paper.TEST_IMAGES, f"{data.test_images:,} test images"),
            (own.epochs != paper.EPOCHS, f"{own.epochs} epochs"),
            (own.batch_size != paper.BATCH_SIZE, f"batches of {own.batch_size}"),
            (own.learning_rate != paper.LEARNING_RATE, f"learning rate {own.learning_rate:g}"),
            (theirs and own.k != theirs.k, f"K {own.k:g}"),
            (theirs and own.pretrained != theirs.pretrained, f"with{'' if own.pretrained else 'out'} ImageNet weights"),
            (own.precision in ("bf16", "fp16"), own.precision),
            (any(place.device == "cpu" for place in self.places), "on a CPU"),
            (capped, f"{capped:,} batches left at max_visits, where the paper has no limit"),
        ]
        return [text for is_other, text in compared if is_other]


def read_folders(folders: Sequence[Path]) -> list[Records]:
    """Records, with those of the same configuration one after another.

    Raises:
        RecordsError: If a folder cannot be read, or two folders have the same run.
    """
    found: dict[str, list[Records]] = {}
    for folder in folders:
        records = read_records(folder)
        others = found.setdefault(records.configuration.digest(), [])
        if twice := sorted({str(name) for each in others for name in each.runs.keys() & records.runs.keys()}):
            raise RecordsError(f"{folder} has {', '.join(twice[:3])}, and so has another folder; give each run once")
        others.append(records)
    return [records for each in found.values() for records in each]


def make_experiments(read: Sequence[Records]) -> list[Experiment]:
    """Experiments by name; records of the same configuration are put together.

    Raises:
        RecordsError: If no run of a configuration is finished.
    """
    grouped = itertools.groupby(read, key=lambda records: records.configuration.digest())
    groups = [[*each] for _, each in grouped]
    suffixes = distinguish([each[0].configuration for each in groups])  # type: ignore[misc]
    experiments = [Experiment(records, suffix) for records, suffix in zip(groups, suffixes, strict=True)]
    for experiment in experiments:
        if not experiment.epochs:
            raise RecordsError(f"no run of {experiment.name} is finished; give its benchmarks.cifar command again")
    return sorted(experiments, key=lambda experiment: experiment.name)


def distinguish(configurations: Sequence[Configuration]) -> list[str]:
    """What distinguishes each configuration from others of the same model and data; empty where there is no other.

    That is what differs, and the digest where nothing that a reader understands does.
    """
    fields = [_flatten(each) for each in configurations]
    names = [_base_name(each) for each in configurations]
    suffixes = []
    for name, own in zip(names, fields, strict=True):
        others = [each for other, each in zip(names, fields, strict=True) if other == name]
        differing = [key for key in own if any(each.get(key) != own[key] for each in others)]
        suffixes.append(", ".join(_in_words(key, own[key]) for key in differing))
    taken = Counter(" ".join(f"{name} {suffix}".split()) for name, suffix in zip(names, suffixes, strict=True))
    return [
        ", ".join(filter(None, [suffix, each.digest()])) if taken[" ".join(f"{name} {suffix}".split())] > 1 else suffix
        for name, suffix, each in zip(names, suffixes, configurations, strict=True)
    ]


def _base_name(configuration: Configuration) -> str:
    return f"{configuration.model} on {configuration.data.name}"


def _flatten(configuration: Configuration) -> dict[str, Any]:
    fields = configuration.model_dump()
    fields |= fields.pop("data") | fields.pop("model_options")
    return {name: value for name, value in fields.items() if name not in _UNSAID and value is not None}


def _in_words(key: str, value: Any) -> str:
    if key.endswith("images"):
        return f"{value:,} {key.removeprefix('train_').replace('_', ' ')}"
    return f"{'K' if key == 'k' else key.replace('_', ' ')} {value}"


def _measure(run: Run, epochs: list[Epoch]) -> dict[str, Any]:
    """A run as a row: per cent at the last epoch, and where they are best."""
    losses = [np.nan if epoch.test_loss is None else epoch.test_loss for epoch in epochs]
    assert run.best is not None and run.last is not None  # as the records were checked for
    return {
        **{name: getattr(run, name) for name in ("arm", "seed", "label_noise", "surroundings", "best", "last")},
        "epoch_loss": run.epoch_loss or "-",
        "epochs": epochs,
        "accuracy": 100 * epochs[-1].accuracy,
        "best_accuracy": 100 * max(epoch.accuracy for epoch in epochs),
        "macro_f1": 100 * epochs[-1].macro_f1,
        "best_macro_f1": 100 * max(epoch.macro_f1 for epoch in epochs),
        "test_loss": losses[-1],
        "best_test_loss": min((loss for loss in losses if not np.isnan(loss)), default=np.nan),
        "repeats": repeats_percent(epochs),
        "wrong": wrong_predictions(run.last.confusion),
        "best_wrong": wrong_predictions(run.best.confusion),
    }


def repeats_percent(epochs: Sequence[Epoch]) -> float:
    """Repeats in per cent of base batches."""
    return 100 * sum(epoch.repeats for epoch in epochs) / sum(epoch.batches for epoch in epochs)


def wrong_predictions(confusion: Sequence[Sequence[int]]) -> list[int]:
    """Images that were wrongly predicted to be of each class (paper, Table 2); (classes,)."""
    matrix = np.asarray(confusion)
    return [*map(int, matrix.sum(axis=0) - matrix.diagonal())]
