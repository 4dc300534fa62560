"""How well wrong labels were found, and at what cost."""

from __future__ import annotations

from typing import Any

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.report.statistics import Sample, sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.tables.newest import read_newest, render

# Each with what it is called, and the way that costs it.
_RANKINGS = {
    "plain, mean": ("mean loss while training", "plain"),
    "pruned, mean": ("mean loss while training, pruned", "pruned"),
    "plain, last": ("last loss while training", "plain"),
    "pruned, last": ("last loss while training, pruned", "pruned"),
    "plain, final": ("final loss, one more pass", "plain"),
    "pruned, final": ("final loss, one more pass, pruned", "pruned"),
    "self_confidence": ("self-confidence, cross-validated", "folds"),
    "normalized_margin": ("normalized margin, cross-validated", "folds"),
}
_BEST_OF_CLEANLAB = "self_confidence"

Run = dict[str, Any]


def suspects_table() -> str:
    """The average precision of each ranking, and the updates and seconds that it takes beside plain training."""
    runs = _runs()
    rows = []
    for ranking, (name, way) in _RANKINGS.items():
        extra = 0 if way != "folds" else runs[0]["cost"]["folds"]["updates"]
        seconds = sample([_seconds_more(run, ranking, way) for run in runs]).mean
        precisions = [_values(_of(runs, noise), ranking, "average_precision") for noise in _noises(runs)]
        shown = [mean_and_deviation(values, 3) for values in precisions]
        rows.append([name, f"{extra:,}", f"{seconds:.0f}", *shown])
    caption = (
        "Average precision, mean ± standard deviation; a ranking by chance has the share of wrong labels. "
        "Uniform: redrawn among the other classes; asymmetric: by CIFAR-10's usual map between similar classes. "
        f"{_setting(runs)} More: over a training that is made anyway, of {runs[0]['cost']['plain']['updates']:,} "
        "updates; seconds of one core."
    )
    return render(Table(["ranking", "more updates", "more seconds", *_noises(runs)], rows, caption))


def suspects_details() -> str:
    """Precision and recall where a ranking is cut, and of the set that cleanlab returns."""
    runs = _runs()
    rows = [
        [name, *_pairs(runs, ranking, "precision_at_n", "recall_at_2n")] for ranking, (name, _) in _RANKINGS.items()
    ]
    rows.append(["find_label_issues, a set: its precision / recall", *_pairs(runs, "issues", "precision", "recall")])
    caption = "Precision at n / recall at 2 n, where n labels are wrong; means over seeds."
    return render(Table(["ranking", *_noises(runs)], rows, caption))


def suspects_found() -> str:
    """What is gained over cross-validation, paired by seed."""
    runs = _runs()
    rows = [
        [name, *(_difference(_of(runs, noise), ranking) for noise in _noises(runs))]
        for ranking, (name, _) in _RANKINGS.items()
        if ranking != _BEST_OF_CLEANLAB
    ]
    caption = "Average precision minus that of cross-validated self-confidence, paired by seed, with 95 % interval."
    return render(Table(["ranking", *_noises(runs)], rows, caption))


def suspects_longer() -> str:
    """The same losses where training is longer, without cross-validation."""
    longer = [run for run in read_newest("suspects") if "folds" not in run["cost"]]
    noise, seeds = longer[0]["noise"], {run["seed"] for run in longer}
    short = [run for run in _of(_runs(), noise) if run["seed"] in seeds]
    rows = [
        [name, *(mean_and_deviation(_values(runs, ranking, "average_precision"), 3) for runs in (short, longer))]
        for ranking, (name, way) in _RANKINGS.items()
        if way == "plain"
    ]
    accuracies = " and ".join(
        f"{sample([run['cost']['plain']['accuracy'] for run in runs]).mean:.1f} %" for runs in (short, longer)
    )
    caption = f"Average precision, {noise}, plain training, n = {len(seeds)} seeds; test accuracy {accuracies}."
    return render(Table(["ranking", *(f"{runs[0]['epochs']} epochs" for runs in (short, longer))], rows, caption))


def _runs() -> list[Run]:
    return [run for run in read_newest("suspects") if "folds" in run["cost"]]


def _noises(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run["noise"] for run in runs))


def _of(runs: list[Run], noise: str) -> list[Run]:
    return [run for run in runs if run["noise"] == noise]


def _values(runs: list[Run], ranking: str, field: str) -> Sample:
    return sample([run["found"][ranking][field] for run in runs])


def _pairs(runs: list[Run], ranking: str, *fields: str) -> list[str]:
    """Means of two fields, for each noise."""
    return [
        " / ".join(f"{_values(_of(runs, noise), ranking, field).mean:.2f}" for field in fields)
        for noise in _noises(runs)
    ]


def _difference(runs: list[Run], ranking: str) -> str:
    mine, others = (_values(runs, each, "average_precision").values for each in (ranking, _BEST_OF_CLEANLAB))
    differences = sample([one - other for one, other in zip(mine, others, strict=True)])
    low, high = differences.interval
    return f"{differences.mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _seconds_more(run: Run, ranking: str, way: str) -> float:
    cost = run["cost"][way]
    return float(cost["seconds"] if way == "folds" else cost["seconds_of_final"] * ranking.endswith("final"))


def _setting(runs: list[Run]) -> str:
    first, seeds = runs[0], min(len(_of(runs, noise)) for noise in _noises(runs))
    accuracy = {way: sample([run["cost"][way]["accuracy"] for run in runs]).mean for way in ("plain", "pruned")}
    return (
        f"CIFAR-10, {first['images']:,} images, {first['epochs']} epochs of a small convolutional network, n = {seeds} "
        f"seeds; test accuracy {accuracy['plain']:.1f} % plain and {accuracy['pruned']:.1f} % pruned "
        f"(`python -m benchmarks.studies.suspects`). {one_line(first['environment'])}, cleanlab "
        f"{first['environment']['packages']['cleanlab']}."
    )
