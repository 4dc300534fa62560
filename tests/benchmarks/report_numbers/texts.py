"""Numbers as the report writes them."""

import itertools
import math

import numpy as np
from scipy import stats


def number(value: float, spec: str) -> set[str]:
    """The value as text; a tie, which the order of a sum decides, is rounded up or down."""
    return {format(value + nudge, spec) for nudge in (-1e-9, 0, 1e-9)}


def joined(*parts) -> set[str]:
    texts = [{part} if isinstance(part, str) else part for part in parts]
    return {"".join(chosen) for chosen in itertools.product(*texts)}


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % t interval of the mean."""
    if len(values) < 2:
        return -math.inf, math.inf
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return np.mean(values) - reach, np.mean(values) + reach


def mean_with_interval(values: list[float], unit: str = "", spec: str = "+.2f") -> set[str]:
    low, high = (number(end, spec) for end in interval(values))
    reach = joined(" (", low, " to ", high, ")") if len(values) > 1 else ""
    return joined(number(np.mean(values), spec), unit, reach, f", n = {len(values)}") if values else set()


def mean_and_deviation(values: list[float], spec: str) -> set[str]:
    if len(values) < 2 or np.isnan(values).any():
        return number(np.mean(values), spec)
    return joined(number(np.mean(values), spec), " ± ", number(np.std(values, ddof=1), spec))
