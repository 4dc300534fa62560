"""Figures of a run: its losses and repeats, and the samples whose labels may be wrong."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders.json_lines import read_visits
from batch_sampler_attn.recorders.memory import MemoryRecorder, VisitRecord

# Distinct for colour-blind readers, and in greyscale.
_LOSS, _THRESHOLD, _REPEATS = "#1b5e9b", "#555555", "#d95f02"


class _RunFigure(Figure):
    """A matplotlib figure that a notebook shows without ``%matplotlib inline``."""

    def _repr_png_(self) -> bytes:
        image = io.BytesIO()
        self.savefig(image, format="png")
        return image.getvalue()


def plot_run(run: MemoryRecorder | str | os.PathLike[str] | Iterable[VisitRecord]) -> Figure:
    """Draw the losses, thresholds and repeats of each epoch.

    Args:
        run: A ``MemoryRecorder``, the path of a ``JsonLinesRecorder``'s file, or visits. Without a ``MemoryRecorder``,
            the threshold is drawn halfway between the highest loss that advanced and the lowest that was repeated.
    """
    thresholds: dict[int, float | None] = {}
    if isinstance(run, MemoryRecorder):
        thresholds = {summary.epoch: summary.threshold for summary in run.summaries}
        run = run.visits
    epochs: dict[int, list[VisitRecord]] = {}
    visits = read_visits(run) if isinstance(run, (str, os.PathLike)) else list(run)
    for visit in sorted(visits, key=lambda visit: visit.epoch):
        epochs.setdefault(visit.epoch, []).append(visit)
    if not epochs:
        raise RecordError("there is no visit to draw; give the recorder to the schedule, and train an epoch")
    figure = _RunFigure(figsize=(7, 5), layout="constrained")
    losses, repeats = figure.subplots(2, 1, sharex=True)
    _draw_losses(losses, epochs, {**{epoch: _between(made) for epoch, made in epochs.items()}, **thresholds})
    _draw_repeats(repeats, epochs)
    return figure


def plot_suspects(
    images: Callable[[int], Any],
    suspects: Iterable[tuple[int, float, int]],
    labels: Callable[[int], object] | None = None,
) -> Figure:
    """Draw the samples whose labels may be wrong, each with its label, dataset index and mean loss.

    Args:
        images: A function from a dataset index to a PIL image, or to an array or tensor of shape (H, W), (H, W, 3) or
            (3, H, W): ``lambda index: dataset[index][0]``.
        suspects: The result of ``attention.suspects(n)``, drawn in this order.
        labels: A function from an index to the label: ``lambda index: names[dataset[index][1]]``; None for no labels.
    """
    suspects = [*suspects]
    if not suspects:
        raise RecordError("there is no suspect to draw; call attention.suspects(n) after an epoch")
    rows = -(-len(suspects) // 5)
    figure = _RunFigure(figsize=(7, 1.8 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, 5, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(suspects):
            sample, mean_loss, _ = suspects[number]
            axes.imshow(_displayable(images(sample)), cmap="gray")
            label = "" if labels is None else f"{labels(sample)}\n"
            axes.set_title(f"{label}{sample}: {mean_loss:.3g}", fontsize=8)
    return figure


def _between(visits: list[VisitRecord]) -> float | None:
    """The mean of the highest loss that advanced and the lowest that was repeated; None if they overlap."""
    advanced = max((visit.loss for visit in visits if visit.decision == "advance"), default=math.nan)
    repeated = min((visit.loss for visit in visits if visit.decision == "repeat"), default=math.nan)
    return (advanced + repeated) / 2 if advanced < repeated else None


def _draw_losses(axes: Axes, epochs: Mapping[int, list[VisitRecord]], thresholds: Mapping[int, float | None]) -> None:
    first = [
        [visit.loss for visit in made if visit.visit == 1 and math.isfinite(visit.loss)] for made in epochs.values()
    ]
    points = [(epoch, loss) for epoch, losses in zip(epochs, first, strict=True) for loss in losses]
    if points:
        axes.plot(*zip(*points, strict=True), ".", color=_LOSS, alpha=0.15, label="a batch, first visit")
    means = [sum(losses) / len(losses) if losses else math.nan for losses in first]
    axes.plot([*epochs], means, "o-", color=_LOSS, label="their mean")
    known = {epoch: threshold for epoch, threshold in thresholds.items() if threshold is not None and epoch in epochs}
    if known:
        axes.plot([*known], [*known.values()], "_", color=_THRESHOLD, ms=14, mew=2, label="threshold")
    axes.set_ylabel("loss")
    axes.legend(fontsize=8)


def _draw_repeats(axes: Axes, epochs: Mapping[int, list[VisitRecord]]) -> None:
    repeats = [sum(visit.visit > 1 for visit in made) for made in epochs.values()]
    batches = [sum(visit.visit == 1 for visit in made) for made in epochs.values()]
    overheads = [extra / max(1, base) for extra, base in zip(repeats, batches, strict=True)]
    bars = axes.bar([*epochs], overheads, color=_REPEATS)
    axes.bar_label(bars, [str(extra or "") for extra in repeats], fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("repeats,\nof base batches")
    axes.margins(y=0.15)


def _displayable(image: Any) -> Any:
    """The image as an array with channels last, or without channels if it has one."""
    for step in ("detach", "cpu", "numpy"):
        image = getattr(image, step, lambda image=image: image)()
    image = image if hasattr(image, "ndim") else numpy.asarray(image)  # from PIL
    if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
        image = image.transpose(1, 2, 0)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
