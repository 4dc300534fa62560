"""What the runs say of each arm: against plain training, and against its control."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from benchmarks.report.statistics import LEAST_RUNS, Sample, sample
from benchmarks.selection.arms import CONTROLS, ONLY_CONTROLS
from benchmarks.selection.records import Run

# An arm that is said to pay has been run with so many seeds.
LEAST_SEEDS_TO_PAY = 8

Measure = Callable[[Run], float]


class Verdict(enum.Enum):
    """What to make of an arm, in one setting."""

    PAYS = "pays"
    HARMS = "harms"
    CANNOT_BE_TOLD = "cannot be told"
    NOT_ENOUGH_RUNS = "not enough runs"
    CONTROL = "a control"


class Finding(NamedTuple):
    """One arm in one setting.

    Attributes:
        setting: The setting.
        arm: The arm.
        values: Accuracy, in per cent, of its runs.
        gain: Accuracy less plain training's, paired by seed.
        control: The arm that chooses as many at random, that this one adds to, or that is plain at its cost; None for
            arms that have none.
        over_control: Accuracy less the control's, paired by seed; None without control.
        verdict: What to make of it.
    """

    setting: str
    arm: str
    values: Sample
    gain: Sample
    control: str | None
    over_control: Sample | None
    verdict: Verdict


class Results:
    """The runs of a study, by setting, arm and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {(run.setting, run.arm, run.seed): run for run in runs}
        self.settings = list(dict.fromkeys(run.setting for run in runs))

    def arms(self, setting: str) -> list[str]:
        """The arms that were run in a setting."""
        return list(dict.fromkeys(arm for of, arm, _ in self._runs if of == setting))

    def values(self, setting: str, arm: str, measure: Measure) -> Sample:
        """A number from each run of an arm."""
        return sample(
            [measure(run) for (of, name, _), run in sorted(self._runs.items()) if (of, name) == (setting, arm)]
        )

    def paired(self, setting: str, arm: str, other: str, measure: Measure) -> tuple[list[float], list[float]]:
        """An arm's numbers and another's, of the seeds that both were run with."""
        seeds = sorted({seed for of, name, seed in self._runs if (of, name) == (setting, arm)})
        pairs = [(self._runs.get((setting, arm, seed)), self._runs.get((setting, other, seed))) for seed in seeds]
        both = [(measure(ours), measure(theirs)) for ours, theirs in pairs if ours and theirs]
        return [ours for ours, _ in both], [theirs for _, theirs in both]

    def differences(self, setting: str, arm: str, other: str, measure: Measure) -> Sample:
        """An arm's number less another's, paired by seed."""
        ours, theirs = self.paired(setting, arm, other, measure)
        return sample([mine - its for mine, its in zip(ours, theirs, strict=True)])

    def ratio(self, setting: str, arm: str, measure: Measure) -> float:
        """A number of an arm's over that of plain training: the median over seeds."""
        ratios = [
            measure(run) / measure(plain)
            for (of, name, seed), run in self._runs.items()
            if (of, name) == (setting, arm) and (plain := self._runs.get((setting, "plain", seed)))
        ]
        return statistics.median(ratios) if ratios else float("nan")


def accuracy(run: Run) -> float:
    """Per cent of the test images, which are as many of each kind."""
    return run.accuracy


def judge(
    results: Results,
    measure: Measure = accuracy,
    controls: Mapping[str, str] = CONTROLS,
    only_controls: Set[str] = ONLY_CONTROLS,
) -> list[Finding]:
    """Every arm but plain training, in every setting."""
    findings = []
    for setting in results.settings:
        for arm in results.arms(setting):
            gain = results.differences(setting, arm, "plain", measure)
            if arm == "plain" or not gain.n:
                continue
            control = controls.get(arm)
            over_control = None if control is None else results.differences(setting, arm, control, measure)
            verdict = Verdict.CONTROL if arm in only_controls else _verdict(gain, over_control)
            values = results.values(setting, arm, measure)
            findings.append(Finding(setting, arm, values, gain, control, over_control, verdict))
    return findings


def _verdict(gain: Sample, over_control: Sample | None) -> Verdict:
    if gain.n < LEAST_RUNS or (over_control is not None and over_control.n < LEAST_RUNS):
        return Verdict.NOT_ENOUGH_RUNS
    low, high = gain.interval
    if high < 0:
        return Verdict.HARMS
    if low > 0 and (over_control is None or over_control.interval[0] > 0):
        return Verdict.PAYS if gain.n >= LEAST_SEEDS_TO_PAY else Verdict.NOT_ENOUGH_RUNS
    return Verdict.CANNOT_BE_TOLD
