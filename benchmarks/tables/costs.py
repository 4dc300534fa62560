"""What attention costs, from the records of the studies that measured it."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.report.document import Row
from benchmarks.report.wording import quartiles
from benchmarks.tables.newest import read_newest

_WAYS = {"decision": "one decision, decide() alone", "visit": "one visit, attend() and decide() together"}
_COLORS = ("#1b5e9b", "#d95f02", "#555555")


def decision() -> list[Row]:
    """Medians of both sides of each comparison, and their ratio."""
    rows = []
    for record in read_newest("decision-cost"):
        plain, ours = record["times"].values()
        ratio = statistics.median(ours) / statistics.median(plain)
        what, said = _WAYS.get(record["comparison"]), f"{ratio:.1f} times the cost"
        if what is None:
            what = f"a batch of indices of {record['samples']:,} samples, vs torch's BatchSampler"
            said = f"{1 / ratio:.1f} times as fast"
        unit = record["unit"].replace("us", "µs")
        times = {"plain": quartiles(plain, unit), "ours": quartiles(ours, unit)}
        rows.append({"what": what, **times, "ratio of medians": said})
    return rows


def sample_size() -> list[Row]:
    """How the cost of attention to samples grows with the data."""
    return [
        {
            "samples": f"{record['samples']:,}",
            "options": _options(record),
            "first batch of a pass, ms": quartiles(record["first_ms"]),
            "later batches, ms": quartiles(record["later_ms"]),
            "bytes a sample": f"{record['memory_bytes']:.1f}",
            "of the state": f"{record['state_bytes']:.1f}",
            "seconds to save and to load": f"{record['save_s']:.2f} and {record['load_s']:.2f}",
        }
        for record in read_newest("sample-size")
    ]


def draw_sample_size() -> Figure:
    """The same times and bytes, over the size of the data."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    times, sizes = figure.subplots(1, 2)
    records = pd.DataFrame(read_newest("sample-size"))
    records["options"] = records.apply(_options, axis=1)
    for color, (options, of_options) in zip(_COLORS, records.groupby("options", sort=False), strict=False):
        for name, style, what in (("first_ms", "o-", "first batch of a pass"), ("later_ms", "s--", "later batches")):
            medians = of_options[name].map(statistics.median)
            times.plot(of_options["samples"], medians, style, color=color, ms=4, label=f"{options}: {what}")
        for name, style, what in (("memory_bytes", "o-", "memory"), ("state_bytes", "s--", "saved state")):
            sizes.plot(of_options["samples"], of_options[name], style, color=color, ms=4, label=what)
    times.set(xscale="log", yscale="log", xlabel="samples", ylabel="ms (median)")
    sizes.set(xscale="log", ylim=(0, 12), xlabel="samples", ylabel="bytes a sample")
    times.legend(fontsize=6)
    sizes.legend(*(part[:2] for part in sizes.get_legend_handles_labels()), fontsize=6)
    return figure


def _options(record: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in record["options"].items()) or "the defaults"


def time_overhead() -> list[Row]:
    """What attention costs in seconds, an epoch of each arm by turns."""
    lines = pd.DataFrame(read_newest("time-overhead"))
    lines["update"] = lines["seconds"] / lines["updates"]
    rows = []
    for seed, of_seed in lines.groupby("seed"):
        arms = of_seed.groupby("arm")
        totals, updates = arms[["updates", "seconds", "schedule_seconds"]].sum(), arms["update"].median()
        more = 100 * (totals.loc["attention"] / totals.loc["baseline"] - 1)
        share = 100 * totals.loc["attention", "schedule_seconds"] / totals.loc["attention", "seconds"]
        row = {
            "seed": str(seed),
            "more updates, %": f"{more['updates']:.1f}",
            "more seconds, %": f"{more['seconds']:.1f}",
        }
        row["an update, attention to baseline"] = f"{updates['attention'] / updates['baseline']:.3f}"
        rows.append(row | {"in the schedule, %": f"{share:.3f}"})
    return rows
