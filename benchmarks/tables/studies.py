"""What the records of the small studies come to."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict

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
        said.append(f"{statistics.median(seconds):.0f} s beside {beside} (n = {len(seconds)})")
    return f"Once installed it took {' and '.join(said)}. {one_line(lines[0]['environment'])}."


def visits_to_fit_table() -> str:
    """How many visits batches took with no limit that matters."""
    records = read_newest("visits-to-fit")
    counted: dict[tuple[float, float], Counter[int]] = defaultdict(Counter)
    for record in records:
        counts = counted[record["learning_rate"], record["noise_share"]]
        counts.update({int(visits): batches for visits, batches in record["batches_by_visits"].items()})
    rows = [["learning rate", "labels redrawn", "batches", "repeated", "99.9th percentile", "most", "above 100"]]
    for (learning_rate, noise_share), counts in counted.items():
        visits = sorted(counts.elements())
        rows.append(
            [
                f"{learning_rate:g}",
                f"{noise_share:.0%}",
                f"{len(visits):,}",
                f"{sum(n > 1 for n in visits) / len(visits):.1%}",
                f"{visits[int(0.999 * (len(visits) - 1))]}",
                f"{visits[-1]}",
                f"{sum(n > 100 for n in visits)}",
            ]
        )
    seeds = len({record["seed"] for record in records})
    caption = f"Visits to one batch in one epoch; {records[0]['epochs']} epochs, n = {seeds} seeds a row."
    return render(Table(rows[0], rows[1:], f"{caption} {one_line(records[0]['environment'])}."))


_REPORTED = {
    "lengths": ("sequences, batched by length", "sum over tokens", "mean over tokens", "tokens in a sequence"),
    "mixup": ("mixup", "of the mixed batch", "of the batch as it is", "share of the lesser image"),
    "smoothing": ("label smoothing of 0.1", "as trained on", "less its floor", ""),
}


def loss_selection_table() -> str:
    """What sets repeated batches apart, where batches differ by construction."""
    lines = read_newest("loss-selection")
    head = ["case", "loss reported", "batches repeated, %", "what differs", "of repeated batches", "of the others"]
    rows: list[list[str]] = []
    for case, (name, at_hand, advised, quantity) in _REPORTED.items():
        for reported, words in (("at hand", at_hand), ("advised", advised)):
            runs = [line for line in lines if (line["case"], line["reported"]) == (case, reported)]
            shares = sample([100 * run["repeated"] / run["batches"] for run in runs])
            means = [
                sample([run[field] for run in runs if run[field] is not None])
                for field in ("mean_of_repeated", "mean_of_others")
            ]
            digits = 1 if case == "lengths" else 3
            texts = [mean_and_deviation(values, digits) if quantity and values.n else "-" for values in means]
            rows.append([name, words, mean_and_deviation(shares, 1), quantity or "-", *texts])
    seeds, epochs = len({line["seed"] for line in lines}), lines[0]["epochs"]
    caption = (
        f"From the second of {epochs} epochs on, K = 1.2; mean ± standard deviation over {seeds} seeds. Small networks "
        "on Python's manual and on scikit-learn's digits (`python -m benchmarks.studies.loss_selection`)."
    )
    return render(Table(head, rows, f"{caption} {one_line(lines[0]['environment'])}."))
