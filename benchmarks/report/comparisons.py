"""What two runs with the same seed are compared by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from benchmarks.report.results import Condition, Experiment, accuracy
from benchmarks.report.statistics import accuracy_error
from benchmarks.schema import Arm, Epoch

# Another arm's epochs, and those of attention with the same seed.
Pair = tuple[list[Epoch], list[Epoch]]

# The baseline has nearly converged from the first epoch on that reaches this share of its best accuracy.
NEARLY_CONVERGED = 0.95
_LOSSES_COMPARED = 50


def overhead_before_convergence(baseline: Sequence[Epoch], attention: Sequence[Epoch]) -> float:
    """Attention's repeats, in per cent of batches, in the epochs before the baseline has nearly converged.

    Without the first epoch, in which nothing can repeat; NaN where no epoch is left.
    """
    converged = NEARLY_CONVERGED * max(epoch.accuracy for epoch in baseline)
    first = next(index for index, epoch in enumerate(baseline) if epoch.accuracy >= converged)
    before = attention[1:first]
    if not before:
        return math.nan
    return 100 * sum(epoch.repeats for epoch in before) / sum(epoch.batches for epoch in before)


def accuracy_at_same_loss(baseline: Sequence[Epoch], attention: Sequence[Epoch]) -> float:
    """Attention's accuracy less the baseline's, in points, over the training losses that both arms went through.

    Accuracy is interpolated between epochs, sorted by loss; NaN where the arms have no loss in common.
    """
    curves = []
    for epochs in (baseline, attention):
        points = sorted((epoch.train_loss, epoch.accuracy) for epoch in epochs if epoch.train_loss is not None)
        curves.append(np.array(points).T.reshape(2, -1))
    if any(curve.shape[1] == 0 for curve in curves):
        return math.nan
    low, high = max(curve[0].min() for curve in curves), min(curve[0].max() for curve in curves)
    if low > high:
        return math.nan
    losses = np.linspace(low, high, _LOSSES_COMPARED)
    ours, theirs = (np.interp(losses, *curve) for curve in reversed(curves))
    return float(100 * np.mean(ours - theirs))


def accuracy_at_same_cost(baseline: Sequence[Epoch], attention: Sequence[Epoch], *, in_seconds: bool) -> float:
    """Attention's accuracy less the baseline's, in points, when the baseline's time is over.

    That is the paper's comparison of a curve that is shifted by the overhead: attention's last epoch that ends within
    the time of all of the baseline's.

    Args:
        baseline: Its epochs.
        attention: The epochs of the run that is paired with it.
        in_seconds: Whether time is seconds of training; otherwise it is updates.
    """
    budget = cumulative_costs(baseline, in_seconds=in_seconds)[-1]
    costs = cumulative_costs(attention, in_seconds=in_seconds)
    in_time = [epoch for epoch, cost in zip(attention, costs, strict=True) if cost <= budget]
    return math.nan if not in_time else 100 * (in_time[-1].accuracy - baseline[-1].accuracy)


def cumulative_costs(epochs: Sequence[Epoch], *, in_seconds: bool) -> list[float]:
    """Seconds of training, or updates, up to each epoch's end."""
    return list(itertools.accumulate(epoch.seconds if in_seconds else epoch.updates for epoch in epochs))


def seconds_overhead(baseline: Sequence[Epoch], attention: Sequence[Epoch]) -> float:
    """Attention's training time over the baseline's, in per cent more."""
    return 100 * (sum(epoch.seconds for epoch in attention) / sum(epoch.seconds for epoch in baseline) - 1)


def pairs(experiment: Experiment, condition: Condition, other: Arm) -> list[Pair]:
    """The epochs of another arm and of attention, for every seed that there are both of."""
    return [
        (experiment.epochs_of(other, condition, seed), experiment.epochs_of("attention", condition, seed))
        for seed in experiment.seeds([other, "attention"], condition)
    ]


def sampling_error(experiment: Experiment, compared: Sequence[Pair]) -> float:
    """What the test set leaves open of a difference in accuracy at the last epoch, in points; mean over the pairs."""
    images = experiment.configuration.data.test_images
    errors = [accuracy_error([accuracy("last")(epochs) for epochs in pair], images) for pair in compared]
    return sum(errors) / len(errors)
