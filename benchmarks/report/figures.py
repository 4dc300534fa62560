"""The paper's figures 4 to 8, repeats by epoch, and gains with their intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

from benchmarks.report.results import Cifar, is_timed
from benchmarks.report.statistics import LEAST_RUNS, Sample, noise_in_words
from benchmarks.schema import Epoch

# A reader who sees red and green alike can tell them apart (Okabe and Ito, 2008).
COLORS = {"baseline": "#555555", "attention": "#D55E00", "random": "#0072B2", "longer": "#009E73"}
COLORS |= {"first": "#D55E00", "last": "#7A3300", "all": "#F2A65A"}
_LINES = {"random": "--", "longer": ":", "last": "--", "all": ":"}
# A name with dollars is no formula.
_TEXT: dict[str, Any] = {"parse_math": False}
# With more classes, neither names nor numbers can be read.
_MOST_NAMED_CLASSES = 20


class Line(NamedTuple):
    """A line of a forest plot."""

    group: str  # what its gain is in
    label: str  # what it is the gain of
    gain: Sample  # of paired runs
    color: str
    error: float = 0.0  # the sampling error of the test set


def forest(lines: Sequence[Line], label: str) -> Figure:
    """Gains with their 95 % intervals, a line each, below the name of their group."""
    groups = [(name, [*each]) for name, each in itertools.groupby(lines, key=lambda line: line.group)]
    figure = Figure(figsize=(8, 1 + 0.2 * len(lines) + 0.32 * len(groups)), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for name, each in groups:
        place += 1.6
        axes.text(0.005, place - 0.1, name, transform=axes.get_yaxis_transform(), weight="bold", **_TEXT, fontsize=9)
        for line in each:
            place += 1
            # An interval of fewer runs would be wider than the picture.
            low, high = line.gain.interval if line.gain.n >= LEAST_RUNS else (line.gain.mean, line.gain.mean)
            axes.barh(place, 2 * line.error, left=line.gain.mean - line.error, height=0.7, color="#DDDDDD")
            axes.plot([low, high], [place, place], color=line.color, linewidth=2)
            axes.plot(line.gain.mean, place, "o", color=line.color, markersize=5)
            ticks.append((place, f"{line.label}, n = {line.gain.n}"))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=9, **_TEXT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place + 1, 0)
    axes.set_xlabel(label)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    return figure


def draw_experiment(cifar: Cifar, name: str, reading: str) -> dict[str, Figure]:
    """The figures of an experiment by kind; none without runs of attention."""
    runs = cifar.runs[cifar.runs["experiment"] == name]
    attention, runs = runs[runs["arm"] == "attention"], runs[runs["reading"].isin(["-", reading])]
    noises = sorted({*attention[attention["reading"] == reading]["noise"]})
    if not noises:
        return {}
    clean, own = runs[runs["noise"] == noises[0]], cifar.configurations[name]
    in_time = is_timed(cifar.pairs[(cifar.pairs["experiment"] == name) & (cifar.pairs["reading"] == reading)])
    cost = "seconds of training" if in_time else "updates (seconds cannot be compared)"

    def spent(epochs: Sequence[Epoch]) -> list[float]:
        return [*itertools.accumulate(epoch.seconds if in_time else epoch.updates for epoch in epochs)]

    def losses(epochs: Sequence[Epoch]) -> list[float]:
        return [math.nan if epoch.train_loss is None else epoch.train_loss for epoch in epochs]

    drawn = {
        "accuracy": _by_epoch(clean, "arm", _accuracy, "test accuracy, %", own.epochs),
        "by-time": _run_by_run(clean, spent, cost),
        "by-loss": _run_by_run(clean, losses, "training loss (falls to the right)"),
        "wrong": _maps(clean, own.data.classes),
        "overhead": _by_epoch(attention, "reading", _repeats, "repeats, % of batches"),
    }
    noisy = runs[runs["noise"].isin(noises) & (runs["noise"] > 0)]
    return drawn | ({"noise": _by_epoch(noisy, "arm", _accuracy, "test accuracy, %", own.epochs)} if len(noisy) else {})


def _accuracy(epoch: Epoch) -> float:
    return 100 * epoch.accuracy


def _repeats(epoch: Epoch) -> float:
    return 100 * epoch.repeats / epoch.batches


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7 if count == 1 else 4.5 * count, 4), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _by_epoch(
    runs: pd.DataFrame, column: str, measure: Callable[[Epoch], float], label: str, start_of_longer: int = 1
) -> Figure:
    """Means over runs, and bands from the least to the greatest, to where the shortest run ends: a panel a noise."""
    noises = sorted({*runs["noise"]})
    figure, panels = _panels(len(noises))
    for axes, noise in zip(panels, noises, strict=True):
        for name, group in runs[runs["noise"] == noise].groupby(column, observed=True):
            start = start_of_longer if name == "longer" else 1  # before, it is the baseline
            curves = [[measure(epoch) for epoch in epochs[start - 1 :]] for epochs in group["epochs"]]
            values = np.array([curve[: min(map(len, curves))] for curve in curves])
            epochs, color = np.arange(start, start + values.shape[1]), COLORS[name]
            line = _LINES.get(name, "-")
            axes.plot(epochs, values.mean(axis=0), line, color=color, label=f"{name}, n = {len(curves)}")
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="epoch", ylabel=label, title=f"label noise: {noise_in_words(noise)}")
        axes.legend()
    return figure


def _run_by_run(runs: pd.DataFrame, of_epochs: Callable[[Sequence[Epoch]], list[float]], label: str) -> Figure:
    figure, (axes,) = _panels(1)
    for arm, of_arm in runs.groupby("arm", observed=True):
        for number, epochs in enumerate(of_arm["epochs"]):
            style: dict[str, Any] = {"color": COLORS[arm], "marker": ".", "label": None if number else arm}
            axes.plot(of_epochs(epochs), [*map(_accuracy, epochs)], _LINES.get(arm, "-"), alpha=0.6, **style)
    if "loss" in label:
        axes.invert_xaxis()
    axes.set(xlabel=label, ylabel="test accuracy, %")
    axes.legend()
    return figure


def _maps(runs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Wrong predictions by true and predicted class, mean over seeds."""
    compared = runs[runs["arm"].isin(["baseline", "attention"])].groupby("arm", observed=True)["best_confusion"]
    wrong = {arm: np.mean([*of_arm], axis=0) * (1 - np.eye(len(names))) for arm, of_arm in compared}
    top = max(matrix.max() for matrix in wrong.values())
    figure, panels = _panels(len(wrong))
    is_named = len(names) <= _MOST_NAMED_CLASSES
    for axes, (arm, matrix) in zip(panels, wrong.items(), strict=True):
        shown = ConfusionMatrixDisplay(matrix, display_labels=names if is_named else None)
        style = {"cmap": "magma_r", "im_kw": {"vmin": 0, "vmax": top}, "text_kw": {"fontsize": 6}}
        shown.plot(ax=axes, include_values=is_named, values_format=".0f", xticks_rotation=60, colorbar=False, **style)
        axes.tick_params(labelsize=7)
        axes.set(xlabel="predicted", ylabel="true", title=f"{arm}: {matrix.sum():.0f} wrong")
    figure.colorbar(axes.images[0], ax=figure.axes, shrink=0.7)
    return figure
