"""The paper's figures 4 to 8, and two more, drawn from the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.report.claims import clean_condition
from benchmarks.report.comparisons import cumulative_costs
from benchmarks.report.document import Picture
from benchmarks.report.results import Condition, Experiment
from benchmarks.report.style import COLORS, LINES, READING_COLORS, READING_LINES, literal
from benchmarks.schema import ARMS, Arm, Epoch

# The kind of figure that is folded away: bars hide bars.
BARS = "wrong-predictions"
# More bars than this hide each other.
_MOST_CLASSES_3D = 20


def draw_all(experiments: Sequence[Experiment], folder: Path, epoch_loss: str = "first") -> dict[str, list[Picture]]:
    """Draw every figure that there are records for, as PNG; by the name of the experiment."""
    pictures: dict[str, list[Picture]] = {}
    slugs: list[str] = []
    for experiment in experiments:
        condition = clean_condition(experiment, epoch_loss)
        if not experiment.conditions():
            continue
        if condition not in experiment.conditions():
            condition = experiment.conditions()[0]
        slugs.append(experiment.slug)
        again = f"-{slugs.count(experiment.slug)}" if slugs.count(experiment.slug) > 1 else ""
        for kind, (title, draw) in _DRAWINGS.items():
            figure = draw(experiment, condition)
            if figure is not None:
                picture = Picture(f"{experiment.slug}{again}-{kind}.png", f"{title}, {experiment.name}")
                figure.savefig(folder / picture.file, dpi=110)
                pictures.setdefault(experiment.name, []).append(picture)
    return pictures


def _arms(experiment: Experiment, condition: Condition) -> list[Arm]:
    return [arm for arm in ARMS if experiment.seeds([arm], condition)]


def _runs(experiment: Experiment, arm: Arm, condition: Condition) -> list[list[Epoch]]:
    return [experiment.epochs_of(arm, condition, seed) for seed in experiment.seeds([arm], condition)]


def _plot(axes: Axes, runs: list[list[Epoch]], value: Callable[[Epoch], float], arm: Arm, label: str) -> None:
    """The mean over runs by epoch, and a band from the least to the greatest; to where the shortest run ends."""
    shortest = min(map(len, runs))
    values = np.array([[value(epoch) for epoch in run[:shortest]] for run in runs])
    epochs = np.array([epoch.epoch for epoch in runs[0][:shortest]])
    _plot_band(axes, epochs, values, COLORS[arm], LINES[arm], label)


def _plot_band(
    axes: Axes, epochs: NDArray[np.int64], values: NDArray[np.float64], color: str, line: str, label: str
) -> None:
    """A mean over runs, and a band from the least to the greatest, whose edges show where bands lie on one another."""
    low, high = values.min(axis=0), values.max(axis=0)
    axes.plot(epochs, values.mean(axis=0), line, color=color, label=label)
    axes.fill_between(epochs, low, high, color=color, alpha=0.12, linewidth=0)
    for edge in (low, high):
        axes.plot(epochs, edge, line, color=color, linewidth=0.6, alpha=0.7)


def _plot_accuracy(axes: Axes, experiment: Experiment, condition: Condition) -> None:
    """Test accuracy by epoch, of every arm."""
    for arm in _arms(experiment, condition):
        runs = _runs(experiment, arm, condition)
        if arm == "longer":  # its first epochs are the baseline's
            runs = [run[experiment.configuration.epochs - 1 :] for run in runs]
        _plot(axes, runs, lambda epoch: 100 * epoch.accuracy, arm, f"{arm}, n = {len(runs)}")
    axes.set(xlabel="epoch", ylabel="test accuracy, %", title=_title(experiment, condition))
    axes.legend()


def _accuracy(experiment: Experiment, condition: Condition) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    _plot_accuracy(figure.subplots(), experiment, condition)
    return figure


def _accuracy_by_time(experiment: Experiment, condition: Condition) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    is_timed = experiment.is_timed(_arms(experiment, condition), condition)
    for arm in _arms(experiment, condition):
        for number, run in enumerate(_runs(experiment, arm, condition)):
            times = cumulative_costs(run, in_seconds=is_timed)
            accuracies = [100 * epoch.accuracy for epoch in run]
            axes.plot(times, accuracies, LINES[arm], color=COLORS[arm], alpha=0.6, label=None if number else arm)
    label = "seconds of training" if is_timed else "updates (seconds cannot be compared)"
    axes.set(xlabel=label, ylabel="test accuracy, %", title=_title(experiment, condition))
    axes.legend()
    return figure


def _accuracy_by_loss(experiment: Experiment, condition: Condition) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for arm in _arms(experiment, condition):
        for number, run in enumerate(_runs(experiment, arm, condition)):
            points = [(epoch.train_loss, 100 * epoch.accuracy) for epoch in run if epoch.train_loss is not None]
            axes.plot(
                *np.array(points).T.reshape(2, -1),
                LINES[arm],
                color=COLORS[arm],
                marker=".",
                alpha=0.6,
                label=None if number else arm,
            )
    axes.invert_xaxis()
    axes.set(
        xlabel="training loss (falls to the right)", ylabel="test accuracy, %", title=_title(experiment, condition)
    )
    axes.legend()
    return figure


def _mean_wrong(experiment: Experiment, arm: Arm, condition: Condition) -> NDArray[np.float64] | None:
    """Wrong predictions by true and predicted class at the best epochs, mean over seeds."""
    seeds = experiment.seeds([arm], condition)
    if not seeds:
        return None
    runs = [experiment.run_of(arm, condition, seed) for seed in seeds]
    wrong: NDArray[np.float64] = np.mean([np.asarray(run.best.confusion) for run in runs], axis=0)
    np.fill_diagonal(wrong, 0)
    return wrong


def _compared(experiment: Experiment, condition: Condition) -> dict[Arm, NDArray[np.float64]]:
    arms: tuple[Arm, Arm] = ("baseline", "attention")
    wrong = {arm: _mean_wrong(experiment, arm, condition) for arm in arms}
    return {arm: matrix for arm, matrix in wrong.items() if matrix is not None}


def _bars(experiment: Experiment, condition: Condition) -> Figure | None:
    classes = [literal(name) for name in experiment.configuration.data.classes]
    if len(classes) > _MOST_CLASSES_3D:
        return None
    wrong = _compared(experiment, condition)
    figure = Figure(figsize=(5.5 * len(wrong), 5), layout="constrained")
    true, predicted = (each.ravel() for each in np.indices((len(classes), len(classes))))
    top = max(matrix.max() for matrix in wrong.values())
    for place, (arm, matrix) in enumerate(wrong.items(), start=1):
        axes = figure.add_subplot(1, len(wrong), place, projection="3d")
        heights = matrix[true, predicted]
        axes.bar3d(predicted, true, 0, 0.7, 0.7, heights, color=COLORS[arm], shade=True)
        axes.set_zlim(0, top)
        axes.set_xticks(range(len(classes)), classes, rotation=60, fontsize=6)
        axes.set_yticks(range(len(classes)), classes, fontsize=6)
        axes.set(xlabel="predicted", ylabel="true", title=arm)
    return figure


def _heat_maps(experiment: Experiment, condition: Condition) -> Figure:
    classes = [literal(name) for name in experiment.configuration.data.classes]
    wrong = _compared(experiment, condition)
    figure = Figure(figsize=(5.5 * len(wrong), 4.8), layout="constrained")
    top = max(matrix.max() for matrix in wrong.values())
    is_small = len(classes) <= _MOST_CLASSES_3D
    for axes, (arm, matrix) in zip(figure.subplots(1, len(wrong), squeeze=False)[0], wrong.items(), strict=True):
        image = axes.imshow(matrix, cmap="magma_r", vmin=0, vmax=top)
        if is_small:
            axes.set_xticks(range(len(classes)), classes, rotation=60, fontsize=7)
            axes.set_yticks(range(len(classes)), classes, fontsize=7)
            for (row, column), count in np.ndenumerate(matrix):
                if row != column:
                    color = "white" if count > 0.6 * top else "black"
                    axes.text(column, row, f"{count:.0f}", ha="center", va="center", fontsize=6, color=color)
        axes.set(xlabel="predicted", ylabel="true", title=f"{arm}: {matrix.sum():.0f} wrong")
    figure.colorbar(image, ax=figure.axes, shrink=0.7)
    return figure


def _label_noise(experiment: Experiment, condition: Condition) -> Figure | None:
    noises = [noise for noise in experiment.label_noises() if noise]
    if not noises:
        return None
    figure = Figure(figsize=(4.5 * len(noises), 4), layout="constrained")
    for axes, noise in zip(figure.subplots(1, len(noises), squeeze=False, sharey=True)[0], noises, strict=True):
        _plot_accuracy(axes, experiment, condition._replace(label_noise=noise))
        axes.set_title(f"{noise} of 32 labels redrawn", fontsize=10)
    figure.suptitle(_title(experiment, condition), fontsize=10)
    return figure


def _overhead(experiment: Experiment, condition: Condition) -> Figure:
    del condition  # every one of them is shown
    noises = sorted({condition.label_noise for condition in experiment.conditions()})
    figure = Figure(figsize=(5.5 * len(noises), 4), layout="constrained")
    for axes, noise in zip(figure.subplots(1, len(noises), squeeze=False)[0], noises, strict=True):
        for each in experiment.conditions():
            if each.label_noise != noise:
                continue
            runs = _runs(experiment, "attention", each)
            shares = np.array([[100 * epoch.repeats / epoch.batches for epoch in run] for run in runs])
            epochs = np.arange(1, shares.shape[1] + 1)
            color, line = READING_COLORS[each.epoch_loss], READING_LINES[each.epoch_loss]
            _plot_band(axes, epochs, shares, color, line, f"{each.epoch_loss}, n = {len(runs)}")
        axes.set(xlabel="epoch", ylabel="repeats, % of batches", title=f"{noise} of 32 labels redrawn")
        axes.legend()
    return figure


def _title(experiment: Experiment, condition: Condition) -> str:
    noise = f", {condition.label_noise} of 32 labels redrawn" if condition.label_noise else ""
    return literal(f"{experiment.name}, epoch_loss={condition.epoch_loss}{noise}")


_DRAWINGS: dict[str, tuple[str, Callable[[Experiment, Condition], Figure | None]]] = {
    "accuracy": ("Test accuracy by epoch (the paper's figures 4 and 6)", _accuracy),
    "accuracy-by-time": ("Test accuracy after the same training time, run by run", _accuracy_by_time),
    "accuracy-by-loss": ("Test accuracy against training loss (the paper's figure 5)", _accuracy_by_loss),
    "wrong-predictions-map": ("Wrong predictions at the best epoch (the paper's figure 7)", _heat_maps),
    BARS: ("Wrong predictions at the best epoch, as the paper draws them", _bars),
    "label-noise": ("Test accuracy by epoch with label noise (the paper's figure 8)", _label_noise),
    "overhead": ("Repeats by epoch, for each reading of epoch_loss", _overhead),
}
