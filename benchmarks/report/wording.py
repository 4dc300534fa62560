"""Numbers and verdicts in words."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.report.statistics import Sample, Verdict


@dataclass
class Gain:
    """A cell of a table: a mean difference with its interval."""

    values: Sample
    digits: int = 2
    p: float = math.nan  # adjusted for the number of comparisons; NaN where it is not shown

    def __str__(self) -> str:
        p = "" if math.isnan(self.p) else f", {show_p(self.p)}"
        return show(self.values, digits=self.digits, with_n=False) + p if self.values.n else "-"


class Mark(NamedTuple):
    """A cell of a table: a verdict, and whether it does not survive the correction."""

    verdict: Verdict
    is_overturned: bool = False

    def __str__(self) -> str:
        return f"{self.verdict.symbol} **{self.verdict.text}**{', not after correction' * self.is_overturned}".strip()


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


def mean_and_deviation(values: Sample, digits: int) -> str:
    """A mean and a standard deviation."""
    spread = "" if math.isnan(values.deviation) else f" ± {values.deviation:.{digits}f}"
    return f"{values.mean:.{digits}f}{spread}"


def quartiles(values: list[float], unit: str = "") -> str:
    """A median with its quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    digits = 0 if unit == "ns" else 2
    median = f"{statistics.median(values):.{digits}f} {unit}".rstrip()
    return f"{median} ({low:.{digits}f} to {high:.{digits}f})"


def noise_in_words(noise: int) -> str:
    """How many labels of every 32 were redrawn."""
    return f"{noise} of 32" if noise else "none"
