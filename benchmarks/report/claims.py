"""Every claim of the paper, and what the records say of it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.report import statistics
from benchmarks.report.results import READINGS, Cifar, is_timed
from benchmarks.report.statistics import SIGNIFICANCE, Gain, Verdict, noise_in_words, sample, show

# What a verdict takes was fixed before any arms were compared; the dose and the sampling error were added since.
# A gain below half a point would not pay for the extra time.
LEAST_GAIN_POINTS = 0.5
WIDEST_OVERHEAD_PERCENT = 10.0
FEW_REPEATS_PERCENT = 5.0
# The paper leaves out models that do not fit more than half of the data.
LOW_ACCURACY_PERCENT = 50.0
# With fewer repeats there is nothing that a difference could come from.
LEAST_DOSE_PERCENT = 1.0
MANY_CLASSES = 100
# A network is called overfitted if its accuracy falls by as much from its best epoch to its last.
OVERFITTED_POINTS = 2.0

# What the paper (Hu, Li, Wu, 2023) did, reports and claims; its Table 1 is the best over the epochs.
PAPER: dict[str, Any] = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))


class Claim(NamedTuple):
    """A claim, and how a gain is judged that it is about."""

    text: str
    measure: str = "accuracy"
    fails_below: float = LEAST_GAIN_POINTS
    is_claim: bool = False  # whether that limit is what is claimed
    is_harm: bool = False  # whether a loss is claimed
    error: str = "error"  # the measure's sampling error
    with_best: bool = True  # whether the gain at the best epochs is shown too
    start: str = ""
    unit: str = " points"
    digits: int = 2


CLAIMS = {name: Claim(**claim) for name, claim in PAPER["claims"].items()}


class Finding(NamedTuple):
    """What the runs say of a claim, or of a comparison."""

    claim: str  # a key of ``CLAIMS``; another arm, of a comparison
    verdict: Verdict
    gain: Gain  # with the p-value that the verdict rests on, adjusted over all of a report
    numbers: str = ""  # the gain in words
    remark: str = ""
    experiment: str = ""
    reading: str = ""  # the schedule's
    noise: int = 0
    error: float = 0.0  # the sampling error of the test set

    @property
    def is_overturned(self) -> bool:
        """Whether the verdict does not survive the correction for the number of comparisons."""
        return self.verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD) and self.gain.p >= SIGNIFICANCE

    @property
    def condition(self) -> str:
        """Reading and label noise in words."""
        return self.reading + (f", label noise {noise_in_words(self.noise)}" if self.noise else "")


def compare_arms(cifar: Cifar) -> list[Finding]:
    """The accuracy gain over every other arm in every condition: ahead is a verdict that holds."""
    groups = cifar.pairs.groupby(["experiment", "noise", "reading", "other"], observed=True)
    found = []
    for (experiment, noise, reading, other), pairs in groups:
        values, error = sample(pairs["accuracy"]), float(pairs["error"].mean())
        verdict, _ = _with_dose(statistics.judge_gain(values, fails_below=0, sampling_error=error), pairs)
        found.append(Finding(str(other), verdict, Gain(values), "", "", experiment, reading, noise, error))
    statistics.correct([each.gain for each in found])
    return found


def judge_claims(cifar: Cifar, epoch_loss: str = "first") -> list[Finding]:
    """A finding for every claim and every experiment that it concerns, by one reading but for the overhead."""
    found = [
        finding._replace(experiment=name)
        for name in cifar.configurations
        for finding in sorted(_judge(cifar, name, epoch_loss), key=lambda each: [*CLAIMS].index(each.claim))
    ]
    statistics.correct([each.gain for each in found], [each.gain.p for each in found])
    return found


def judged_reading(cifar: Cifar, name: str, epoch_loss: str) -> str:
    """The reading that claims on an experiment are judged by: where it has only others, its first."""
    runs = cifar.runs[(cifar.runs["experiment"] == name) & (cifar.runs["reading"] != "-")]
    readings = [reading for reading in READINGS if (runs["reading"] == reading).any()]
    return epoch_loss if epoch_loss in readings or not readings else readings[0]


def overfitted(cifar: Cifar) -> dict[str, list[str]]:
    """Where the baseline's mean accuracy falls from its best epoch to its last, in words, by experiment."""
    said: dict[str, list[str]] = {}
    baselines = cifar.runs[cifar.runs["arm"] == "baseline"]
    for (name, noise), runs in baselines.groupby(["experiment", "noise"], observed=True):
        best, last = runs["best_accuracy"].mean(), runs["accuracy"].mean()
        if best - last >= OVERFITTED_POINTS:
            at = f" with label noise {noise_in_words(noise)}" if noise else ""
            said.setdefault(name, []).append(f"{best:.0f} to {last:.0f} %{at}")
    return said


