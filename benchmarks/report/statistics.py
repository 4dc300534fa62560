"""Means, spreads and intervals of a few runs, and what they say about a claim."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95
# Fewer runs have an interval too, but it rests on one or two differences.
LEAST_RUNS = 3


class Verdict(enum.Enum):
    """What the runs say about a claim."""

    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    CANNOT_BE_TOLD = "cannot be told"
    HARDLY_ANY_REPEATS = "hardly any repeats"
    NOT_ENOUGH_RUNS = "not enough runs"

    @property
    def symbol(self) -> str:
        """For those who do not see colours."""
        return {"holds": "✓", "does not hold": "✗", "cannot be told": "?", "hardly any repeats": "∅"}.get(
            self.value, "…"
        )


class Sample(NamedTuple):
    """One number from each of a few runs, paired or not."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many runs."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean; NaN without runs."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation of a sample (n - 1); NaN with fewer than two runs, or where one is NaN."""
        if self.n < 2 or any(map(math.isnan, self.values)):
            return math.nan
        return statistics.stdev(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % t interval of the mean; infinite with fewer than two runs."""
        if self.n < 2:
            return -math.inf, math.inf
        if len(set(self.values)) == 1:
            return self.mean, self.mean
        low, high = stats.t.interval(CONFIDENCE, self.n - 1, self.mean, stats.sem(self.values))
        return float(low), float(high)

    def reach(self, sampling_error: float = 0.0) -> float:
        """How far a verdict's interval reaches to either side of the mean: at least as far as the sampling error."""
        return max(self.interval[1] - self.mean, sampling_error)


def sample(values: Sequence[float]) -> Sample:
    """A sample of these values."""
    return Sample(tuple(values))


def accuracy_error(accuracies: Sequence[float], images: int) -> float:
    """The standard error, in points, that a test set of so many images leaves on a difference of two accuracies.

    As if each were measured on images of its own: which images both get right is not recorded. Seeds do not lower it,
    since they share the test set.

    Args:
        accuracies: In per cent.
        images: In the test set.
    """
    return math.sqrt(sum(accuracy * (100 - accuracy) for accuracy in accuracies) / images)


def variance_error(counts: Sequence[int]) -> float:
    """The standard error of the population variance of counts, each of them a Poisson number (delta method)."""
    mean = statistics.fmean(counts)
    return math.sqrt(sum((2 * (count - mean) / len(counts)) ** 2 * count for count in counts))


def judge_above(differences: Sample, *, least_gain: float, sampling_error: float = 0.0) -> Verdict:
    """Is something gained? It holds if the interval is above 0, and does not if it is below ``least_gain``.

    Args:
        differences: Of paired runs.
        least_gain: What a gain would have to be to be worth having.
        sampling_error: Of the test set, in the same unit; the interval reaches at least as far.
    """
    return _judge(differences, sampling_error, fails_below=least_gain)


def judge_gain(differences: Sample, *, claimed: float, sampling_error: float = 0.0) -> Verdict:
    """Is so much gained? It holds if the interval is above 0 and reaches ``claimed``, and does not if it ends below."""
    return _judge(differences, sampling_error, fails_below=claimed, is_failure_first=True)


def judge_at_most(values: Sample, *, most: float) -> Verdict:
    """Is it at most so much? It holds if the interval ends there, and does not if it begins above."""
    low, high = values.interval
    if values.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if high <= most:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if low > most else Verdict.CANNOT_BE_TOLD


def judge_range(values: Sample, *, least: float, most: float, widest: float) -> Verdict:
    """Is it in a range? It does not hold if the interval misses it, and does if that is at most ``widest`` wide."""
    low, high = values.interval
    if values.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if high < least or low > most:
        return Verdict.DOES_NOT_HOLD
    return Verdict.HOLDS if high - low <= widest else Verdict.CANNOT_BE_TOLD


def _judge(
    differences: Sample, sampling_error: float, *, fails_below: float, is_failure_first: bool = False
) -> Verdict:
    if differences.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    reach = differences.reach(sampling_error)
    holds, fails = differences.mean - reach > 0, differences.mean + reach < fails_below
    if fails and (is_failure_first or not holds):
        return Verdict.DOES_NOT_HOLD
    return Verdict.HOLDS if holds else Verdict.CANNOT_BE_TOLD
