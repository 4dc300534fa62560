"""Every claim of the paper, and what the records say of it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from benchmarks.report.results import READINGS, Cifar, is_timed
from benchmarks.report.statistics import (
    SIGNIFICANCE,
    Judged,
    Sample,
    Verdict,
    holm,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
)
from benchmarks.report.wording import noise_in_words, show

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
CLAIMS: dict[str, str] = PAPER["claims"]


class Finding(NamedTuple):
    """What the runs say of a claim, or of a comparison."""

    claim: str  # a key of ``CLAIMS``; another arm, of a comparison
    experiment: str
    judged: Judged  # with the p-value adjusted over all of a report
    values: Sample
    numbers: str = ""  # the values in words
    remark: str = ""
    reading: str = ""  # the schedule's
    noise: int = 0
    error: float = 0.0  # the sampling error of the test set

    @property
    def is_overturned(self) -> bool:
        """Whether the verdict does not survive the correction for the number of comparisons."""
        verdict, p = self.judged
        return verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD) and p >= SIGNIFICANCE


def compare_arms(cifar: Cifar) -> list[Finding]:
    """The accuracy gain over every other arm in every condition: ahead is a verdict that holds."""
    groups = cifar.pairs.groupby(["experiment", "noise", "reading", "other"], observed=True)
    found = []
    for (experiment, noise, reading, other), pairs in groups:
        (finding,) = _gain(str(other), pairs, limit=0)
        judged = Judged(finding.judged.verdict, finding.values.p())
        found.append(finding._replace(judged=judged, experiment=experiment, noise=noise, reading=reading))
    return _adjust(found)


def judge_claims(cifar: Cifar, epoch_loss: str = "first") -> list[Finding]:
    """A finding for every claim and every experiment that it concerns, by one reading but for the overhead."""
    found = [
        finding._replace(experiment=name)
        for name in cifar.configurations
        for finding in sorted(_judge(cifar, name, epoch_loss), key=lambda each: [*CLAIMS].index(each.claim))
    ]
    return _adjust(found)


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


def _adjust(found: list[Finding]) -> list[Finding]:
    adjusted = holm([each.judged.p for each in found])
    return [each._replace(judged=each.judged._replace(p=p)) for each, p in zip(found, adjusted, strict=True)]


def _judge(cifar: Cifar, name: str, epoch_loss: str) -> Iterator[Finding]:
    """All findings on an experiment, in any order."""
    pairs = cifar.pairs[cifar.pairs["experiment"] == name]
    runs = cifar.runs[(cifar.runs["experiment"] == name) & (cifar.runs["arm"] == "attention")]
    reading = judged_reading(cifar, name, epoch_loss)
    of_reading = pairs[(pairs["reading"] == reading) & (pairs["other"] == "baseline")]
    clean = of_reading[of_reading["noise"] == 0]
    if len(cifar.configurations[name].data.classes) >= MANY_CLASSES:
        yield from _gain("many", clean)
    else:
        for measure in ("accuracy", "macro_f1"):
            yield from _gain(measure, clean, measure, limit=PAPER["gain_points"][0], is_claim=True)
        yield from _gain("variance", clean, "variance", 0, error="variance_error", unit="", digits=0, start="lower by ")
    remark = "" if reading == "first" else "the arms' training losses are not of the same visits"
    yield from _gain("loss", clean, "same_loss", best="", remark=remark)
    cost, remark = ("seconds", "") if is_timed(clean) else ("updates", _IN_UPDATES)
    yield from _gain("time", clean, f"same_{cost}", best="", remark=remark)
    early = sample(clean["early_repeats"].dropna())
    if early.n:
        judged = _with_dose(judge_at_most(early, most=FEW_REPEATS_PERCENT), clean)
        yield Finding("few", name, judged, early, show(early, " % repeats before", 1, sign=False))
    yield from _overheads(runs[runs["noise"] == 0], pairs[(pairs["noise"] == 0) & (pairs["other"] == "baseline")])
    if clean["accuracy_other"].mean() < LOW_ACCURACY_PERCENT:
        end = f", with the baseline at {clean['accuracy_other'].mean():.1f} %"
        yield from _gain("harm", clean, best="", end=end, sign=-1)
    for other in ("random", "longer"):
        is_other = (pairs["reading"] == reading) & (pairs["other"] == other) & (pairs["noise"] == 0)
        yield from _gain(other, pairs[is_other])
    levels = sorted({0, *of_reading["noise"]})
    for noise in levels[1:]:
        yield from _gain("noise", of_reading[of_reading["noise"] == noise], start=f"{noise_in_words(noise)}: ")
    for less, more in itertools.pairwise(levels):
        both = of_reading[of_reading["noise"] == less].merge(of_reading[of_reading["noise"] == more], on="seed")
        shrinks = both.assign(
            accuracy=both["accuracy_x"] - both["accuracy_y"],
            error=math.hypot(both["error_x"].mean(), both["error_y"].mean()),
            repeats=both[["repeats_x", "repeats_y"]].min(axis=1),
        )
        yield from _gain(
            "noisier", shrinks, limit=0, best="", start=f"{less} to {noise_in_words(more)}: the gain shrinks by "
        )


_IN_UPDATES = "seconds cannot be compared, so time is counted in updates"


def _gain(
    claim: str,
    pairs: pd.DataFrame,
    measure: str = "accuracy",
    limit: float = LEAST_GAIN_POINTS,
    *,
    best: str = "best_",
    error: str = "error",
    sign: int = 1,
    is_claim: bool = False,
    unit: str = " points",
    digits: int = 2,
    start: str = "",
    end: str = "",
    remark: str = "",
) -> Iterator[Finding]:
    """A finding on the gain in a measure; none without pairs that have it."""
    pairs = pairs[pairs[measure].notna()]
    if len(pairs):
        values, sampling_error = sample(pairs[measure]), float(pairs[error].mean())
        signed = sample(sign * value for value in values.values)
        judged = judge_gain(signed, fails_below=limit, sampling_error=sampling_error, is_claim=is_claim)
        judged = _with_dose(judged, pairs)
        numbers = f"{start}{show(values, unit, digits)}"
        if best:
            numbers += f"; at the best epochs {show(sample(pairs[best + measure]), unit, digits)}"
        numbers += end
        if judged.verdict is Verdict.NO_DIFFERENCE:
            numbers += f"; {values.reach(sampling_error):.{digits}f}{unit} would have been significant"
        yield Finding(claim, "", judged, values, numbers, remark, error=sampling_error)


def _with_dose(judged: Judged, pairs: pd.DataFrame) -> Judged:
    """A verdict, unless attention hardly did anything in one of the runs that it rests on."""
    is_judged = judged.verdict is not Verdict.NOT_ENOUGH_RUNS
    return Judged(Verdict.HARDLY_ANY_REPEATS) if is_judged and pairs["repeats"].min() < LEAST_DOSE_PERCENT else judged


def _overheads(runs: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[Finding]:
    """What attention costs, with each reading."""
    least, most = PAPER["overhead_percent"]
    for reading, of_reading in runs.groupby("reading", observed=True):
        values, compared, remark = sample(of_reading["repeats"]), pairs[pairs["reading"] == reading], _IN_UPDATES
        numbers = f"{reading}: {show(values, ' % more updates', 1, sign=False)}"
        if is_timed(compared):
            values, remark = sample(compared["more_seconds"]), ""
            numbers += f"; {show(values, ' % more seconds', 1, sign=False)}"
        judged = judge_range(values, least=least, most=most, widest=WIDEST_OVERHEAD_PERCENT)
        yield Finding("overhead", "", judged, values, numbers, remark)