def _judge(cifar: Cifar, name: str, epoch_loss: str) -> Iterator[Finding]:
    """All findings on an experiment, in any order."""
    pairs = cifar.pairs[cifar.pairs["experiment"] == name]
    runs = cifar.runs[(cifar.runs["experiment"] == name) & (cifar.runs["arm"] == "attention")]
    reading = judged_reading(cifar, name, epoch_loss)
    of_reading = pairs[(pairs["reading"] == reading) & (pairs["other"] == "baseline")]
    clean = of_reading[of_reading["noise"] == 0]
    many = len(cifar.configurations[name].data.classes) >= MANY_CLASSES
    for claim in ["many"] if many else ["accuracy", "macro_f1", "variance"]:
        yield from _gain(claim, clean)
    yield from _gain("loss", clean, remark=_OTHER_VISITS if reading != "first" else "")
    yield from _gain("time", clean, **_IN_SECONDS if is_timed(clean) else _IN_UPDATES)
    early = sample(clean["early_repeats"].dropna())
    if early.n:
        verdict, p = _with_dose(statistics.judge_at_most(early, most=FEW_REPEATS_PERCENT), clean)
        yield Finding("few", verdict, Gain(early, p=p), show(early, " % repeats before", 1, sign=False))
    yield from _overheads(runs[runs["noise"] == 0], pairs[(pairs["noise"] == 0) & (pairs["other"] == "baseline")])
    if (accuracy := clean["accuracy_other"].mean()) < LOW_ACCURACY_PERCENT:
        yield from _gain("harm", clean, end=f", with the baseline at {accuracy:.1f} %")
    for other in ("random", "longer"):
        is_other = (pairs["reading"] == reading) & (pairs["other"] == other) & (pairs["noise"] == 0)
        yield from _gain(other, pairs[is_other])
    levels = sorted({0, *of_reading["noise"]})
    for noise in levels[1:]:
        yield from _gain("noise", of_reading[of_reading["noise"] == noise], f"{noise_in_words(noise)}: ")
    for less, more in itertools.pairwise(levels):
        both = of_reading[of_reading["noise"] == less].merge(of_reading[of_reading["noise"] == more], on="seed")
        shrinks = both.assign(
            accuracy=both["accuracy_x"] - both["accuracy_y"],
            error=math.hypot(both["error_x"].mean(), both["error_y"].mean()),
            repeats=both[["repeats_x", "repeats_y"]].min(axis=1),
        )
        yield from _gain("noisier", shrinks, f"{less} to {noise_in_words(more)}: the gain shrinks by ")


_OTHER_VISITS = "the arms' training losses are not of the same visits"
_IN_SECONDS = {"measure": "same_seconds", "remark": ""}
_IN_UPDATES = {"measure": "same_updates", "remark": "seconds cannot be compared, so time is counted in updates"}


def _gain(
    name: str, pairs: pd.DataFrame, start: str = "", end: str = "", remark: str = "", measure: str = ""
) -> Iterator[Finding]:
    """A finding on the gain in a measure; none without pairs that have it."""
    claim = CLAIMS[name]
    measure = measure or claim.measure
    pairs = pairs[pairs[measure].notna()]
    if pairs.empty:
        return
    values, error = sample(pairs[measure]), float(pairs[claim.error].mean())
    gains = sample(-value for value in values.values) if claim.is_harm else values
    judged = statistics.judge_gain(gains, fails_below=claim.fails_below, sampling_error=error, is_claim=claim.is_claim)
    verdict, p = _with_dose(judged, pairs)
    numbers = f"{start or claim.start}{show(values, claim.unit, claim.digits)}"
    if claim.with_best:
        numbers += f"; at the best epochs {show(sample(pairs[f'best_{measure}']), claim.unit, claim.digits)}"
    numbers += end
    if verdict is Verdict.NO_DIFFERENCE:
        numbers += f"; {values.reach(error):.{claim.digits}f}{claim.unit} would have been significant"
    yield Finding(name, verdict, Gain(values, p=p), numbers, remark)


def _with_dose(judged: statistics.Judged, pairs: pd.DataFrame) -> statistics.Judged:
    """A verdict, unless attention hardly did anything in one of the runs that it rests on."""
    is_judged = judged[0] is not Verdict.NOT_ENOUGH_RUNS
    return (
        (Verdict.HARDLY_ANY_REPEATS, math.nan) if is_judged and pairs["repeats"].min() < LEAST_DOSE_PERCENT else judged
    )


def _overheads(runs: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[Finding]:
    """What attention costs, with each reading."""
    least, most = PAPER["overhead_percent"]
    for reading, of_reading in runs.groupby("reading", observed=True):
        values, remark = sample(of_reading["repeats"]), _IN_UPDATES["remark"]
        compared = pairs[pairs["reading"] == reading]
        numbers = f"{reading}: {show(values, ' % more updates', 1, sign=False)}"
        if is_timed(compared):
            values, remark = sample(compared["more_seconds"]), ""
            numbers += f"; {show(values, ' % more seconds', 1, sign=False)}"
        verdict, p = statistics.judge_range(values, least=least, most=most, widest=WIDEST_OVERHEAD_PERCENT)
        yield Finding("overhead", verdict, Gain(values, p=p), numbers, remark)
