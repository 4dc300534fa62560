"""Every claim of the paper, and what the records say about it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.report import paper, rules
from benchmarks.report.comparisons import (
    Pair,
    accuracy_at_same_cost,
    accuracy_at_same_loss,
    overhead_before_convergence,
    pairs,
    sampling_error,
    seconds_overhead,
)
from benchmarks.report.results import (
    At,
    Condition,
    Experiment,
    Measure,
    accuracy,
    macro_f1,
    overhead_percent,
    variance,
    wrong_predictions,
)
from benchmarks.report.statistics import (
    Sample,
    Verdict,
    judge_above,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
    variance_error,
)
from benchmarks.report.wording import show, what_would_have_shown
from benchmarks.schema import Arm

_IN_UPDATES = "seconds cannot be compared, so time is counted in updates"


class Finding(NamedTuple):
    """One claim, as one experiment has it.

    Attributes:
        claim: In words, with its place in the paper.
        experiment: Model and data.
        verdict: What the runs say.
        numbers: What that rests on.
        caveat: What is to be known of these numbers beside what was reduced; may be empty.
    """

    claim: str
    experiment: str
    verdict: Verdict
    numbers: str
    caveat: str


class _Judged(NamedTuple):
    verdict: Verdict
    numbers: str
    caveat: str = ""


_Judge = Callable[[Experiment, Condition], Iterator[_Judged]]


def judge_claims(experiments: Sequence[Experiment], epoch_loss: str = "first") -> list[Finding]:
    """A finding for every claim and every experiment that has to do with it, by experiment.

    Args:
        experiments: What there is.
        epoch_loss: The reading that claims are judged by, other than those about the overhead; where an experiment
            has only others, its first.
    """
    return [
        Finding(claim, experiment.name, *judged)
        for experiment in experiments
        for claim, judge in CLAIMS.items()
        for judged in judge(experiment, clean_condition(experiment, epoch_loss))
    ]


def clean_condition(experiment: Experiment, epoch_loss: str) -> Condition:
    """The condition without label noise, and with the reading asked for if there is one, that claims are judged by."""
    readings = [condition.epoch_loss for condition in experiment.conditions()]
    reading = next((each for each in readings if each == epoch_loss), readings[0] if readings else "first")
    return Condition(reading, 0)


def _with_dose(verdict: Verdict, compared: Sequence[Pair]) -> Verdict:
    """A verdict, unless attention hardly did anything in one of the runs that it rests on."""
    is_too_little = any(overhead_percent(attention) < rules.LEAST_DOSE_PERCENT for _, attention in compared)
    return Verdict.HARDLY_ANY_REPEATS if is_too_little and verdict is not Verdict.NOT_ENOUGH_RUNS else verdict


def _has_many_classes(experiment: Experiment) -> bool:
    return len(experiment.configuration.data.classes) >= 100


def _lead(
    experiment: Experiment,
    condition: Condition,
    other: Arm,
    measure: Callable[[str], Measure],
    claimed: float | None = None,
) -> _Judged:
    """Attention against another arm: is it ahead, or by so many points?"""
    last = experiment.differences(condition, other, measure("last"))
    best = experiment.differences(condition, other, measure("best"))
    compared = pairs(experiment, condition, other)
    error = sampling_error(experiment, compared)
    if claimed is None:
        verdict = judge_above(last, least_gain=rules.LEAST_GAIN_POINTS, sampling_error=error)
    else:
        verdict = judge_gain(last, claimed=claimed, sampling_error=error)
    verdict = _with_dose(verdict, compared)
    numbers = f"{show(last, ' points')}; at the best epochs {show(best, ' points')}"
    return _Judged(verdict, numbers + what_would_have_shown(verdict, last, error, " points"))


def _gain(measure: Callable[[str], Measure]) -> _Judge:
    def judge(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
        if not _has_many_classes(experiment) and pairs(experiment, condition, "baseline"):
            yield _lead(experiment, condition, "baseline", measure, claimed=paper.GAIN_POINTS[0])

    return judge


def _gain_with_many_classes(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    if _has_many_classes(experiment) and pairs(experiment, condition, "baseline"):
        yield _lead(experiment, condition, "baseline", accuracy)  # type: ignore[arg-type]


def _ahead_of(other: Arm) -> _Judge:
    def judge(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
        if pairs(experiment, condition, other):
            yield _lead(experiment, condition, other, accuracy)  # type: ignore[arg-type]

    return judge


def _judge_pairs(
    experiment: Experiment, condition: Condition, compare: Callable[[Pair], float], caveat: str
) -> Iterator[_Judged]:
    """Is attention ahead by a comparison of each pair with the baseline? NaN is a pair that cannot be compared so."""
    found = [(pair, compare(pair)) for pair in pairs(experiment, condition, "baseline")]
    found = [(pair, value) for pair, value in found if not math.isnan(value)]
    if not found:
        return
    compared, values = [pair for pair, _ in found], sample([value for _, value in found])
    error = sampling_error(experiment, compared)
    verdict = judge_above(values, least_gain=rules.LEAST_GAIN_POINTS, sampling_error=error)
    verdict = _with_dose(verdict, compared)
    shown = show(values, " points") + what_would_have_shown(verdict, values, error, " points")
    yield _Judged(verdict, shown, caveat)


def _same_loss(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    caveat = "" if condition.epoch_loss == "first" else "the arms' training losses are not of the same visits"
    yield from _judge_pairs(experiment, condition, lambda pair: accuracy_at_same_loss(*pair), caveat)


def _same_time(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    is_timed = experiment.is_timed(("baseline", "attention"), condition)

    def compare(pair: Pair) -> float:
        return accuracy_at_same_cost(*pair, in_seconds=is_timed)

    yield from _judge_pairs(experiment, condition, compare, "" if is_timed else _IN_UPDATES)


def _overhead(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    least, most = paper.OVERHEAD_PERCENT
    for each in experiment.conditions():
        if each.label_noise != condition.label_noise:
            continue
        extra_updates = experiment.measure("attention", each, overhead_percent)
        numbers = f"{each.epoch_loss}: {show(extra_updates, ' % more updates', 1, sign=False)}"
        values, caveat = extra_updates, _IN_UPDATES
        if experiment.is_timed(("baseline", "attention"), each):
            values = sample([seconds_overhead(*pair) for pair in pairs(experiment, each, "baseline")])
            numbers += f"; {show(values, ' % more seconds', 1, sign=False)}"
            caveat = ""
        verdict = judge_range(values, least=least, most=most, widest=rules.WIDEST_OVERHEAD_PERCENT)
        yield _Judged(verdict, numbers, caveat)


def _few_repeats_at_first(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    compared = pairs(experiment, condition, "baseline")
    values = [overhead_before_convergence(*pair) for pair in compared]
    shares = sample([value for value in values if not math.isnan(value)])
    if shares.n:
        verdict = _with_dose(judge_at_most(shares, most=rules.FEW_REPEATS_PERCENT), compared)
        yield _Judged(verdict, show(shares, " % repeats before", 1, sign=False))


def _lower_variance(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    seeds = experiment.seeds(("baseline", "attention"), condition)
    if _has_many_classes(experiment) or not seeds:
        return

    def wrong(arm: Arm, at: At) -> list[list[int]]:
        return [wrong_predictions(experiment.run_of(arm, condition, seed), at).tolist() for seed in seeds]

    def lowered(at: At) -> Sample:
        both = zip(wrong("baseline", at), wrong("attention", at), strict=True)
        return sample([variance(theirs) - variance(ours) for theirs, ours in both])

    last = lowered("last")
    both = zip(wrong("baseline", "last"), wrong("attention", "last"), strict=True)
    error = statistics.fmean(math.hypot(variance_error(theirs), variance_error(ours)) for theirs, ours in both)
    verdict = judge_above(last, least_gain=0, sampling_error=error)
    verdict = _with_dose(verdict, pairs(experiment, condition, "baseline"))
    numbers = f"lower by {show(last, '', 0)}; at the best epochs {show(lowered('best'), '', 0)}"
    yield _Judged(verdict, numbers + what_would_have_shown(verdict, last, error, "", 0))


def _ahead_under_noise(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    for noisy in _noisy(experiment, condition):
        judged = _lead(experiment, noisy, "baseline", accuracy)  # type: ignore[arg-type]
        yield judged._replace(numbers=f"{noisy.label_noise} of 32: {judged.numbers}")


def _less_ahead_with_more_noise(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    arms: tuple[Arm, Arm] = ("baseline", "attention")
    for less, more in itertools.pairwise([condition, *_noisy(experiment, condition)]):
        seeds = sorted(set(experiment.seeds(arms, less)) & set(experiment.seeds(arms, more)))
        if not seeds:
            continue
        compared: list[list[Pair]] = [
            [(experiment.epochs_of(arms[0], each, seed), experiment.epochs_of(arms[1], each, seed)) for seed in seeds]
            for each in (less, more)
        ]
        gains = [
            [accuracy("last")(attention) - accuracy("last")(baseline) for baseline, attention in of_noise]
            for of_noise in compared
        ]
        values = sample([before - after for before, after in zip(*gains, strict=True)])
        error = math.hypot(*(sampling_error(experiment, of_noise) for of_noise in compared))
        verdict = judge_above(values, least_gain=0, sampling_error=error)
        verdict = _with_dose(verdict, [*compared[0], *compared[1]])
        numbers = f"{less.label_noise} to {more.label_noise} of 32: the lead shrinks by {show(values, ' points')}"
        yield _Judged(verdict, numbers + what_would_have_shown(verdict, values, error, " points"))


def _noisy(experiment: Experiment, condition: Condition) -> list[Condition]:
    return [
        each
        for each in experiment.conditions()
        if each.label_noise > 0 and each.epoch_loss == condition.epoch_loss and pairs(experiment, each, "baseline")
    ]


def _harmful_where_low(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    compared = pairs(experiment, condition, "baseline")
    baseline = sample([accuracy("last")(epochs) for epochs, _ in compared])
    if not baseline.n or baseline.mean >= rules.LOW_ACCURACY_PERCENT:
        return
    differences = experiment.differences(condition, "baseline", accuracy("last"))
    error = sampling_error(experiment, compared)
    harm = sample([-value for value in differences.values])
    verdict = judge_above(harm, least_gain=rules.LEAST_GAIN_POINTS, sampling_error=error)
    verdict = _with_dose(verdict, compared)
    numbers = f"{show(differences, ' points')}, with the baseline at {baseline.mean:.1f} %"
    yield _Judged(verdict, numbers + what_would_have_shown(verdict, harm, error, " points"))


CLAIMS: dict[str, _Judge] = {
    "Accuracy is up by 2 to 3 points on CIFAR-10 (section 4.2)": _gain(accuracy),  # type: ignore[arg-type]
    "Macro-F1 is up by 2 to 3 points on CIFAR-10 (section 4.2)": _gain(macro_f1),  # type: ignore[arg-type]
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
