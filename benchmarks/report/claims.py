"""Every claim of the paper, and what the records say about it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks.report import paper
from benchmarks.report.comparisons import (
    NEARLY_CONVERGED,
    accuracy_at_same_cost,
    accuracy_at_same_loss,
    overhead_before_convergence,
    pairs,
    seconds_overhead,
)
from benchmarks.report.results import (
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
    LEAST_RUNS,
    Sample,
    Verdict,
    judge_above,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
)
from benchmarks.schema import Arm

# These were chosen before any record was looked at. A gain below half a point would not pay for the extra time.
LEAST_GAIN_POINTS = 0.5
WIDEST_OVERHEAD_PERCENT = 10.0
FEW_REPEATS_PERCENT = 5.0
# The paper leaves out models that do not fit more than half of the data.
LOW_ACCURACY_PERCENT = 50.0

RULES = (
    f"A verdict rests on paired differences by seed, at the last epoch, and their 95 % t interval, from at least "
    f'{LEAST_RUNS} seeds. "Up by {paper.GAIN_POINTS[0]:g} to {paper.GAIN_POINTS[1]:g} points" holds if the interval is '
    f"above 0 and reaches {paper.GAIN_POINTS[0]:g}, and does not hold if it ends below {paper.GAIN_POINTS[0]:g}. "
    f'"Ahead" or "higher" holds if the interval is above 0, and does not hold if it ends below {LEAST_GAIN_POINTS:g} '
    'points (a lower variance or a shrinking lead: 0), and "harm" the other way round, where the baseline is below '
    f"{LOW_ACCURACY_PERCENT:g} %. The same training loss is the mean over losses that both arms went through, "
    "interpolated between epochs; the same training time is attention's last whole epoch within all of the baseline's "
    "time. An overhead is in the paper's range if the interval touches it and is at most "
    f'{WIDEST_OVERHEAD_PERCENT:g} points wide. "Almost no repeats" holds if the interval is at most '
    f"{FEW_REPEATS_PERCENT:g} % of batches, from the second epoch to where the baseline first has "
    f"{100 * NEARLY_CONVERGED:g} % of its best test accuracy, and does not hold if it is above. Everything else is "
    '"not enough runs". These rules were fixed before the arms were compared.'
)
_IN_UPDATES = "seconds cannot be compared, so time is counted in updates"


class Finding(NamedTuple):
    """One claim, as one experiment has it.

    Attributes:
        claim: In words, with its place in the paper.
        experiment: Model and data; empty where no record has to do with the claim.
        verdict: What the runs say.
        numbers: What that rests on.
        caveat: In what the experiment is less than the paper's, or another; empty where it is the same.
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
    """A finding for every claim and every experiment that has to do with it.

    Args:
        experiments: What there is.
        epoch_loss: The reading that claims are judged by, other than those about the overhead; where an experiment
            has only others, its first.
    """
    findings: list[Finding] = []
    for claim, judge in _CLAIMS.items():
        found: list[Finding] = []
        for experiment in experiments:
            for judged in judge(experiment, clean_condition(experiment, epoch_loss)):
                caveat = ", ".join([*experiment.reductions, *filter(None, [judged.caveat])])
                found.append(Finding(claim, experiment.name, judged.verdict, judged.numbers, caveat))
        findings += found or [Finding(claim, "", Verdict.NOT_ENOUGH_RUNS, "no runs that it applies to", "")]
    return findings


def clean_condition(experiment: Experiment, epoch_loss: str) -> Condition:
    """The condition without label noise, and with the reading asked for if there is one, that claims are judged by."""
    readings = [condition.epoch_loss for condition in experiment.conditions()]
    reading = next((each for each in readings if each == epoch_loss), readings[0] if readings else "first")
    return Condition(reading, 0)


def show(values: Sample, unit: str, digits: int = 2, *, sign: bool = True) -> str:
    """A mean with its interval and n, as text."""
    if not values.n:
        return "no runs"
    plus = "+" if sign else ""
    low, high = values.interval
    interval = "" if math.isinf(low) else f" ({low:{plus}.{digits}f} to {high:{plus}.{digits}f})"
    return f"{values.mean:{plus}.{digits}f}{unit}{interval}, n = {values.n}"


def _has_many_classes(experiment: Experiment) -> bool:
    return len(experiment.configuration.data.classes) >= 100


