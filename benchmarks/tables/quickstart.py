"""What the records of the quick start come to."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.report.statistics import sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.tables.newest import read_newest, render

ARMS = ("baseline", "attention", "random")


def quickstart_table() -> str:
    """Accuracy, macro-F1, updates and overhead of the three arms, and what the paired differences say."""
    by_arm = _runs_by_arm()
    rows = [
        [
            arm,
            mean_and_deviation(sample([100 * run["accuracy"][-1] for run in runs]), 2),
            mean_and_deviation(sample([100 * run["macro_f1"][-1] for run in runs]), 2),
            f"{statistics.fmean(sum(run['updates']) for run in runs):.0f}",
            mean_and_deviation(sample(_overheads(by_arm, arm)), 1),
        ]
        for arm, runs in by_arm.items()
    ]
    first, seeds = by_arm["baseline"][0], len(by_arm["baseline"])
    caption = (
        f"Last of {len(first['accuracy'])} epochs, mean ± standard deviation, n = {seeds} seeds; paired differences in "
        f"accuracy with 95 % intervals: {_compared(by_arm)}. {one_line(first['environment'])}."
    )
    return render(Table(["arm", "test accuracy, %", "macro-F1, %", "updates", "overhead, %"], rows, caption))


def quickstart_found() -> str:
    """The same in a few sentences."""
    by_arm = _runs_by_arm()
    first, seeds = by_arm["baseline"][0], len(by_arm["baseline"])
    overhead = statistics.fmean(_overheads(by_arm, "attention"))
    return (
        f"After {len(first['accuracy'])} epochs, in test accuracy with 95 % intervals over {seeds} seeds: "
        f"{_compared(by_arm)}. Attention made {overhead:.0f} % more updates than baseline. "
        f"{one_line(first['environment'])}."
    )


def _runs_by_arm() -> dict[str, list[dict[str, Any]]]:
    """The records of each arm, in the order of seeds."""
    records = read_newest("quickstart")
    return {arm: sorted((r for r in records if r["arm"] == arm), key=lambda r: int(r["seed"])) for arm in ARMS}


def _overheads(by_arm: dict[str, list[dict[str, Any]]], arm: str) -> list[float]:
    """By how many per cent each run's updates are more than the baseline's."""
    pairs = zip(by_arm[arm], by_arm["baseline"], strict=True)
    return [100 * (sum(ours["updates"]) / sum(base["updates"]) - 1) for ours, base in pairs]


def _compared(by_arm: dict[str, list[dict[str, Any]]]) -> str:
    """Attention beside each of the others."""
    findings = []
    for other in ("baseline", "random"):
        pairs = zip(by_arm["attention"], by_arm[other], strict=True)
        differences = [100 * (ours["accuracy"][-1] - theirs["accuracy"][-1]) for ours, theirs in pairs]
        low, high = sample(differences).interval
        difference = f"{statistics.fmean(differences):+.2f} points ({low:+.2f} to {high:+.2f})"
        findings.append(f"attention is {_verdict(low, high)} {other}, {difference}")
    return "; ".join(findings)


def _verdict(low: float, high: float) -> str:
    """What an interval of differences says of one arm and another."""
    if low > 0:
        return "better than"
    return "worse than" if high < 0 else "not told apart from"
