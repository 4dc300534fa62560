"""The findings of benchmarks.selection, from its newest records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.environment import one_line
from benchmarks.report.document import Document, Table
from benchmarks.selection import report
from benchmarks.selection.findings import ARMS, SETTINGS
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Results, Verdict, judge
from benchmarks.selection.kinds import report as kinds
from benchmarks.tables.newest import find_newest, render

_SYMBOLS = {Verdict.PAYS: "✓", Verdict.HARMS: "✗", Verdict.CANNOT_BE_TOLD: "?", Verdict.NOT_ENOUGH_RUNS: "…"}

_PAPERS = "repeated"


def selection_at_a_glance() -> str:
    """What each arm with all seeds, and the paper's rule, gain in each setting, most telling first."""
    runs = report.read([find_newest("selection")])
    compared = [finding for finding in judge(Results(runs)) if finding.verdict is not Verdict.CONTROL]
    of_arm = {arm: {each.setting: each for each in compared if each.arm == arm} for arm in ARMS}
    settings = [setting for setting in SETTINGS if any(each.setting == setting for each in compared)]
    shown = [arm for arm, found in of_arm.items() if arm == _PAPERS or any(map(_has_all_seeds, found.values()))]
    alone = [arm for arm in shown if "+" not in arm]
    arms = sorted(alone, key=lambda arm: -_count(of_arm[arm].values(), Verdict.PAYS))
    rows = [[f"{ARMS[arm]} ({arm})", *(_shown(of_arm[arm].get(each)) for each in settings)] for arm in arms]
    updates = runs[0].updates
    caption = (
        f"Points of accuracy over plain training, paired by seed; {updates:,} updates each. ✓ pays: with "
        f"{LEAST_SEEDS_TO_PAY} seeds the 95 % interval is above 0, over its control too: as many chosen at random, or "
        "plain training at its cost where it looks at more samples; ✗ harms: it is below 0; ? cannot be told; "
        "… too few seeds; - not run."
    )
    head = ["what is trained on", *(SETTINGS[setting] for setting in settings)]
    return render(Table(head, rows, f"{caption} {one_line(runs[0].environment)}."))


def _has_all_seeds(finding: Finding) -> bool:
    return finding.gain.n >= LEAST_SEEDS_TO_PAY


def _count(findings: Iterable[Finding], verdict: Verdict) -> int:
    return sum(each.verdict is verdict for each in findings)


def _shown(finding: Finding | None) -> str:
    return "-" if finding is None else f"{finding.gain.mean:+.2f} {_SYMBOLS[finding.verdict]}"


def selection_report(to: Path) -> Document:
    """The report, with its figure drawn into ``to``."""
    return report.compose(report.read([find_newest("selection")]), to)


def selection_kinds() -> str:
    """What each form of leaving samples out gains on each kind of data."""
    return render(kinds.glance(kinds.read(find_newest("selection-kinds"))))


def selection_kinds_report() -> Document:
    """The report on the kinds of data."""
    return kinds.compose(kinds.read(find_newest("selection-kinds")))
