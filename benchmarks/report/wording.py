"""Numbers in words, and text as it stands in Markdown."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.report.statistics import Sample, holm, sample

_ESCAPED = {**{mark: f"\\{mark}" for mark in "\\|*`[]~"}, "<": "&lt;", "&": "&amp;"}
# Within a word an underscore stands for itself.
_EMPHASIZING = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


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


def escape(text: object) -> str:
    """Text that stands for itself, on one line, in a table too."""
    characters = " ".join(str(text).splitlines())
    return _EMPHASIZING.sub(r"\\_", "".join(_ESCAPED.get(each, each) for each in characters))
