"""Means and intervals of a few runs, in numbers and in words, and what they say of a claim."""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
SIGNIFICANCE = 1 - CONFIDENCE
# Fewer runs have an interval too, but it rests on one or two differences.
LEAST_RUNS = 3


class Verdict(enum.Enum):
    """What the runs say of a claim, or of an arm."""

    HOLDS = "holds", "✓"
    DOES_NOT_HOLD = "does not hold", "✗"
    PAYS = "pays", "✓"
    HARMS = "harms", "✗"
    NO_DIFFERENCE = "no significant difference", "?"
    INCONCLUSIVE = "inconclusive", "?"
    HARDLY_ANY_REPEATS = "hardly any repeats", "∅"
    NOT_ENOUGH_RUNS = "not enough runs", "…"
    CONTROL = "control", ""

    def __init__(self, text: str, symbol: str) -> None:
        self.text, self.symbol = text, symbol


class Sample(NamedTuple):
    """One number from each of a few runs, or a difference of two."""

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
        """The standard deviation (n - 1); NaN with fewer than two runs, or where one is NaN."""
        return math.nan if self.n < 2 or any(map(math.isnan, self.values)) else statistics.stdev(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % t interval of the mean; infinite with fewer than two runs."""
        if self.n < 2:
            return -math.inf, math.inf
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)) * self.deviation / math.sqrt(self.n)
        return self.mean - reach, self.mean + reach

    def reach(self, sampling_error: float = 0.0) -> float:
        """How far a verdict's interval reaches to either side of the mean: at least as far as the sampling error."""
        return max(self.interval[1] - self.mean, sampling_error)

    def p(self, limit: float = 0.0) -> float:
        """Of a two-sided t-test against a limit; NaN with fewer than two runs, or without a limit."""
        if self.n < 2 or math.isnan(limit):
            return math.nan
        if len(set(self.values)) == 1:
            return 1.0 if self.mean == limit else 0.0
        return float(stats.ttest_1samp(self.values, limit).pvalue)


def sample(values: Iterable[float]) -> Sample:
    """A sample of these values."""
    return Sample(tuple(map(float, values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted by Holm's method over all of them but NaN, which stays."""
    adjusted = np.array(p_values, dtype=float)
    if (tested := ~np.isnan(adjusted)).any():
        adjusted[tested] = multipletests(adjusted[tested], method="holm")[1]
    return [*map(float, adjusted)]


def accuracy_error(accuracy: float, images: int) -> float:
    """The standard error, in points, that a test set leaves on an accuracy in per cent.

    Arms are compared as if each were measured on images of its own: which images both get right is not recorded. More
    seeds do not lower it, since they share the test set.
    """
    return math.sqrt(accuracy * (100 - accuracy) / images)


def variance_error(counts: Sequence[int]) -> float:
    """The standard error of the population variance of counts, each of them a Poisson number (delta method)."""
    mean = statistics.fmean(counts)
    return math.sqrt(sum((2 * (count - mean) / len(counts)) ** 2 * count for count in counts))


# A verdict, and the p-value of the limit that it rests on; NaN where it rests on no test.
Judged: TypeAlias = tuple[Verdict, float]


def judge_gain(gains: Sample, *, fails_below: float, sampling_error: float = 0.0, is_claim: bool = False) -> Judged:
    """Is something gained? It holds if the interval is above 0, and does not hold if it is below a limit.

    Where both are so, the limit decides if it is what is claimed.
    """
    reach = gains.reach(sampling_error)
    holds, fails = gains.mean - reach > 0, gains.mean + reach < fails_below
    verdict = Verdict.HOLDS if holds else Verdict.NO_DIFFERENCE
    is_failed = fails and (is_claim or not holds)
    return _judged(gains, Verdict.DOES_NOT_HOLD if is_failed else verdict, fails_below if is_failed else 0)


def judge_at_most(values: Sample, *, most: float) -> Judged:
    """Is it at most so much? It holds if the interval ends there, and does not hold if it begins above."""
    low, high = values.interval
    verdict = Verdict.HOLDS if high <= most else Verdict.DOES_NOT_HOLD if low > most else Verdict.INCONCLUSIVE
    return _judged(values, verdict, most)


def judge_range(values: Sample, *, least: float, most: float, widest: float) -> Judged:
    """Is it in a range? It does not hold if the interval misses it, and holds if that is at most ``widest`` wide."""
    low, high = values.interval
    if high < least or low > most:
        return _judged(values, Verdict.DOES_NOT_HOLD, least if high < least else most)
    return _judged(values, Verdict.HOLDS if high - low <= widest else Verdict.INCONCLUSIVE)


def _judged(values: Sample, verdict: Verdict, limit: float = math.nan) -> Judged:
    return (verdict, values.p(limit)) if values.n >= LEAST_RUNS else (Verdict.NOT_ENOUGH_RUNS, math.nan)


@dataclass
class Gain:
    """A mean difference with its interval, and with its p-value where that is shown."""

    values: Sample
    digits: int = 2
    p: float = math.nan  # adjusted for the number of comparisons

    def __str__(self) -> str:
        p = "" if math.isnan(self.p) else f", {show_p(self.p)}"
        return show(self.values, digits=self.digits, with_n=False) + p if self.values.n else "-"


def correct(gains: Sequence[Gain], p_values: Sequence[float] | None = None) -> None:
    """Give each its p-value, of a limit of 0 unless they are given, adjusted over all of these by Holm's method."""
    for each, p in zip(gains, holm(p_values or [each.values.p() for each in gains]), strict=True):
        each.p = p


def show(values: Sample, unit: str = "", digits: int = 2, *, sign: bool = True, with_n: bool = True) -> str:
    """A mean with its interval and n."""
    if not values.n:
        return "no runs"
    plus = "+" if sign else ""
    low, high = values.interval
    interval = "" if math.isinf(low) else f" ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"
    return f"{values.mean:{plus}.{digits}f}{unit}{interval}" + (f", n = {values.n}" if with_n else "")


def show_p(p: float) -> str:
    """A p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def spread(values: Iterable[float], digits: int) -> str:
    """A mean and a standard deviation."""
    of_runs = sample(values)
    deviation = "" if math.isnan(of_runs.deviation) else f" ± {of_runs.deviation:.{digits}f}"
    return f"{of_runs.mean:.{digits}f}{deviation}"


def quartiles(values: Sequence[float], unit: str = "") -> str:
    """A median with its quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    digits = 0 if unit == "ns" else 2
    median = f"{statistics.median(values):.{digits}f} {unit}".rstrip()
    return f"{median} ({low:.{digits}f} to {high:.{digits}f})"


def noise_in_words(noise: int) -> str:
    """How many labels of every 32 were redrawn."""
    return f"{noise} of 32" if noise else "none"
