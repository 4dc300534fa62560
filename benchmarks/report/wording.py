"""Samples in words."""

from __future__ import annotations

import math

from benchmarks.report.statistics import Sample, Verdict


def show(values: Sample, unit: str, digits: int = 2, *, sign: bool = True) -> str:
    """A mean with its interval and n, as text."""
    if not values.n:
        return "no runs"
    plus = "+" if sign else ""
    low, high = values.interval
    interval = "" if math.isinf(low) else f" ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"
    return f"{values.mean:{plus}.{digits}f}{unit}{interval}, n = {values.n}"


def mean_and_deviation(values: Sample, digits: int) -> str:
    """A mean and a standard deviation, as text."""
    spread = "" if math.isnan(values.deviation) else f" ± {values.deviation:.{digits}f}"
    return f"{values.mean:.{digits}f}{spread}"


def what_would_have_shown(verdict: Verdict, values: Sample, sampling_error: float, unit: str, digits: int = 2) -> str:
    """For what cannot be told: the difference that would have been told apart with as many runs."""
    if verdict is not Verdict.CANNOT_BE_TOLD:
        return ""
    least = f"{values.reach(sampling_error):.{digits}f}{unit}"
    return f"; cannot be told apart with n = {values.n}, a difference of {least} would have shown"
