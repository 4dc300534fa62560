"""The findings of ``benchmarks.selection``, from its newest records."""

from __future__ import annotations

from functools import cache

from benchmarks.environment import one_line
from benchmarks.reading import Records
from benchmarks.report.document import Report, Table, render
from benchmarks.report.results import read_folders
from benchmarks.report.selection import LEAST_SEEDS_TO_PAY, Results, glance, read_results, report_selection
from benchmarks.tables.newest import find_newest

_MARKS = (
    f"✓ pays: with {LEAST_SEEDS_TO_PAY} seeds the 95 % interval is above 0, over the control too; ✗ harms: it is "
    "below 0; ? no significant difference; … not enough seeds; - not run; *: does not survive Holm's correction."
)


@cache
def _read(name: str) -> list[Records]:
    return read_folders([find_newest(name)])


def _glance(name: str, results: Results, before: str, after: str = "") -> str:
    environment = next(iter(_read(name)[0].runs.values())).surroundings[0].environment
    return render(Table(*glance(results), f"{before}, paired by seed. {_MARKS}{after} {one_line(environment)}."))


def selection_at_a_glance() -> str:
    """What each arm with all seeds, and the paper's rule, gain in each setting of images."""
    (results,) = read_results(_read("selection"))
    updates = f"{int(results.frame['updates'].min()):,} updates each"
    return _glance("selection", results, f"Points of accuracy over plain training, {updates}")


def selection_kinds() -> str:
    """What each form of leaving samples out gains on each kind of data."""
    planned, *added = read_results(_read("selection-kinds"))
    again = [
        f"{each.setting} {each.gain.values.mean:+.2g} {each.verdict.symbol}{'' if each.survives else '*'}"
        for results in added
        for each in results.findings
        if each.arm == "left_out" and each.gain.values.n >= LEAST_SEEDS_TO_PAY
    ]
    before = "Gain over plain training, each arm at its own learning rate: points of accuracy, for text nats of loss"
    return _glance(
        "selection-kinds", planned, before, f" left_out with seeds added later: {', '.join(again) or 'none'}."
    )


def selection_report(name: str) -> Report:
    """The report on the newest records of "selection" or "selection-kinds"."""
    return report_selection(_read(name))
