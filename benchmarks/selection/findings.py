"""What the runs come to, in words for somebody who knows none of the arms."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report.statistics import LEAST_RUNS, Sample
from benchmarks.selection.arms import AS_COSTLY, LONGER, TWINS
from benchmarks.selection.judging import LEAST_SEEDS_TO_PAY, Finding, Results, Verdict, accuracy, judge
from benchmarks.selection.records import Run

# What users reach for now.
PEER = "selective_backprop"
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


def say_what_is_found(runs: Sequence[Run]) -> list[str]:
    """What pays, what harms and how much is open, in a few sentences."""
    results = Results(runs)
    compared = [finding for finding in judge(results) if finding.verdict is not Verdict.CONTROL]
    seeds = len({run.seed for run in runs})
    updates = next((run.updates for run in runs if run.arm not in LONGER), 0)
    longer = sorted({run.arm for run in runs} & LONGER.keys())
    but = f", but for {', '.join(longer)}" if longer else ""
    said = [
        f"{len(runs):,} runs of a small network, every arm with exactly {updates:,} updates{but}; "
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
    payers = [arm for arm in dict.fromkeys(each.arm for each in pays) if arm in TWINS]
    against = [f"{arm} is {told}" for arm in payers if (told := _against_peer(results, arm))]
    if at_its_cost := _against_peer(results, AS_COSTLY[PEER]):
        against.append(f"plain training at its cost ({AS_COSTLY[PEER]}) is {at_its_cost}")
    if against:
        said.append(f"Against {PEER}, which runs the network on more samples: {'; '.join(against)}.")
    return said


def _against_peer(results: Results, arm: str) -> str:
    """Where an arm is ahead of Selective Backprop, and where behind; nothing if they were not run together."""
    differences = [(setting, results.differences(setting, arm, PEER, accuracy)) for setting in results.settings]
    compared = [(setting, difference) for setting, difference in differences if difference.n >= LEAST_RUNS]
    told = []
    for word, sign in (("ahead", 1), ("behind", -1)):
        places = [
            f"on {SETTINGS.get(setting, setting)} {_points(difference)}"
            for setting, difference in compared
            if min(sign * bound for bound in difference.interval) > 0
        ]
        if places:
            told.append(f"{word} {', '.join(places)}")
    return ", ".join(told) or ("told apart nowhere" if compared else "")


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
