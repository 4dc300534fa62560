"""At which learning rate an arm is compared: the one that its runs are best at on validation data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.selection.records import Run

# Times the base learning rate of the setting.
RATES = (0.5, 1.0, 2.0)
TUNING_SEEDS = (0, 1)


def choose_rate(runs: Iterable[Run], setting: str, arm: str) -> float | None:
    """The rate with the best mean validation score over the tuning seeds; None until all of these have run."""
    scores = {
        (run.rate, run.seed): run.validation
        for run in runs
        if (run.setting, run.arm) == (setting, arm) and run.seed in TUNING_SEEDS and run.validation is not None
    }
    if any((rate, seed) not in scores for rate in RATES for seed in TUNING_SEEDS):
        return None
    return max(RATES, key=lambda rate: statistics.fmean(scores[rate, seed] for seed in TUNING_SEEDS))


def at_chosen_rates(runs: Iterable[Run]) -> list[Run]:
    """The runs of each arm at its own rate."""
    runs = list(runs)
    pairs = {(run.setting, run.arm) for run in runs}
    chosen = {pair: choose_rate(runs, *pair) for pair in pairs}
    return [run for run in runs if run.rate == chosen[run.setting, run.arm]]
