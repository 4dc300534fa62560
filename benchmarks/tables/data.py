"""What the tables of tables.jinja are made from, where reading a study's records is not enough."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.reading import Records, read_configuration, read_lines
from benchmarks.report.cifar import findings
from benchmarks.report.results import Cifar, read_folders, tabulate
from benchmarks.schema import Configuration, Epoch, OfVisits

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"
_COLORS = ("#1b5e9b", "#d95f02", "#555555")


def find_newest(name: str) -> Path:
    """The newest ``benchmarks/records/<date>-<name>/``."""
    return sorted(RECORDS.glob(f"????-??-??-{name}"))[-1]


def read_newest(name: str) -> list[dict[str, Any]]:
    """Its JSON lines."""
    paths = sorted(find_newest(name).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def cifar() -> Cifar:
    """All that is recorded of CIFAR."""
    folders = [path.parent for path in sorted(RECORDS.glob("*/configuration.json"))]
    return tabulate(read_folders([each for each in folders if isinstance(read_configuration(each), Configuration)]))


@cache
def cifar_found() -> dict[str, Any]:
    """What these records say of the paper's claims."""
    return findings(cifar())


@cache
def selection(name: str) -> list[Records]:
    """The newest records of "selection" or "selection-kinds"."""
    return read_folders([find_newest(name)])


def frame(name: str) -> pd.DataFrame:
    """A row a line of the newest records of a study."""
    return pd.DataFrame(read_newest(name))


def cifar_epochs() -> Iterator[tuple[str, str, int, list[Epoch]]]:
    """By experiment and arm, how many runs, and their epochs but for those that are another arm's."""
    for name, runs in cifar().runs.groupby("experiment", observed=True):
        of_baselines = set[tuple[str, float]]()
        for arm, of_arm in runs.groupby("arm", observed=True):
            epochs = [epoch for of_run in of_arm["epochs"] for epoch in of_run]
            # The first epochs of ``longer`` are the baseline's, to the second, unless they had to be made again.
            own = [epoch for epoch in epochs if (epoch.finished_at, epoch.seconds) not in of_baselines]
            if arm == "baseline":
                of_baselines = {(epoch.finished_at, epoch.seconds) for epoch in epochs}
            yield str(name), str(arm), len(of_arm), own


def again() -> Iterator[tuple[list[dict[str, Any]], list[str], list[float]]]:
    """The lines of each run whose first epochs were made again, what differs, and loss and accuracy at most by."""
    for _, group in itertools.groupby(read_newest("made-again"), lambda line: (line["records"], line["run"])):
        lines = [*group]
        changes = [line["differs"] for line in lines]
        by = [
            max(abs(new - old) for change in changes for old, new in [change.get(name, (0, 0))])
            for name in ("train_loss", "accuracy")
        ]
        yield lines, [*dict.fromkeys(name.replace("_", " ") for change in changes for name in change)], by


def short_last_batch() -> Iterator[tuple[Configuration, float, float]]:
    """How often an epoch's last batch, where it is smaller, was repeated, and how often others were, in per cent."""
    for path in sorted(RECORDS.glob("*/visits.jsonl")):
        configuration = cast("Configuration", read_configuration(path.parent))
        # Nothing is repeated in the first epoch, which has no threshold.
        epochs = [epoch for run in read_lines(path, OfVisits) for epoch in run.visits[1:]]
        others = [visits > 1 for epoch in epochs for visits in epoch[:-1]]
        if configuration.data.train_images % configuration.batch_size and any(others):
            yield (
                configuration,
                100 * sum(epoch[-1] > 1 for epoch in epochs) / len(epochs),
                100 * float(np.mean(others)),
            )


def quickstart() -> pd.DataFrame:
    """A row a run, by arm and seed: per cent at the last epoch, updates, and per cent more updates than baseline."""
    runs = pd.DataFrame(
        {name: line[name] for name in ("arm", "seed")}
        | {name: 100 * line[name][-1] for name in ("accuracy", "macro_f1")}
        | {"updates": sum(line["updates"]), "epochs": len(line["accuracy"]), "machine": one_line(line["environment"])}
        for line in read_newest("quickstart")
    )
    baseline = runs[runs["arm"] == "baseline"].set_index("seed")["updates"]
    runs["overhead"] = 100 * (runs["updates"].to_numpy() / baseline[runs["seed"]].to_numpy() - 1)
    runs["arm"] = pd.Categorical(runs["arm"], ["baseline", "attention", "random"])
    return runs.sort_values(["arm", "seed"])


def visits_to_fit() -> Iterator[tuple[float, float, np.ndarray]]:
    """By learning rate and label noise, how many visits batches took with no limit that matters, in order."""
    for (rate, noise), runs in frame("visits-to-fit").groupby(["learning_rate", "noise_share"], sort=False):
        counts = sum(map(Counter, runs["batches_by_visits"]), Counter[str]())
        yield rate, noise, np.array(sorted(map(int, counts.elements())))


@cache
def suspects(*, has_folds: bool = True) -> pd.DataFrame:
    """A row a run, with or without cross-validation; columns ``found.RANKING.FIELD`` and ``cost.WAY.FIELD``."""
    lines = [line for line in read_newest("suspects") if ("folds" in line["cost"]) is has_folds]
    environments = [line.pop("environment") for line in lines]
    return pd.json_normalize(lines).assign(environment=environments)


def draw_sample_size() -> Figure:
    """How the cost of attention to samples grows with the data."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    times, sizes = figure.subplots(1, 2)
    records = frame("sample-size")
    records["options"] = records["options"].map(options_in_words)
    for color, (options, runs) in zip(_COLORS, records.groupby("options", sort=False), strict=False):
        for axes, field, style, label in (
            (times, "first_ms", "o-", f"{options}: first batch of a pass"),
            (times, "later_ms", "s--", f"{options}: later batches"),
            (sizes, "memory_bytes", "o-", "memory"),
            (sizes, "state_bytes", "s--", "saved state"),
        ):
            axes.plot(runs["samples"], runs[field].map(np.median), style, color=color, ms=4, label=label)
    times.set(xscale="log", yscale="log", xlabel="samples", ylabel="ms (median)")
    sizes.set(xscale="log", ylim=(0, 12), xlabel="samples", ylabel="bytes a sample")
    times.legend(fontsize=6)
    sizes.legend(*(part[:2] for part in sizes.get_legend_handles_labels()), fontsize=6)
    return figure


def options_in_words(options: dict[str, Any]) -> str:
    """Options as they are given."""
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "the defaults"
