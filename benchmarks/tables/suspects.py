"""How well wrong labels were found, and at what cost."""

from __future__ import annotations

from functools import cache

import pandas as pd

from benchmarks.report.document import Row
from benchmarks.report.statistics import Sample, sample
from benchmarks.report.wording import mean_and_deviation, show
from benchmarks.tables.newest import read_newest

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


@cache
def runs(*, has_folds: bool = True) -> pd.DataFrame:
    """A row a run, with or without cross-validation; columns ``found.RANKING.FIELD`` and ``cost.WAY.FIELD``."""
    lines = [line for line in read_newest("suspects") if ("folds" in line["cost"]) is has_folds]
    frame = pd.json_normalize([{name: line[name] for name in line if name != "environment"} for line in lines])
    return frame.assign(environment=[line["environment"] for line in lines])


def _by_noise(of_runs: pd.DataFrame, ranking: str, field: str = "average_precision") -> dict[str, Sample]:
    """A field of a ranking for each kind of noise, in the order of the records."""
    values = of_runs.groupby("noise", sort=False)[f"found.{ranking}.{field}"]
    return {str(noise): sample(of_noise) for noise, of_noise in values}


def precision() -> list[Row]:
    """The average precision of each ranking, and the updates and seconds that it takes in addition."""
    rows = []
    for ranking, (name, way) in _RANKINGS.items():
        updates, seconds = 0.0, 0.0
        if way == "folds":
            updates, seconds = runs()["cost.folds.updates"].iloc[0], runs()["cost.folds.seconds"].mean()
        elif ranking.endswith("final"):
            seconds = runs()[f"cost.{way}.seconds_of_final"].mean()
        cells = {noise: mean_and_deviation(each, 3) for noise, each in _by_noise(runs(), ranking).items()}
        rows.append({"ranking": name, "more updates": f"{updates:,.0f}", "more seconds": f"{seconds:.0f}", **cells})
    return rows


def details() -> list[Row]:
    """Precision and recall where a ranking is cut, and of the set that cleanlab returns."""
    names = {ranking: (name, "precision_at_n", "recall_at_2n") for ranking, (name, _) in _RANKINGS.items()}
    names["issues"] = ("find_label_issues, a set: its precision / recall", "precision", "recall")
    rows = []
    for ranking, (name, *pair) in names.items():
        precisions, recalls = (_by_noise(runs(), ranking, field) for field in pair)
        cells = {noise: f"{each.mean:.2f} / {recalls[noise].mean:.2f}" for noise, each in precisions.items()}
        rows.append({"ranking": name, **cells})
    return rows


def gains() -> list[Row]:
    """What is gained over cross-validation, paired by seed."""
    baseline, rows = _by_noise(runs(), "self_confidence"), []
    for ranking, (name, _) in _RANKINGS.items():
        cells = {}
        for noise, ours in _by_noise(runs(), ranking).items():
            gain = sample(one - other for one, other in zip(ours.values, baseline[noise].values, strict=True))
            cells[noise] = show(gain, digits=3, with_n=False)
        rows.append({"ranking": name, **cells})
    return [row for row in rows if row["ranking"] != _RANKINGS["self_confidence"][0]]


def longer() -> tuple[list[Row], list[pd.DataFrame]]:
    """The same losses where training is longer, without cross-validation, and the runs that are compared."""
    more = runs(has_folds=False)
    noise = str(more["noise"].iloc[0])
    both = [runs()[(runs()["noise"] == noise) & runs()["seed"].isin(more["seed"])], more]
    rows: list[Row] = [
        {"ranking": name}
        | {f"{each['epochs'].iloc[0]} epochs": mean_and_deviation(_by_noise(each, ranking)[noise], 3) for each in both}
        for ranking, (name, way) in _RANKINGS.items()
        if way == "plain"
    ]
    return rows, both
