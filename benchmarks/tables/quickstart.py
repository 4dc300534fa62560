"""What the records of the quick start say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.report.statistics import sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.tables.newest import read_newest, render


def quickstart_table() -> str:
    """Accuracy, macro-F1, updates and overhead of the three arms, and the paired differences."""
    runs = _read()
    rows = []
    for arm, of_arm in runs.groupby("arm", sort=False):
        percents = [mean_and_deviation(sample(of_arm[name].tolist()), 2) for name in ("accuracy", "macro_f1")]
        overhead = mean_and_deviation(sample(of_arm["overhead"].tolist()), 1)
        rows.append([str(arm), *percents, f"{of_arm['updates'].mean():.0f}", overhead])
    caption = (
        f"Last of {runs.attrs['epochs']} epochs, mean ± standard deviation, n = {len(of_arm)} seeds; paired "
        f"differences in accuracy with 95 % intervals: {_compare(runs)}. {runs.attrs['machine']}."
    )
    return render(Table(["arm", "test accuracy, %", "macro-F1, %", "updates", "overhead, %"], rows, caption))


def quickstart_found() -> str:
    """The same in a few sentences."""
    runs = _read()
    attention = runs[runs["arm"] == "attention"]
    return (
        f"After {runs.attrs['epochs']} epochs, in test accuracy with 95 % intervals over {len(attention)} seeds: "
        f"{_compare(runs)}. Attention made {attention['overhead'].mean():.0f} % more updates than baseline. "
        f"{runs.attrs['machine']}."
    )


def _read() -> pd.DataFrame:
    """A row a run, by arm and seed: per cent at the last epoch, updates, and per cent more updates than baseline."""
    lines = read_newest("quickstart")
    runs = pd.DataFrame(
        {name: line[name] for name in ("arm", "seed")}
        | {name: 100 * line[name][-1] for name in ("accuracy", "macro_f1")}
        | {"updates": sum(line["updates"])}
        for line in lines
    )
    baseline = runs[runs["arm"] == "baseline"].set_index("seed")["updates"]
    runs["overhead"] = 100 * (runs["updates"].to_numpy() / baseline[runs["seed"]].to_numpy() - 1)
    runs["arm"] = pd.Categorical(runs["arm"], ["baseline", "attention", "random"], ordered=True)
    runs = runs.sort_values(["arm", "seed"])
    runs.attrs.update(epochs=len(lines[0]["accuracy"]), machine=one_line(lines[0]["environment"]))
    return runs


def _compare(runs: pd.DataFrame) -> str:
    """Attention minus each of the others."""
    by_arm = runs.pivot_table(index="seed", columns="arm", values="accuracy", observed=True)
    found = []
    for other in ("baseline", "random"):
        differences = sample((by_arm["attention"] - by_arm[other]).tolist())
        low, high = differences.interval
        verdict = "no significant difference" if np.sign(low) != np.sign(high) else "a difference"
        found.append(f"attention minus {other}: {verdict}, {differences.mean:+.2f} points ({low:+.2f} to {high:+.2f})")
    return "; ".join(found)
