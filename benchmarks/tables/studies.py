"""What the records of the small studies come to."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict

from benchmarks.environment import one_line
from benchmarks.report import markdown
from benchmarks.report.document import Table
from benchmarks.report.statistics import sample
from benchmarks.report.wording import mean_and_deviation
from benchmarks.studies import time_overhead
from benchmarks.tables.newest import quartiles, read_newest, render

# Of the quick start.
ARMS = ("baseline", "attention", "random")


def quickstart_table() -> str:
    """Accuracy, macro-F1, updates and overhead of the three arms, and what the paired differences say."""
    records = read_newest("quickstart")
    by_arm = {arm: sorted((r for r in records if r["arm"] == arm), key=lambda r: r["seed"]) for arm in ARMS}
    base_updates = [sum(record["updates"]) for record in by_arm["baseline"]]
    rows = [["arm", "test accuracy, %", "macro-F1, %", "updates", "overhead, %"]]
    for arm, runs in by_arm.items():
        updates = [sum(record["updates"]) for record in runs]
        overhead = [100 * (extra / base - 1) for extra, base in zip(updates, base_updates, strict=True)]
        rows.append(
            [
                arm,
                mean_and_deviation(sample([100 * record["accuracy"][-1] for record in runs]), 2),
                mean_and_deviation(sample([100 * record["macro_f1"][-1] for record in runs]), 2),
                f"{statistics.fmean(updates):.0f}",
                mean_and_deviation(sample(overhead), 1),
            ]
        )
    findings = []
    for other in ("baseline", "random"):
        differences = [
            100 * (ours["accuracy"][-1] - theirs["accuracy"][-1])
            for ours, theirs in zip(by_arm["attention"], by_arm[other], strict=True)
        ]
        low, high = sample(differences).interval
        difference = f"{statistics.fmean(differences):+.2f} points ({low:+.2f} to {high:+.2f})"
        findings.append(f"attention is {_verdict(low, high)} {other}, {difference}")
    epochs, seeds = len(records[0]["accuracy"]), len(base_updates)
    caption = (
        f"Last of {epochs} epochs, mean ± standard deviation, n = {seeds} seeds; paired differences in accuracy with "
        f"95 % intervals: {'; '.join(findings)}. {one_line(records[0]['environment'])}."
    )
    return render(Table(rows[0], rows[1:], caption))


def quickstart_time() -> str:
    """How long the quick start takes, on an idle machine and on a busy one."""
    lines = read_newest("quickstart-time")
    said = []
    for beside in dict.fromkeys(line["beside"] for line in lines):
        seconds = [line["seconds"] for line in lines if line["beside"] == beside]
        said.append(f"{statistics.median(seconds):.0f} s beside {beside} (n = {len(seconds)})")
    return f"Once installed it took {' and '.join(said)}. {one_line(lines[0]['environment'])}."


def decision_cost_table() -> str:
    """Medians of both sides of each comparison, and their ratio."""
    records = read_newest("decision-cost")
    rows = [["what", "plain", "ours", "ratio of medians"]]
    for record in records:
        (_, plain), (_, ours) = record["times"].items()
        slow, fast = statistics.median(ours), statistics.median(plain)
        if record["comparison"] == "decision":
            what, said = "one decision: inline accounting, `decide`", f"{slow / fast:.1f} times the cost"
        elif record["comparison"] == "visit":
            what, said = "one visit: the same, `attend` and `decide` together", f"{slow / fast:.1f} times the cost"
        else:
            what = f"a batch of indices, {record['samples']:,} samples: torch's `BatchSampler`, ours"
            said = f"{fast / slow:.1f} times as fast"
        unit = {"ns": "ns", "us": "µs"}[record["unit"]]
        rows.append([what, quartiles(plain, unit), quartiles(ours, unit), said])
    caption = f"Median (quartiles), n = {len(records[0]['times']['inline'])} alternating rounds."
    return render(Table(rows[0], rows[1:], f"{caption} {one_line(records[0]['environment'])}."))


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


def _verdict(low: float, high: float) -> str:
    """What an interval of differences says of one arm and another."""
    if low > 0:
        return "better than"
    return "worse than" if high < 0 else "not told apart from"
