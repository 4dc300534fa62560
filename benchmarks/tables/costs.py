"""What attention costs, from the records of the studies that measured it."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.report.document import Table
from benchmarks.tables.newest import quartiles, read_newest, render

_WAYS = {"decision": "one decision, decide() alone", "visit": "one visit, attend() and decide() together"}
_COLORS = ("#1b5e9b", "#d95f02", "#555555")


def costs_found() -> str:
    """All of it in a paragraph."""
    said = []
    records = {record["comparison"]: record for record in read_newest("decision-cost")}
    for comparison, words in (("decision", "A decision takes"), ("visit", "a visit by `attend` and `decide` together")):
        plain, ours = (statistics.median(times) / 1000 for times in records[comparison]["times"].values())
        said.append(f"{words} {ours:.2f} µs, vs {plain:.2f} µs for the same accounting inline")
    (record,) = read_newest("sample-cost")
    ratio = statistics.median(record["times"]["attention"]) / statistics.median(record["times"]["plain"])
    said.append(f"a step of attention to samples takes {ratio:.3f} times as long as a plain one")
    return f"{'; '.join(said)}. {one_line(records['decision']['environment'])}."


def decision_cost_table() -> str:
    """Medians of both sides of each comparison, and their ratio."""
    records = read_newest("decision-cost")
    rows = []
    for record in records:
        plain, ours = record["times"].values()
        ratio = statistics.median(ours) / statistics.median(plain)
        what, said = _WAYS.get(record["comparison"]), f"{ratio:.1f} times the cost"
        if what is None:
            what = f"a batch of indices of {record['samples']:,} samples, vs torch's BatchSampler"
            said = f"{1 / ratio:.1f} times as fast"
        unit = record["unit"].replace("us", "µs")
        rows.append([what, quartiles(plain, unit), quartiles(ours, unit), said])
    caption = (
        f"Median (quartiles), n = {len(records[0]['times']['inline'])} alternating rounds; plain is the same "
        f"accounting written inline, or torch. {one_line(records[0]['environment'])}."
    )
    return render(Table(["what", "plain", "ours", "ratio of medians"], rows, caption))


def sample_cost() -> str:
    """What attention to samples costs a step."""
    (record,) = read_newest("sample-cost")
    plain, attention = (statistics.median(record["times"][name]) for name in ("plain", "attention"))
    return (
        f"A step of attention to samples takes {attention / plain:.3f} times as long as one of a plain loop that reads "
        f"its loss ({attention:.2f} and {plain:.2f} ms, medians of {len(record['times']['plain'])} alternating rounds "
        f"of 40 steps; a small network, batches of 64 images, one thread, load average {record['load_average']:.1f}). "
        f"{one_line(record['environment'])}."
    )


def sample_size_table() -> str:
    """How the cost of attention to samples grows with the data."""
    records = read_newest("sample-size")
    rows = [
        [
            f"{record['samples']:,}",
            _options(record),
            *(quartiles(record[name], "") for name in ("first_ms", "later_ms")),
            *(f"{record[name]:.1f}" for name in ("memory_bytes", "state_bytes")),
            f"{record['save_s']:.2f} and {record['load_s']:.2f}",
        ]
        for record in records
    ]
    loads = [record["load_average"] for record in records]
    caption = (
        f"A batch is handed out and its losses are reported; 256 samples, median (quartiles) of "
        f"{len(records[0]['first_ms'])} first and {len(records[0]['later_ms'])} later batches. Bytes of the process's "
        f"memory, with the fixed part, and of the state as JSON. One thread, load average {min(loads):.1f} to "
        f"{max(loads):.1f}. {one_line(records[0]['environment'])}."
    )
    head = ["samples", "options", "first batch of a pass, ms", "later batches, ms", "bytes a sample", "of the state"]
    return render(Table([*head, "seconds to save and to load"], rows, caption))


def draw_sample_size() -> Figure:
    """The times and bytes of ``sample_size_table``, over the size of the data."""
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


def ranks_cost() -> str:
    """What deciding alike on two ranks costs an update."""
    (record,) = read_newest("ranks-cost")
    rows = []
    for batch_size, of_size in record["times_ms"].items():
        alone, *others = (statistics.median(of_size[arm]) for arm in ("DDP alone", "two calls", "one call"))
        rows.append([batch_size, quartiles(of_size["DDP alone"], ""), *(f"{ms / alone:.3f} times" for ms in others)])
    caption = (
        f"Median (quartiles) and ratios of medians, {len(of_size['DDP alone'])} rounds in which the three loops take "
        f"turns; two gloo ranks of one machine, one thread each, a small network, nothing repeated; load average "
        f"{record['load_average']:.1f}. {one_line(record['environment'])}."
    )
    head = ["images of a rank in a batch", "DDP alone, ms an update", "report() and decide()", "one decide(loss)"]
    return render(Table(head, rows, caption))


def time_overhead_table() -> str:
    """What attention costs in seconds, an epoch of each arm by turns."""
    lines = pd.DataFrame(read_newest("time-overhead"))
    lines["update"] = lines["seconds"] / lines["updates"]
    rows = []
    for seed, of_seed in lines.groupby("seed"):
        arms = of_seed.groupby("arm")
        totals, updates = arms[["updates", "seconds", "schedule_seconds"]].sum(), arms["update"].median()
        more = 100 * (totals.loc["attention"] / totals.loc["baseline"] - 1)
        share = 100 * totals.loc["attention", "schedule_seconds"] / totals.loc["attention", "seconds"]
        ratio = updates["attention"] / updates["baseline"]
        rows.append([str(seed), f"{more['updates']:.1f}", f"{more['seconds']:.1f}", f"{ratio:.3f}", f"{share:.3f}"])
    first = lines.iloc[0]
    # The first minutes' load average still holds what was there before.
    loads = lines["load_average"][len(lines) // 2 :]
    caption = (
        f"{first['model']} on {first['images']:,} images of {first['data']}, {lines['epoch'].max()} epochs, one of "
        f"each arm by turns, CPU threads: {first['threads']}, load {loads.min():.1f} to {loads.max():.1f} in the "
        "second half; seconds without evaluation. An update: ratio of medians over epochs. In the schedule: the share "
        f"of attention's seconds that attend and decide take. {one_line(first['environment'])}."
    )
    head = ["seed", "more updates, %", "more seconds, %", "an update, attention to baseline", "in the schedule, %"]
    return render(Table(head, rows, caption))
