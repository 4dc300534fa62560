"""Samples in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.report.statistics import Sample


@dataclass
class Gain:
    """A cell of a table: a mean difference with its interval.

    Attributes:
        values: Of paired runs.
        digits: Behind the point.
        p: Adjusted for the number of comparisons; None where it is not to be shown.
    """

    values: Sample
    digits: int = 2
    p: float | None = None

    def __str__(self) -> str:
        p = "" if self.p is None or math.isnan(self.p) else f", {show_p(self.p)}"
        return show(self.values, digits=self.digits, with_n=False) + p if self.values.n else "-"


def show(values: Sample, unit: str = "", digits: int = 2, *, sign: bool = True, with_n: bool = True) -> str:
    """A mean with its interval and n, as text."""
    if not values.n:
        return "no runs"
    plus = "+" if sign else ""
    low, high = values.interval
    interval = "" if math.isinf(low) else f" ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"
    return f"{values.mean:{plus}.{digits}f}{unit}{interval}" + (f", n = {values.n}" if with_n else "")


def show_p(p: float) -> str:
    """A p-value, as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def mean_and_deviation(values: Sample, digits: int) -> str:
    """A mean and a standard deviation, as text."""
    spread = "" if math.isnan(values.deviation) else f" ± {values.deviation:.{digits}f}"
    return f"{values.mean:.{digits}f}{spread}"


def noise_in_words(noise: int) -> str:
    """How many labels of every 32 were redrawn."""
    return f"{noise} of 32" if noise else "none"
