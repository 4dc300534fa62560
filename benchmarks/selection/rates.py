"""At which learning rate an arm is compared: the one that its runs are best at on validation data."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.schema import RunName

# Times the base learning rate of the setting.
RATES = (0.5, 1.0, 2.0)
TUNING_SEEDS = (0, 1)


def choose_rate(validation: Mapping[RunName, float | None], setting: str | None, arm: str) -> float | None:
    """The rate with the best mean validation score over the tuning seeds; None until all of these have run."""
    means = {}
    for rate in RATES:
        scores = [validation.get(RunName(arm, None, 0, seed, setting, rate)) for seed in TUNING_SEEDS]
        if None in scores:
            return None
        means[rate] = statistics.fmean(score for score in scores if score is not None)
    return max(RATES, key=means.__getitem__)
