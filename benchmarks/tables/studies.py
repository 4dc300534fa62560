"""What the records of the small studies say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.document import Row
from benchmarks.report.statistics import sample
from benchmarks.report.wording import mean_and_deviation, show
from benchmarks.tables.newest import read_newest


def quickstart() -> pd.DataFrame:
    """A row a run, by arm and seed: per cent at the last epoch, updates, and per cent more updates than baseline."""
    lines = read_newest("quickstart")
    runs = pd.DataFrame(
        {name: line[name] for name in ("arm", "seed")}
        | {name: 100 * line[name][-1] for name in ("accuracy", "macro_f1")}
        | {"updates": sum(line["updates"]), "epochs": len(line["accuracy"]), "machine": one_line(line["environment"])}
        for line in lines
    )
    baseline = runs[runs["arm"] == "baseline"].set_index("seed")["updates"]
    runs["overhead"] = 100 * (runs["updates"].to_numpy() / baseline[runs["seed"]].to_numpy() - 1)
    runs["arm"] = pd.Categorical(runs["arm"], ["baseline", "attention", "random"])
    return runs.sort_values(["arm", "seed"])


def quickstart_rows() -> list[Row]:
    """Accuracy, macro-F1, updates and overhead of the three arms."""
    return [
        {
            "arm": str(arm),
            "test accuracy, %": mean_and_deviation(sample(runs["accuracy"]), 2),
            "macro-F1, %": mean_and_deviation(sample(runs["macro_f1"]), 2),
            "updates": f"{runs['updates'].mean():.0f}",
            "overhead, %": mean_and_deviation(sample(runs["overhead"]), 1),
        }
        for arm, runs in quickstart().groupby("arm", observed=True)
    ]


def quickstart_differences() -> str:
    """Attention minus each of the others, paired by seed."""
    by_arm = quickstart().pivot(index="seed", columns="arm", values="accuracy")
    found = []
    for other in ("baseline", "random"):
        differences = sample(by_arm["attention"] - by_arm[other])
        low, high = np.sign(differences.interval)
        verdict = "no significant difference" if low != high else "a difference"
        found.append(f"attention minus {other}: {verdict}, {show(differences, ' points', with_n=False)}")
    return "; ".join(found)


def visits_to_fit() -> list[Row]:
    """How many visits batches took with no limit that matters."""
    rows = []
    records = pd.DataFrame(read_newest("visits-to-fit"))
    for (rate, noise), of_setting in records.groupby(["learning_rate", "noise_share"], sort=False):
        counts = sum((Counter(counts) for counts in of_setting["batches_by_visits"]), Counter[str]())
        visits = np.array(sorted(int(number) for number in counts.elements()))
        row = {"learning rate": f"{rate:g}", "label noise": f"{noise:.0%}", "batches": f"{len(visits):,}"}
        row |= {
            "repeated": f"{(visits > 1).mean():.1%}",
            "99.9th percentile": str(visits[int(0.999 * (len(visits) - 1))]),
        }
        rows.append(row | {"most": str(visits[-1]), "above 100": str((visits > 100).sum())})
    return rows


_REPORTED = {
    "lengths": ("sequences, batched by length", "sum over tokens", "mean over tokens", "tokens in a sequence"),
    "mixup": ("mixup", "of the mixed batch", "of the batch as it is", "share of the lesser image"),
    "smoothing": ("label smoothing of 0.1", "as trained on", "minus its floor", ""),
}


def loss_selection() -> list[Row]:
    """By what repeated batches differ from others, where batches differ by construction."""
    rows = []
    lines = pd.DataFrame(read_newest("loss-selection"))
    for case, (name, at_hand, advised, quantity) in _REPORTED.items():
        for reported, words in (("at hand", at_hand), ("advised", advised)):
            runs = lines[(lines["case"] == case) & (lines["reported"] == reported)]
            shares = mean_and_deviation(sample(100 * runs["repeated"] / runs["batches"]), 1)
            row = {"case": name, "loss reported": words, "batches repeated, %": shares, "what differs": quantity or "-"}
            for head, field in (("of repeated batches", "mean_of_repeated"), ("of the others", "mean_of_others")):
                values = sample(runs[field].dropna())
                digits = 1 if case == "lengths" else 3
                row[head] = mean_and_deviation(values, digits) if quantity and values.n else "-"
            rows.append(row)
    return rows
