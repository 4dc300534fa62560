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
    NOT_ENOUGH_RUNS = "not enough runs"


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
        """The standard deviation of a sample (n - 1); NaN with fewer than two runs."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % t interval of the mean; infinite with fewer than two runs."""
        if self.n < 2:
            return -math.inf, math.inf
        reach = self.deviation / math.sqrt(self.n) * float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1))
        return self.mean - reach, self.mean + reach


def sample(values: Sequence[float]) -> Sample:
    """A sample of these values."""
    return Sample(tuple(values))


def judge_above(differences: Sample, *, least_gain: float) -> Verdict:
    """Is something gained? It holds if the interval is above 0, and does not if it is below ``least_gain``."""
    low, high = differences.interval
    if differences.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if low > 0:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if high < least_gain else Verdict.NOT_ENOUGH_RUNS


def judge_gain(differences: Sample, *, claimed: float) -> Verdict:
    """Is so much gained? It holds if the interval is above 0 and reaches ``claimed``, and does not if it ends below."""
    low, high = differences.interval
    if differences.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if high < claimed:
        return Verdict.DOES_NOT_HOLD
    return Verdict.HOLDS if low > 0 else Verdict.NOT_ENOUGH_RUNS


def judge_at_most(values: Sample, *, most: float) -> Verdict:
    """Is it at most so much? It holds if the interval ends there, and does not if it begins above."""
    low, high = values.interval
    if values.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if high <= most:
        return Verdict.HOLDS
    return Verdict.DOES_NOT_HOLD if low > most else Verdict.NOT_ENOUGH_RUNS


def judge_range(values: Sample, *, least: float, most: float, widest: float) -> Verdict:
    """Is it in a range? It does not hold if the interval misses it, and does if that is at most ``widest`` wide."""
    low, high = values.interval
    if values.n < LEAST_RUNS:
        return Verdict.NOT_ENOUGH_RUNS
    if high < least or low > most:
        return Verdict.DOES_NOT_HOLD
    return Verdict.HOLDS if high - low <= widest else Verdict.NOT_ENOUGH_RUNS
