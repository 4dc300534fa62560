"""What the records of the small studies say."""

from __future__ import annotations

import statistics
from collections import Counter

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.report.statistics import sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.tables.newest import read_newest, render


def quickstart_time() -> str:
    """How long the quick start takes, on an idle machine and on a busy one."""
    lines = read_newest("quickstart-time")
    said = []
    for beside in dict.fromkeys(line["beside"] for line in lines):
        seconds = [line["seconds"] for line in lines if line["beside"] == beside]
        where = "on an idle machine" if beside == "nothing" else f"beside {beside}"
        said.append(f"{statistics.median(seconds):.0f} s {where} (n = {len(seconds)})")
    return f"Once installed it took {' and '.join(said)}. {one_line(lines[0]['environment'])}."


def visits_to_fit_table() -> str:
    """How many visits batches took with no limit that matters."""
    records = pd.DataFrame(read_newest("visits-to-fit"))
    rows = []
    for (rate, noise), of_setting in records.groupby(["learning_rate", "noise_share"], sort=False):
        counts = sum((Counter(counts) for counts in of_setting["batches_by_visits"]), Counter[str]())
        visits = sorted(int(number) for number in counts.elements())
        percentile = visits[int(0.999 * (len(visits) - 1))]
        repeated, above = sum(number > 1 for number in visits), sum(number > 100 for number in visits)
        shares = [f"{noise:.0%}", f"{len(visits):,}", f"{repeated / len(visits):.1%}"]
        rows.append([f"{rate:g}", *shares, str(percentile), str(visits[-1]), str(above)])
    caption = (
        f"Visits to one batch in one epoch; {records['epochs'][0]} epochs, n = {records['seed'].nunique()} seeds a "
        f"row. {one_line(records['environment'][0])}."
    )
    head = ["learning rate", "label noise", "batches", "repeated", "99.9th percentile", "most", "above 100"]
    return render(Table(head, rows, caption))


_REPORTED = {
    "lengths": ("sequences, batched by length", "sum over tokens", "mean over tokens", "tokens in a sequence"),
    "mixup": ("mixup", "of the mixed batch", "of the batch as it is", "share of the lesser image"),
    "smoothing": ("label smoothing of 0.1", "as trained on", "minus its floor", ""),
}


def loss_selection_table() -> str:
    """By what repeated batches differ from others, where batches differ by construction."""
    lines = pd.DataFrame(read_newest("loss-selection"))
    rows = []
    for case, (name, at_hand, advised, quantity) in _REPORTED.items():
        for reported, words in (("at hand", at_hand), ("advised", advised)):
            runs = lines[(lines["case"] == case) & (lines["reported"] == reported)]
            shares = sample((100 * runs["repeated"] / runs["batches"]).tolist())
            means = [sample(runs[field].dropna().tolist()) for field in ("mean_of_repeated", "mean_of_others")]
            digits = 1 if case == "lengths" else 3
            texts = [mean_and_deviation(values, digits) if quantity and values.n else "-" for values in means]
            rows.append([name, words, mean_and_deviation(shares, 1), quantity or "-", *texts])
    caption = (
        f"From the second of {lines['epochs'][0]} epochs on, K = 1.2; mean ± standard deviation over "
        f"{lines['seed'].nunique()} seeds. Small networks on Python's manual and on scikit-learn's digits. "
        f"{one_line(lines['environment'][0])}."
    )
    head = ["case", "loss reported", "batches repeated, %", "what differs", "of repeated batches", "of the others"]
    return render(Table(head, rows, caption))
