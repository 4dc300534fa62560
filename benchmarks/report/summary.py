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
    """Five sentences. Those that judge name the condition that they judge, and give the range over all others too."""
    shown = [(each, clean_condition(each, epoch_loss)) for each in experiments]
    shown = [(each, condition) for each, condition in shown if condition in each.conditions()]
    every = [(each, condition) for each in experiments for condition in each.conditions()]
    runs = sum(len(experiment.runs) for experiment in experiments)
    names = "; ".join(experiment.name for experiment in experiments)
    where = _condition(shown, epoch_loss)
    return [
        f"{runs} runs ({names}) compare Batch-attention with plain training, with as many repeats of random batches, "
        "and with plain training for as many updates, from the same initial weights and in the same order.",
        f"Against plain training, {where}, Batch-attention is {_standings(shown, 'baseline')}"
        f"{_all_differences(shown, every, 'baseline')}; the paper has "
        f"{paper.GAIN_POINTS[0]:g} to {paper.GAIN_POINTS[1]:g} points more on CIFAR-10.",
        f"What choosing the batches by their loss is worth: against as many repeats of random batches, {where}, "
        f"Batch-attention is {_standings(shown, 'random')}{_all_differences(shown, every, 'random')}.",
        f"It makes {_overheads(shown)} more updates {where}{_all_overheads(shown, every)}; the paper has "
        f"{paper.OVERHEAD_PERCENT[0]:g} to {paper.OVERHEAD_PERCENT[1]:g} % more time.",
        _limits(experiments),
    ]


_Compared = Sequence[tuple[Experiment, Condition]]


def _condition(shown: _Compared, epoch_loss: str) -> str:
    others = sorted({condition.epoch_loss for _, condition in shown} - {epoch_loss})
    instead = f" ({', '.join(others)} where an experiment has no such run)" if others else ""
    return f'with clean labels and epoch_loss="{epoch_loss}"{instead}'


def _all_differences(shown: _Compared, every: _Compared, other: Arm) -> str:
    """The range over all conditions, where these are more than those that are judged; else nothing."""
    compared = [each for each in every if pairs(*each, other)]
    if set(map(_key, compared)) <= set(map(_key, shown)):
        return ""
    means = [experiment.differences(condition, other, accuracy("last")).mean for experiment, condition in compared]
    return f"; over all conditions (every label noise and epoch_loss) {_span(means, '+.2f')} points"


def _all_overheads(shown: _Compared, every: _Compared) -> str:
    if set(map(_key, every)) <= set(map(_key, shown)):
        return ""
    means = [experiment.measure("attention", condition, overhead_percent).mean for experiment, condition in every]
    return f", and {_span(means, '.1f')} % over all conditions (every label noise and epoch_loss)"


def _key(compared: tuple[Experiment, Condition]) -> tuple[str, Condition]:
    return compared[0].name, compared[1]


def _span(means: Sequence[float], spec: str) -> str:
    return f"{means[0]:{spec}}" if len(means) == 1 else f"{min(means):{spec}} to {max(means):{spec}}"


def _standings(shown: _Compared, other: Arm) -> str:
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
        counted += f" ({_span(means, '+.2f')} points of accuracy at the last epoch)"
    return "".join([counted, *(f"; in {found[stand]} {text}" for stand, text in _NOT_JUDGED.items() if found[stand])])


def _stand(differences: Sample, dose: float, error: float) -> int:
    if differences.n < LEAST_RUNS:
        return _FEW
    if dose < rules.LEAST_DOSE_PERCENT:
        return _LITTLE
    reach = differences.reach(error)
    return _AHEAD if differences.mean > reach else _BEHIND if -differences.mean > reach else _LEVEL


def _overheads(shown: _Compared) -> str:
    means = [experiment.measure("attention", condition, overhead_percent).mean for experiment, condition in shown]
    if not means:
        return "no"
    return f"{_span(means, '.1f')} %"


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
