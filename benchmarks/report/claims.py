"""Every claim of the paper, and what the records say of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.report import paper
from benchmarks.report.results import OTHERS, Condition, Experiment, Row, repeats_percent
from benchmarks.report.statistics import (
    LEAST_RUNS,
    SIGNIFICANCE,
    Judged,
    Sample,
    Verdict,
    accuracy_error,
    holm,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
    variance_error,
)
from benchmarks.report.wording import show
from benchmarks.schema import Epoch

# What a verdict takes was fixed before any arms were compared; the dose and the sampling error were added since.
# A gain below half a point would not pay for the extra time.
LEAST_GAIN_POINTS = 0.5
WIDEST_OVERHEAD_PERCENT = 10.0
FEW_REPEATS_PERCENT = 5.0
# The paper leaves out models that do not fit more than half of the data.
LOW_ACCURACY_PERCENT = 50.0
# With fewer repeats there is nothing that a difference could come from.
LEAST_DOSE_PERCENT = 1.0
# The baseline has nearly converged from the first epoch on that reaches this share of its best accuracy.
NEARLY_CONVERGED = 0.95
MANY_CLASSES = 100
# A network is called overfitted if its accuracy falls by as much from its best epoch to its last.
OVERFITTED_POINTS = 2.0
_LOSSES_COMPARED = 50
_IN_UPDATES = "seconds cannot be compared, so time is counted in updates"

# Attention's run, and that of another arm with the same seed.
Pair = tuple[Row, Row]


class Finding(NamedTuple):
    """One claim, as one experiment has it.

    Attributes:
        claim: In words, with its place in the paper.
        experiment: Model and data.
        verdict: What the runs say.
        numbers: What that rests on.
        remark: What else there is to know of these numbers; may be empty.
        p: Of the limit that the verdict rests on, adjusted over all verdicts of a report; NaN where there is none.
    """

    claim: str
    experiment: str
    verdict: Verdict
    numbers: str
    remark: str
    p: float

    @property
    def is_overturned(self) -> bool:
        """Whether the verdict does not survive the correction for the number of comparisons."""
        return self.verdict in (Verdict.HOLDS, Verdict.DOES_NOT_HOLD) and self.p >= SIGNIFICANCE


class _Found(NamedTuple):
    judged: Judged
    numbers: str
    remark: str = ""


_Judge = Callable[[Experiment, Condition], Iterator[_Found]]


def judge_claims(experiments: Sequence[Experiment], epoch_loss: str = "first") -> list[Finding]:
    """A finding for every claim and every experiment that it concerns, by experiment.

    Args:
        experiments: What there is.
        epoch_loss: The reading that claims are judged by, other than those on the overhead; where an experiment has
            only others, its first.
    """
    found = [
        (claim, experiment.name, each)
        for experiment in experiments
        for claim, judge in CLAIMS.items()
        for each in judge(experiment, experiment.judged_condition(epoch_loss))
    ]
    adjusted = holm({place: each.judged.p for place, (_, _, each) in enumerate(found)})
    return [
        Finding(claim, name, each.judged.verdict, each.numbers, each.remark, adjusted.get(place, math.nan))
        for place, (claim, name, each) in enumerate(found)
    ]


class Compared(NamedTuple):
    """Attention against another arm, in one condition of one experiment.

    Attributes:
        experiment: Model and data.
        condition: Of the runs.
        other: The other arm.
        gain: In accuracy at the last epoch.
        error: The sampling error of the test set.
        verdict: Whether it is ahead (holds) or behind (does not hold).
        p: Of the gain, adjusted over all comparisons of a report.
    """

    experiment: Experiment
    condition: Condition
    other: str
    gain: Sample
    error: float
    verdict: Verdict
    p: float


def compare_arms(experiments: Sequence[Experiment]) -> list[Compared]:
    """Every condition, and every arm that attention can be compared with there."""
    found = []
    for experiment, condition in [(each, condition) for each in experiments for condition in each.conditions]:
        runs = experiment.of(condition)
        for other in OTHERS:
            if pairs := runs.pairs("attention", other):
                gain, error = runs.gain("attention", other), sampling_error(experiment, pairs)
                judged = judge_gain(gain, fails_below=0, sampling_error=error)
                verdict = _with_dose(judged, [ours for ours, _ in pairs]).verdict
                found.append(Compared(experiment, condition, other, gain, error, verdict, math.nan))
    adjusted = holm({place: each.gain.p() for place, each in enumerate(found)})
    return [each._replace(p=adjusted.get(place, math.nan)) for place, each in enumerate(found)]


def overfitted(experiment: Experiment) -> list[str]:
    """Where the baseline's mean accuracy falls from its best epoch to its last, in words."""
    said = []
    for condition in [condition for condition, arm in experiment.arms if arm == "baseline"]:
        best, last = (experiment.of(condition).values("baseline", name).mean for name in ("best_accuracy", "accuracy"))
        if best - last >= OVERFITTED_POINTS:
            noise = f" with label noise {condition.noise}" if condition.label_noise else ""
            said.append(f"{best:.0f} to {last:.0f} %{noise}")
    return said