def _gain(measure: Callable[[str], Measure]) -> _Judge:
    def judge(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
        if _has_many_classes(experiment) or not pairs(experiment, condition, "baseline"):
            return
        last = experiment.differences(condition, "baseline", measure("last"))
        best = experiment.differences(condition, "baseline", measure("best"))
        numbers = f"{show(last, ' points')}; at the best epochs {show(best, ' points')}"
        yield _Judged(judge_gain(last, claimed=paper.GAIN_POINTS[0]), numbers)

    return judge


def _gain_with_many_classes(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    if not _has_many_classes(experiment) or not pairs(experiment, condition, "baseline"):
        return
    last = experiment.differences(condition, "baseline", accuracy("last"))
    best = experiment.differences(condition, "baseline", accuracy("best"))
    numbers = f"{show(last, ' points')}; at the best epochs {show(best, ' points')}"
    yield _Judged(judge_above(last, least_gain=LEAST_GAIN_POINTS), numbers)


def _ahead_of(other: Arm) -> _Judge:
    def judge(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
        if not pairs(experiment, condition, other):
            return
        last = experiment.differences(condition, other, accuracy("last"))
        best = experiment.differences(condition, other, accuracy("best"))
        numbers = f"{show(last, ' points')}; at the best epochs {show(best, ' points')}"
        yield _Judged(judge_above(last, least_gain=LEAST_GAIN_POINTS), numbers)

    return judge


def _same_loss(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    values = _comparable([accuracy_at_same_loss(*pair) for pair in pairs(experiment, condition, "baseline")])
    if values.n:
        caveat = "" if condition.epoch_loss == "first" else "the arms' training losses are not of the same visits"
        yield _Judged(judge_above(values, least_gain=LEAST_GAIN_POINTS), show(values, " points"), caveat)


def _comparable(values: Sequence[float]) -> Sample:
    """Those that are numbers: NaN stands for a pair of runs that cannot be compared so."""
    return sample([value for value in values if not math.isnan(value)])


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
        yield _Judged(judge_range(values, least=least, most=most, widest=WIDEST_OVERHEAD_PERCENT), numbers, caveat)


def _same_time(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    is_timed = experiment.is_timed(("baseline", "attention"), condition)
    of_seeds = pairs(experiment, condition, "baseline")
    values = _comparable([accuracy_at_same_cost(*pair, in_seconds=is_timed) for pair in of_seeds])
    if values.n:
        verdict = judge_above(values, least_gain=LEAST_GAIN_POINTS)
        yield _Judged(verdict, show(values, " points"), "" if is_timed else _IN_UPDATES)


def _few_repeats_at_first(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    values = _comparable([overhead_before_convergence(*pair) for pair in pairs(experiment, condition, "baseline")])
    if values.n:
        numbers = show(values, " % repeats before", 1, sign=False)
        yield _Judged(judge_at_most(values, most=FEW_REPEATS_PERCENT), numbers)


def _lower_variance(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    if _has_many_classes(experiment):
        return
    seeds = experiment.seeds(("baseline", "attention"), condition)
    if not seeds:
        return
    lowered = {
        at: sample(
            [
                variance(wrong_predictions(experiment.run_of("baseline", condition, seed), at))
                - variance(wrong_predictions(experiment.run_of("attention", condition, seed), at))
                for seed in seeds
            ]
        )
        for at in ("last", "best")
    }
    numbers = f"lower by {show(lowered['last'], '', 0)}; at the best epochs {show(lowered['best'], '', 0)}"
    yield _Judged(judge_above(lowered["last"], least_gain=0), numbers)


def _ahead_under_noise(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    for noisy in _noisy(experiment, condition):
        last = experiment.differences(noisy, "baseline", accuracy("last"))
        best = experiment.differences(noisy, "baseline", accuracy("best"))
        numbers = f"{noisy.label_noise} of 32: {show(last, ' points')}; at the best epochs {show(best, ' points')}"
        yield _Judged(judge_above(last, least_gain=LEAST_GAIN_POINTS), numbers)


def _less_ahead_with_more_noise(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    for less, more in itertools.pairwise([condition, *_noisy(experiment, condition)]):
        arms: tuple[Arm, Arm] = ("baseline", "attention")
        seeds = sorted(set(experiment.seeds(arms, less)) & set(experiment.seeds(arms, more)))
        if not seeds:
            continue
        gains = [
            [
                accuracy("last")(experiment.epochs_of("attention", each, seed))
                - accuracy("last")(experiment.epochs_of("baseline", each, seed))
                for seed in seeds
            ]
            for each in (less, more)
        ]
        values = sample([before - after for before, after in zip(*gains, strict=True)])
        numbers = f"{less.label_noise} to {more.label_noise} of 32: the lead shrinks by {show(values, ' points')}"
        yield _Judged(judge_above(values, least_gain=0), numbers)


def _noisy(experiment: Experiment, condition: Condition) -> list[Condition]:
    return [
        each
        for each in experiment.conditions()
        if each.label_noise > 0 and each.epoch_loss == condition.epoch_loss and pairs(experiment, each, "baseline")
    ]


def _harmful_where_low(experiment: Experiment, condition: Condition) -> Iterator[_Judged]:
    of_pairs = pairs(experiment, condition, "baseline")
    baseline = sample([accuracy("last")(epochs) for epochs, _ in of_pairs])
    if not baseline.n or baseline.mean >= LOW_ACCURACY_PERCENT:
        return
    differences = experiment.differences(condition, "baseline", accuracy("last"))
    harm = sample([-value for value in differences.values])
    numbers = f"{show(differences, ' points')}, with the baseline at {baseline.mean:.1f} %"
    yield _Judged(judge_above(harm, least_gain=LEAST_GAIN_POINTS), numbers)


_CLAIMS: dict[str, _Judge] = {
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
    "*Not in the paper:* it is ahead of as many repeats of random batches": _ahead_of("random"),
    "*Not in the paper:* it is ahead of plain training for as many updates": _ahead_of("longer"),
}
