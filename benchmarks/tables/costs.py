"""What attention costs, from the records of the studies that measured it."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.figure import Figure

from benchmarks.environment import one_line
from benchmarks.report import markdown
from benchmarks.report.document import Table
from benchmarks.studies import time_overhead
from benchmarks.tables.newest import quartiles, read_newest, render

# Who measures visits, measures the way that is published: a loop makes both calls.
_WAYS = {"decision": "one decision, decide() alone", "visit": "one visit, attend() and decide() together"}


def costs_found() -> str:
    """All of it in a paragraph."""
    said = []
    records = {record["comparison"]: record for record in read_newest("decision-cost")}
    for comparison, words in (("decision", "A decision takes"), ("visit", "a visit by `attend` and `decide` together")):
        if comparison in records:
            plain, ours = (statistics.median(times) / 1000 for times in records[comparison]["times"].values())
            said.append(f"{words} {ours:.2f} µs, beside {plain:.2f} µs for the same accounting inline")
    steps = f"a step of attention to samples takes {_sample_ratio():.3f} times as long as a plain one"
    return f"{'; '.join([*said, steps])}. {one_line(records['decision']['environment'])}."


def decision_cost_table() -> str:
    """Medians of both sides of each comparison, and their ratio."""
    records = read_newest("decision-cost")
    rows = []
    for record in records:
        (_, plain), (_, ours) = record["times"].items()
        ratio = statistics.median(ours) / statistics.median(plain)
        if record["comparison"] in _WAYS:
            what, said = _WAYS[record["comparison"]], f"{ratio:.1f} times the cost"
        else:
            what = f"a batch of indices of {record['samples']:,} samples, beside torch's BatchSampler"
            said = f"{1 / ratio:.1f} times as fast"
        unit = {"ns": "ns", "us": "µs"}[record["unit"]]
        rows.append([what, quartiles(plain, unit), quartiles(ours, unit), said])
    caption = (
        f"Median (quartiles), n = {len(records[0]['times']['inline'])} alternating rounds; plain is the same "
        f"accounting written inline, or torch. {one_line(records[0]['environment'])}."
    )
    return render(Table(["what", "plain", "ours", "ratio of medians"], rows, caption))


def _sample_ratio() -> float:
    (record,) = read_newest("sample-cost")
    times = {name: statistics.median(values) for name, values in record["times"].items()}
    return float(times["attention"] / times["plain"])


def sample_cost() -> str:
    """What attention to samples costs a step."""
    (record,) = read_newest("sample-cost")
    times = {name: statistics.median(values) for name, values in record["times"].items()}
    rounds = len(record["times"]["plain"])
    return (
        f"A step of attention to samples takes {times['attention'] / times['plain']:.3f} times as long as one of a "
        f"plain loop that reads its loss ({times['attention']:.2f} and {times['plain']:.2f} ms, medians of {rounds} "
        f"alternating rounds of 40 steps; a small network, batches of 64 images, one thread, load average "
        f"{record['load_average']:.1f}). {one_line(record['environment'])}."
    )


def sample_size_table() -> str:
    """How the cost of attention to samples grows with the data."""
    records = read_newest("sample-size")
    head = ["samples", "options", "first batch of a pass, ms", "later batches, ms", "bytes a sample", "of the state"]
    rows = []
    for record in records:
        times = [quartiles(record[name], "") for name in ("first_ms", "later_ms")]
        size = [f"{record[name]:.1f}" for name in ("memory_bytes", "state_bytes")]
        seconds = f"{record['save_s']:.2f} and {record['load_s']:.2f}"
        rows.append([f"{record['samples']:,}", _options(record), *times, *size, seconds])
    loads = [record["load_average"] for record in records]
    caption = (
        f"A batch is handed out and its losses are reported; 256 samples, median (quartiles) of "
        f"{len(records[0]['first_ms'])} first and {len(records[0]['later_ms'])} later batches. Bytes of the process's "
        f"memory, with the fixed part, and of the state as JSON. One thread, load average {min(loads):.1f} to "
        f"{max(loads):.1f}."
    )
    head.append("seconds to save and to load")
    return render(Table(head, rows, f"{caption} {one_line(records[0]['environment'])}."))


def draw_sample_size() -> Figure:
    """The times and bytes of ``sample_size_table``, over the size of the data."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    times, sizes = figure.subplots(1, 2)
    by_options: dict[str, list[dict[str, Any]]] = {}
    for record in read_newest("sample-size"):
        by_options.setdefault(_options(record), []).append(record)
    for color, (options, records) in zip(("#1b5e9b", "#d95f02", "#555555"), by_options.items(), strict=False):
        samples = [record["samples"] for record in records]
        for name, style, what in (("first_ms", "o-", "first batch of a pass"), ("later_ms", "s--", "later batches")):
            medians = [statistics.median(record[name]) for record in records]
            times.plot(samples, medians, style, color=color, ms=4, label=f"{options}: {what}")
        for name, style, what in (("memory_bytes", "o-", "memory"), ("state_bytes", "s--", "saved state")):
            sizes.plot(samples, [record[name] for record in records], style, color=color, ms=4, label=what)
    times.set(xscale="log", yscale="log", xlabel="samples", ylabel="ms (median)")
    sizes.set(xscale="log", ylim=(0, 12), xlabel="samples", ylabel="bytes a sample")
    times.legend(fontsize=6)
    sizes.legend(*(part[:2] for part in sizes.get_legend_handles_labels()), fontsize=6)
    return figure


