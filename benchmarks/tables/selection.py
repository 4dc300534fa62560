"""What the records of benchmarks.selection come to, in words for somebody who knows none of its arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import markdown
from benchmarks.report.document import Box, Document
from benchmarks.report.statistics import Sample
from benchmarks.selection import report
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Results, Verdict, judge
from benchmarks.selection.records import Run
from benchmarks.tables.newest import find_newest

# What each arm does besides plain training, with the name that the report's tables have for it.
ARMS = {
    "left_out": "samples with a loss below the mean left out half the time",
    "left_out_weighted": "samples with a loss below the mean left out half the time, those that stay weighed up",
    "both": "samples with a loss below the mean left out half the time, those far above it brought again",
    "pooled": "samples with a loss far above the mean brought again",
    "selective_backprop": "the worse half of two batches trained on (Selective Backprop)",
    "selective_backprop_composer": "the worse half of two batches trained on, by Composer's own function",
    "infobatch": "samples with a loss below the mean left out half the time, by InfoBatch's own code",
    "repeated": "whole batches repeated, as in the paper",
    "repeated_fresh": "whole batches repeated, augmented anew",
    "repeated_budget": "whole batches repeated, 15 % of them at most",
    "sqrt_frequency": "rare classes drawn more often",
    "sqrt_frequency+left_out": "rare classes drawn more often, well-fitted samples left out half the time",
}
SETTINGS = {
    "balanced": "balanced data",
    "long_tail": "rare classes",
    "hidden_kinds": "rare kinds that no label tells",
    "noisy": "10 % of labels redrawn",
}


def selection_runs() -> list[Run]:
    """All that is recorded of it."""
    return report.read([find_newest("selection")])


def selection_found() -> str:
    """What pays where."""
    return markdown.render_block(Box(say_what_is_found(selection_runs())))


def selection_report(to: Path) -> Document:
    """The report, with its figure drawn into ``to``."""
    runs = selection_runs()
    return report.compose(runs, to)._replace(box=Box(say_what_is_found(runs)))


def say_what_is_found(runs: Sequence[Run]) -> list[str]:
    """What pays, what harms and how much is open, in a few sentences."""
    compared = [finding for finding in judge(Results(runs)) if finding.verdict is not Verdict.CONTROL]
    seeds = len({run.seed for run in runs})
    said = [
        f"{len(runs):,} runs of a small network, every arm with exactly {report.usual_updates(runs):,} updates; "
        f"{_count(seeds, 'seed')} at most."
    ]
    found = {verdict: [each for each in compared if each.verdict is verdict] for verdict in Verdict}
    if pays := found[Verdict.PAYS]:
        said.append(f"Found to pay, in points of accuracy over plain training (95 % interval): {_listed(pays)}.")
    else:
        said.append(f"Nothing is found to pay; that takes {LEAST_SEEDS_TO_PAY} seeds.")
    if harms := found[Verdict.HARMS]:
        said.append(f"Found to harm, in points of accuracy over plain training (95 % interval): {_listed(harms)}.")
    else:
        said.append("Nothing is found to harm.")
    few, open_ones = len(found[Verdict.NOT_ENOUGH_RUNS]), len(found[Verdict.CANNOT_BE_TOLD])
    told = f"{open_ones} cannot be told from their runs, and {few} have too few of them"
    said.append(f"Of {_count(len(compared), 'comparison')} with plain training, {told}.")
    return said


def _listed(findings: Sequence[Finding]) -> str:
    """Each arm in words, with the settings that this was found in."""
    arms = list(dict.fromkeys(finding.arm for finding in findings))
    return "; ".join(f"{_named(arm)}, {_by_setting([each for each in findings if each.arm == arm])}" for arm in arms)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _named(arm: str) -> str:
    return f"{ARMS[arm]} ({arm})" if arm in ARMS else arm


def _by_setting(findings: Sequence[Finding]) -> str:
    return ", ".join(f"on {SETTINGS.get(each.setting, each.setting)} {_points(each.gain)}" for each in findings)


def _points(values: Sample) -> str:
    low, high = values.interval
    return f"{values.mean:+.2f} ({low:+.2f} to {high:+.2f})"
