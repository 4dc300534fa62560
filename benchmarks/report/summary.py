"""The whole of a report in five sentences, for somebody who reads no tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.report import paper, rules
from benchmarks.report.claims import clean_condition
from benchmarks.report.comparisons import pairs, sampling_error
from benchmarks.report.results import Condition, Experiment, accuracy, overhead_percent
from benchmarks.report.statistics import LEAST_RUNS, Sample
from benchmarks.schema import Arm

_AHEAD, _BEHIND, _LEVEL, _LITTLE, _FEW = range(5)
_JUDGED = {_AHEAD: "ahead", _BEHIND: "behind", _LEVEL: "not told apart"}
_NOT_JUDGED = {_LITTLE: "it hardly repeats anything", _FEW: f"fewer than {LEAST_RUNS} seeds were run"}


def summarize(experiments: Sequence[Experiment], epoch_loss: str = "first") -> list[str]:
    """Five sentences."""
    shown = [(each, clean_condition(each, epoch_loss)) for each in experiments]
    shown = [(each, condition) for each, condition in shown if condition in each.conditions()]
    runs = sum(len(experiment.runs) for experiment in experiments)
    names = "; ".join(experiment.name for experiment in experiments)
    return [
        f"{runs} runs ({names}) compare Batch-attention with plain training, with as many repeats of random batches, "
        "and with plain training for as many updates, from the same initial weights and in the same order.",
        f"Against plain training, Batch-attention is {_standings(shown, 'baseline')}; the paper has "
        f"{paper.GAIN_POINTS[0]:g} to {paper.GAIN_POINTS[1]:g} points more on CIFAR-10.",
        "What choosing the batches by their loss is worth: against as many repeats of random batches, Batch-attention "
        f"is {_standings(shown, 'random')}.",
        f"It makes {_overheads(shown)} more updates; the paper has {paper.OVERHEAD_PERCENT[0]:g} to "
        f"{paper.OVERHEAD_PERCENT[1]:g} % more time.",
        _limits(experiments),
    ]


def _standings(shown: Sequence[tuple[Experiment, Condition]], other: Arm) -> str:
    found: Counter[int] = Counter()
    means: list[float] = []
    for experiment, condition in shown:
        compared = pairs(experiment, condition, other)
        if compared:
            differences = experiment.differences(condition, other, accuracy("last"))
            doses = [overhead_percent(attention) for _, attention in compared]
            stand = _stand(differences, min(doses), sampling_error(experiment, compared))
            found[stand] += 1
            if stand in _JUDGED:
                means.append(differences.mean)
    if not found:
        return "not compared"
    total = sum(found.values())
    counted = ", ".join(f"{text} in {found[stand]}" for stand, text in _JUDGED.items() if found[stand])
    counted = f"{counted or 'judged in none'} of {total} {'experiments' if total > 1 else 'experiment'}"
    if means:
        reach = f"{means[0]:+.2f}" if len(means) == 1 else f"{min(means):+.2f} to {max(means):+.2f}"
        counted += f" ({reach} points of accuracy at the last epoch)"
    return "".join([counted, *(f"; in {found[stand]} {text}" for stand, text in _NOT_JUDGED.items() if found[stand])])


def _stand(differences: Sample, dose: float, error: float) -> int:
    if differences.n < LEAST_RUNS:
        return _FEW
    if dose < rules.LEAST_DOSE_PERCENT:
        return _LITTLE
    reach = differences.reach(error)
    return _AHEAD if differences.mean > reach else _BEHIND if -differences.mean > reach else _LEVEL


def _overheads(shown: Sequence[tuple[Experiment, Condition]]) -> str:
    means = [experiment.measure("attention", condition, overhead_percent).mean for experiment, condition in shown]
    if not means:
        return "no"
    return f"{means[0]:.1f} %" if len(means) == 1 else f"{min(means):.1f} to {max(means):.1f} %"


def _limits(experiments: Sequence[Experiment]) -> str:
    reduced = [experiment for experiment in experiments if experiment.reductions]
    if not reduced:
        return "All of this is at the paper's own size and settings."
    amount = "All of this" if len(reduced) == len(experiments) else f"{len(reduced)} of {len(experiments)} experiments"
    is_one = len(reduced) in (1, len(experiments))
    neither = "it neither confirms nor refutes" if is_one else "they neither confirm nor refute"
    return (
        f"{amount} {'is' if is_one else 'are'} at reduced size (each experiment says below what was reduced), so "
        f"{neither} the paper's figures; what a number of seeds leaves open stands beside each verdict."
    )