def _options(record: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in record["options"].items()) or "the defaults"


def ranks_cost() -> str:
    """What deciding alike on two ranks costs an update."""
    (record,) = read_newest("ranks-cost")
    rows = [["images of a rank in a batch", "DDP alone, ms an update", "report() and decide()", "one decide(loss)"]]
    for batch_size, of_size in record["times_ms"].items():
        alone = statistics.median(of_size["DDP alone"])
        ratios = [statistics.median(of_size[arm]) / alone for arm in ("two calls", "one call")]
        rows.append([batch_size, quartiles(of_size["DDP alone"], ""), *(f"{ratio:.3f} times" for ratio in ratios)])
    rounds = len(of_size["DDP alone"])
    caption = (
        f"Median (quartiles) and ratios of medians, {rounds} rounds in which the three loops take turns; two gloo "
        f"ranks of one machine, one thread each, a small network, nothing repeated; load average "
        f"{record['load_average']:.1f}."
    )
    return render(Table(rows[0], rows[1:], f"{caption} {one_line(record['environment'])}."))


def time_overhead_table() -> str:
    """What attention costs in seconds, an epoch of each arm by turns."""
    lines = read_newest("time-overhead")
    head = ["seed", "more updates, %", "more seconds, %", "an update, attention to baseline", "in the schedule, %"]
    rows: list[list[str]] = []
    for seed in sorted({line["seed"] for line in lines}):
        found = time_overhead.summarize([line for line in lines if line["seed"] == seed])
        percents = [f"{100 * found[name]:.1f}" for name in ("more_updates", "more_seconds")]
        rows.append([str(seed), *percents, f"{found['update_ratio']:.3f}", f"{100 * found['schedule_share']:.3f}"])
    first, epochs = lines[0], max(line["epoch"] for line in lines)
    # The first minutes' load average still holds what was there before.
    loads = [line["load_average"] for line in lines[len(lines) // 2 :]]
    threads = f"{first['threads']} CPU threads" if first["threads"] > 1 else "one CPU thread"
    caption = (
        f"{first['model']} on {first['images']:,} images of {markdown.escape(first['data'])}, {epochs} epochs, one of "
        f"each arm by turns, {threads}, load average "
        f"{min(loads):.1f} to {max(loads):.1f} in the second half; seconds without evaluation. An update: ratio of "
        "medians over epochs. In the schedule: the share of attention's seconds that attend and decide take. "
        f"{one_line(first['environment'])}."
    )
    return render(Table(head, rows, caption))
