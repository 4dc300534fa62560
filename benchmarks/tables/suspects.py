"""How well wrong labels were found, and at what cost."""

from __future__ import annotations

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.report.statistics import Sample, sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.tables.newest import read_newest, render

# Each with its name in tables, and the training that it takes.
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


def suspects_table() -> str:
    """The average precision of each ranking, and the updates and seconds that it takes in addition."""
    runs = _read()
    rows = []
    for ranking, (name, way) in _RANKINGS.items():
        seconds = runs[f"cost.{way}.seconds"] if way == "folds" else runs[f"cost.{way}.seconds_of_final"]
        seconds = seconds if way == "folds" or ranking.endswith("final") else 0 * seconds
        updates = runs["cost.folds.updates"].iloc[0] if way == "folds" else 0
        cells = [mean_and_deviation(each, 3) for each in _by_noise(runs, ranking, "average_precision").values()]
        rows.append([name, f"{updates:,.0f}", f"{seconds.mean():.0f}", *cells])
    first = runs.iloc[0]
    plain, pruned = (runs[f"cost.{way}.accuracy"].mean() for way in ("plain", "pruned"))
    caption = (
        "Average precision, mean ± standard deviation; a ranking by chance has the share of wrong labels. Uniform: "
        "drawn again among the other classes; asymmetric: by CIFAR-10's usual map between similar classes. CIFAR-10, "
        f"{first['images']:,} images, {first['epochs']} epochs of a small convolutional network, n = "
        f"{runs.groupby('noise').size().min()} seeds; test accuracy {plain:.1f} % plain and {pruned:.1f} % pruned "
        f"(`python -m benchmarks.studies.suspects`). {one_line(first['environment'])}, cleanlab "
        f"{first['environment']['packages']['cleanlab']}. More: in addition to a training of "
        f"{first['cost.plain.updates']:,.0f} updates; seconds of one core."
    )
    return render(Table(["ranking", "more updates", "more seconds", *runs["noise"].unique()], rows, caption))


def suspects_details() -> str:
    """Precision and recall where a ranking is cut, and of the set that cleanlab returns."""
    runs = _read()
    fields = dict.fromkeys(_RANKINGS, ("precision_at_n", "recall_at_2n")) | {"issues": ("precision", "recall")}
    names = {ranking: name for ranking, (name, _) in _RANKINGS.items()}
    names["issues"] = "find_label_issues, a set: its precision / recall"
    rows = []
    for ranking, pair in fields.items():
        precisions, recalls = (_by_noise(runs, ranking, field) for field in pair)
        cells = [f"{precisions[noise].mean:.2f} / {recalls[noise].mean:.2f}" for noise in precisions]
        rows.append([names[ranking], *cells])
    caption = "Precision at n / recall at 2 n, where n labels are wrong; means over seeds."
    return render(Table(["ranking", *runs["noise"].unique()], rows, caption))


def suspects_found() -> str:
    """What is gained over cross-validation, paired by seed."""
    runs = _read()
    baseline = _by_noise(runs, "self_confidence", "average_precision")
    rows = []
    for ranking, (name, _) in _RANKINGS.items():
        cells = []
        for noise, ours in _by_noise(runs, ranking, "average_precision").items():
            gains = sample([one - other for one, other in zip(ours.values, baseline[noise].values, strict=True)])
            low, high = gains.interval
            cells.append(f"{gains.mean:+.3f} ({low:+.3f} to {high:+.3f})")
        if ranking != "self_confidence":
            rows.append([name, *cells])
    caption = "Average precision minus that of cross-validated self-confidence, paired by seed, with 95 % interval."
    return render(Table(["ranking", *runs["noise"].unique()], rows, caption))


def suspects_longer() -> str:
    """The same losses where training is longer, without cross-validation."""
    short, longer = _read(), _read(has_folds=False)
    noise, seeds = longer["noise"].iloc[0], longer["seed"].unique()
    both = [short[(short["noise"] == noise) & short["seed"].isin(seeds)], longer]
    rows = []
    for ranking, (name, way) in _RANKINGS.items():
        if way == "plain":
            found = [_by_noise(runs, ranking, "average_precision")[noise] for runs in both]
            rows.append([name, *(mean_and_deviation(each, 3) for each in found)])
    accuracies = " and ".join(f"{runs['cost.plain.accuracy'].mean():.1f} %" for runs in both)
    caption = f"Average precision, {noise}, plain training, n = {len(seeds)} seeds; test accuracy {accuracies}."
    return render(Table(["ranking", *(f"{runs['epochs'].iloc[0]} epochs" for runs in both)], rows, caption))


def _read(*, has_folds: bool = True) -> pd.DataFrame:
    """A row a run, with or without cross-validation; columns ``found.RANKING.FIELD`` and ``cost.WAY.FIELD``."""
    lines = [line for line in read_newest("suspects") if ("folds" in line["cost"]) is has_folds]
    runs = pd.json_normalize([{name: line[name] for name in line if name != "environment"} for line in lines])
    return runs.assign(environment=[line["environment"] for line in lines])


def _by_noise(runs: pd.DataFrame, ranking: str, field: str) -> dict[str, Sample]:
    """A field of a ranking for each kind of noise, in the order of the records."""
    values = runs.groupby("noise", sort=False)[f"found.{ranking}.{field}"]
    return {str(noise): sample(of_noise.tolist()) for noise, of_noise in values}
