"""Paired differences as a forest plot: what attention gained over each other arm, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from benchmarks.report.comparisons import pairs, sampling_error
from benchmarks.report.results import Experiment, accuracy
from benchmarks.report.statistics import LEAST_RUNS, Sample
from benchmarks.report.style import COLORS, literal
from benchmarks.schema import Arm

OTHERS: Final[tuple[Arm, ...]] = ("baseline", "random", "longer")


def draw(experiments: Sequence[Experiment]) -> Figure | None:
    """Accuracy at the last epoch, a row a comparison; None where nothing is compared."""
    rows: list[tuple[str, Arm, Sample, float]] = []
    for experiment in experiments:
        for condition in experiment.conditions():
            noise = f", {condition.label_noise} of 32 labels redrawn" if condition.label_noise else ""
            name = literal(f"{experiment.name}, {condition.epoch_loss}{noise}")
            for other in OTHERS:
                compared = pairs(experiment, condition, other)
                if compared:
                    differences = experiment.differences(condition, other, accuracy("last"))
                    rows.append((name, other, differences, sampling_error(experiment, compared)))
    if not rows:
        return None
    names = list(dict.fromkeys(name for name, *_ in rows))
    figure = Figure(figsize=(8, 1.2 + 0.26 * len(rows) + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    place, labels = 0.0, []
    for name in names:
        place += 1.2
        labels.append((place, name))
        for _, other, differences, error in (row for row in rows if row[0] == name):
            place += 1
            # An interval of fewer would be wider than the picture.
            low, high = differences.interval if differences.n >= LEAST_RUNS else (differences.mean, differences.mean)
            axes.barh(place, 2 * error, left=differences.mean - error, height=0.7, color="#DDDDDD", zorder=1)
            axes.plot([low, high], [place, place], color=COLORS[other], linewidth=2, zorder=2)
            axes.plot(differences.mean, place, "o", color=COLORS[other], zorder=3)
            labels.append((place, f"less {other}, n = {differences.n}"))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks([at for at, _ in labels], [text for _, text in labels], fontsize=8)
    for tick, (_, text) in zip(axes.get_yticklabels(), labels, strict=True):
        if text in names:
            tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place + 1, 0)
    axes.set_xlabel("points of test accuracy at the last epoch: attention less the other arm", fontsize=9)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    return figure