def sampling_error(experiment: Experiment, pairs: Sequence[Pair]) -> float:
    """What the test set leaves open of a difference in accuracy at the last epoch, in points; mean over pairs."""
    images = experiment.configuration.data.test_images
    return float(np.mean([accuracy_error([row.accuracy for row in pair], images) for pair in pairs]))


def repeats_before_convergence(attention: Sequence[Epoch], baseline: Sequence[Epoch]) -> float:
    """Attention's repeats, in per cent of batches, in the epochs before the baseline has nearly converged.

    Without the first epoch, in which nothing can repeat; NaN where no epoch is left.
    """
    converged = NEARLY_CONVERGED * max(epoch.accuracy for epoch in baseline)
    first = next(index for index, epoch in enumerate(baseline) if epoch.accuracy >= converged)
    return repeats_percent(attention[1:first]) if attention[1:first] else math.nan


def gain_at_same_loss(attention: Sequence[Epoch], baseline: Sequence[Epoch]) -> float:
    """The gain in accuracy, in points: the mean over training losses that both went through.

    Accuracy is interpolated between epochs, sorted by loss; NaN where the arms have no loss in common.
    """
    curves = [
        sorted((epoch.train_loss, epoch.accuracy) for epoch in epochs if epoch.train_loss is not None)
        for epochs in (attention, baseline)
    ]
    if not all(curves):
        return math.nan
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    losses = np.linspace(low, high, _LOSSES_COMPARED)
    ours, theirs = (np.interp(losses, *np.transpose(curve)) for curve in curves)
    return float(100 * np.mean(ours - theirs)) if low <= high else math.nan


def gain_at_same_cost(attention: Sequence[Epoch], baseline: Sequence[Epoch], cost: str) -> float:
    """Accuracy at attention's last epoch within the baseline's whole cost, minus the baseline's last, in points.

    That is the paper's comparison of a curve that is shifted by the overhead. ``cost`` is "seconds" or "updates".
    """
    budget = sum(getattr(epoch, cost) for epoch in baseline)
    spent = itertools.accumulate(getattr(epoch, cost) for epoch in attention)
    in_time = [epoch for epoch, total in zip(attention, spent, strict=True) if total <= budget]
    return 100 * (in_time[-1].accuracy - baseline[-1].accuracy) if in_time else math.nan


def more_seconds(attention: Sequence[Epoch], baseline: Sequence[Epoch]) -> float:
    """Attention's training time over the baseline's, in per cent more."""
    return 100 * (sum(epoch.seconds for epoch in attention) / sum(epoch.seconds for epoch in baseline) - 1)


def _with_dose(judged: Judged, rows: Sequence[Row]) -> Judged:
    """A verdict, unless attention hardly did anything in one of the runs that it rests on."""
    is_too_little = any(row.repeats < LEAST_DOSE_PERCENT for row in rows)
    if is_too_little and judged.verdict is not Verdict.NOT_ENOUGH_RUNS:
        return Judged(Verdict.HARDLY_ANY_REPEATS)
    return judged


def _judge(
    values: Sample,
    rows: Sequence[Row],
    numbers: str,
    error: float,
    remark: str = "",
    *,
    digits: int = 2,
    **limit: float,
) -> _Found:
    """A finding on differences; where they are not significant, it says which would have been, with as many runs."""
    judged = _with_dose(judge_gain(values, sampling_error=error, **limit), rows)  # type: ignore[arg-type]
    if judged.verdict is Verdict.NO_DIFFERENCE:
        numbers += f"; {values.reach(error):.{digits}f} would have been significant"
    return _Found(judged, numbers, remark)


def _gain(
    experiment: Experiment, condition: Condition, other: str, measure: str = "accuracy", claimed: float | None = None
) -> Iterator[_Found]:
    """Attention against another arm: is it ahead, or by so many points?"""
    runs = experiment.of(condition)
    if pairs := runs.pairs("attention", other):
        last, best = (runs.gain("attention", other, name) for name in (measure, f"best_{measure}"))
        numbers = f"{show(last, ' points')}; at the best epochs {show(best, ' points')}"
        limit = {"fails_below": LEAST_GAIN_POINTS} if claimed is None else {"fails_below": claimed, "is_claim": True}
        yield _judge(last, [ours for ours, _ in pairs], numbers, sampling_error(experiment, pairs), **limit)


def _has_many_classes(experiment: Experiment) -> bool:
    return len(experiment.configuration.data.classes) >= MANY_CLASSES


def _gain_of(measure: str) -> _Judge:
    def judge(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
        if not _has_many_classes(experiment):
            yield from _gain(experiment, condition, "baseline", measure, claimed=paper.GAIN_POINTS[0])

    return judge


def _gain_with_many_classes(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    if _has_many_classes(experiment):
        yield from _gain(experiment, condition, "baseline")


def _ahead_of(other: str) -> _Judge:
    return lambda experiment, condition: _gain(experiment, condition, other)


def _judge_curves(
    experiment: Experiment, condition: Condition, compare: Callable[..., float], remark: str
) -> Iterator[_Found]:
    """Is attention ahead by a comparison of its epochs with the baseline's? NaN is a pair that cannot be compared."""
    pairs = experiment.of(condition).pairs("attention", "baseline")
    gains = [(pair, gain) for pair in pairs if not math.isnan(gain := compare(pair[0].epochs, pair[1].epochs))]
    if gains:
        compared, values = [pair for pair, _ in gains], sample([gain for _, gain in gains])
        error, ours = sampling_error(experiment, compared), [ours for ours, _ in compared]
        yield _judge(values, ours, show(values, " points"), error, remark, fails_below=LEAST_GAIN_POINTS)


def _same_loss(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    remark = "" if condition.epoch_loss == "first" else "the arms' training losses are not of the same visits"
    yield from _judge_curves(experiment, condition, gain_at_same_loss, remark)


def _same_time(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    cost, remark = ("seconds", "") if experiment.is_timed(condition) else ("updates", _IN_UPDATES)
    yield from _judge_curves(experiment, condition, lambda *pair: gain_at_same_cost(*pair, cost), remark)


def _overhead(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    for each in [each for each in experiment.conditions if each.label_noise == condition.label_noise]:
        runs = experiment.of(each)
        values, remark = runs.values("attention", "repeats"), _IN_UPDATES
        numbers = f"{each.epoch_loss}: {show(values, ' % more updates', 1, sign=False)}"
        if experiment.is_timed(each):
            pairs = runs.pairs("attention", "baseline")
            values, remark = sample([more_seconds(ours.epochs, theirs.epochs) for ours, theirs in pairs]), ""
            numbers += f"; {show(values, ' % more seconds', 1, sign=False)}"
        least, most = paper.OVERHEAD_PERCENT
        yield _Found(judge_range(values, least=least, most=most, widest=WIDEST_OVERHEAD_PERCENT), numbers, remark)


def _few_repeats_at_first(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    pairs = experiment.of(condition).pairs("attention", "baseline")
    found = [repeats_before_convergence(ours.epochs, theirs.epochs) for ours, theirs in pairs]
    values = sample([each for each in found if not math.isnan(each)])
    if values.n:
        judged = _with_dose(judge_at_most(values, most=FEW_REPEATS_PERCENT), [ours for ours, _ in pairs])
        yield _Found(judged, show(values, " % repeats before", 1, sign=False))


def _lower_variance(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    pairs = experiment.of(condition).pairs("attention", "baseline")
    if pairs and not _has_many_classes(experiment):
        last = sample([np.var(theirs.wrong) - np.var(ours.wrong) for ours, theirs in pairs])
        best = sample([np.var(theirs.best_wrong) - np.var(ours.best_wrong) for ours, theirs in pairs])
        error = float(np.mean([math.hypot(*(variance_error(row.wrong) for row in pair)) for pair in pairs]))
        numbers = f"lower by {show(last, '', 0)}; at the best epochs {show(best, '', 0)}"
        yield _judge(last, [ours for ours, _ in pairs], numbers, error, digits=0, fails_below=0)


def _noisy(experiment: Experiment, condition: Condition) -> list[Condition]:
    noisy = [each for each in experiment.conditions if each.label_noise and each.epoch_loss == condition.epoch_loss]
    return [each for each in noisy if experiment.of(each).pairs("attention", "baseline")]


def _ahead_under_noise(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    for noisy in _noisy(experiment, condition):
        for found in _gain(experiment, noisy, "baseline"):
            yield found._replace(numbers=f"{noisy.noise}: {found.numbers}")


def _less_ahead_with_more_noise(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    for less, more in itertools.pairwise([condition, *_noisy(experiment, condition)]):
        before, after = (
            {ours.seed: (ours, theirs) for ours, theirs in experiment.of(each).pairs("attention", "baseline")}
            for each in (less, more)
        )
        if seeds := sorted(before.keys() & after.keys()):
            both = [[of_seed[seed] for seed in seeds] for of_seed in (before, after)]
            gains = [[ours.accuracy - theirs.accuracy for ours, theirs in pairs] for pairs in both]
            values = sample([one - other for one, other in zip(*gains, strict=True)])
            error = math.hypot(*(sampling_error(experiment, pairs) for pairs in both))
            numbers = f"{less.label_noise} to {more.noise}: the gain shrinks by {show(values, ' points')}"
            yield _judge(values, [ours for pairs in both for ours, _ in pairs], numbers, error, fails_below=0)


def _harmful_where_low(experiment: Experiment, condition: Condition) -> Iterator[_Found]:
    pairs = experiment.of(condition).pairs("attention", "baseline")
    baseline = sample([theirs.accuracy for _, theirs in pairs])
    if pairs and baseline.mean < LOW_ACCURACY_PERCENT:
        gains = experiment.of(condition).gain("attention", "baseline")
        numbers = f"{show(gains, ' points')}, with the baseline at {baseline.mean:.1f} %"
        harm, error = sample([-gain for gain in gains.values]), sampling_error(experiment, pairs)
        yield _judge(harm, [ours for ours, _ in pairs], numbers, error, fails_below=LEAST_GAIN_POINTS)


CLAIMS: dict[str, _Judge] = {
    "Accuracy is up by 2 to 3 points on CIFAR-10 (section 4.2)": _gain_of("accuracy"),
    "Macro-F1 is up by 2 to 3 points on CIFAR-10 (section 4.2)": _gain_of("macro_f1"),
    "Accuracy is up, by less, on CIFAR-100 (section 4.3)": _gain_with_many_classes,
    "Accuracy is higher at the same training loss (section 4.2, figure 5)": _same_loss,
    "Training takes 15 to 20 % longer (section 4.2 and conclusion)": _overhead,
    "It is ahead after the same training time (section 4.2 and conclusion)": _same_time,
    "There are almost no repeats until the baseline has nearly converged (conclusion)": _few_repeats_at_first,
    "Wrong predictions vary less over the predicted classes (section 4.4, table 2)": _lower_variance,
    "It is ahead with label noise too (section 4.5, figure 8)": _ahead_under_noise,
    "It is ahead by less as noise grows (section 4.5)": _less_ahead_with_more_noise,
    "It does harm where the baseline's accuracy is low (section 4.1 and conclusion)": _harmful_where_low,
    "Not in the paper: it is ahead of as many repeats of random batches": _ahead_of("random"),
    "Not in the paper: it is ahead of plain training for as many updates": _ahead_of("longer"),
}

RULES = (
    "A verdict rests on differences paired by seed, at the last epoch, and their 95 % t interval, from at least "
    f"{LEAST_RUNS} seeds (else: not enough runs) in which attention's repeats are at least {LEAST_DOSE_PERCENT:g} % of "
    "batches (else: hardly any repeats). The interval that is judged reaches at least as far as the sampling error of "
    "the test set: one standard error of a difference of two accuracies, each on as many images of its own.",
    '"Up by 2 to 3 points" holds if the interval is above 0 and reaches 2, and does not hold if it ends below 2. '
    f'"Ahead" or "higher" holds if the interval is above 0, and does not hold if it ends below {LEAST_GAIN_POINTS:g} '
    '(a lower variance or a shrinking gain: 0), and "harm" the other way round, where the baseline is below '
    f"{LOW_ACCURACY_PERCENT:g} %. The same training loss is the mean over losses that both arms went through, "
    "interpolated between epochs; the same training time is attention's last whole epoch within all of the baseline's "
    "time. An overhead is in the paper's range if the interval touches it and is at most "
    f'{WIDEST_OVERHEAD_PERCENT:g} points wide. "Almost no repeats" holds if the interval is at most '
    f"{FEW_REPEATS_PERCENT:g} % of batches, from the second epoch to where the baseline first has "
    f"{100 * NEARLY_CONVERGED:g} % of its best test accuracy, and does not hold if it is above.",
    "Each verdict is by its own 95 % interval. Its p is of a two-sided t-test against the limit that it rests on, "
    "adjusted by Holm's method over all verdicts of this report that rest on one. A verdict with p of "
    f"{SIGNIFICANCE:.2g} or more does not survive the correction.",
)
