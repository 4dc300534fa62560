"""The report on runs of ``benchmarks.cifar``: do the paper's claims hold?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report import paper
from benchmarks.report.claims import CLAIMS, Finding, compare_arms, judge_claims, judged_reading, overfitted
from benchmarks.report.document import Cell, Mark, Report, correct, pictures, render_template, table
from benchmarks.report.figures import COLORS, Row, draw_experiment, forest
from benchmarks.report.results import Cifar, is_timed
from benchmarks.report.statistics import SIGNIFICANCE, Verdict, sample
from benchmarks.report.wording import Gain, mean_and_deviation, noise_in_words, show, show_p

# With more columns, a table of classes cannot be read.
_MOST_CLASSES = 20
# The batches with the most visits, until so many of all are together.
_MOST_REPEATED_SHARE = 0.01
# Longer trainings have every tenth epoch in the table of repeats.
_MOST_EPOCHS = 30
_STANDINGS = {
    Verdict.HOLDS: "ahead",
    Verdict.DOES_NOT_HOLD: "behind",
    **{each: each.text for each in (Verdict.NO_DIFFERENCE, Verdict.HARDLY_ANY_REPEATS, Verdict.NOT_ENOUGH_RUNS)},
}
Rows = list[list[Cell]]


def report_cifar(cifar: Cifar, epoch_loss: str = "first") -> Report:
    """The report; claims are judged by a reading of ``epoch_loss``."""
    compared, findings, figures, galleries = compare_arms(cifar), judge_claims(cifar, epoch_loss), {}, {}
    if compared:
        rows = [
            Row(_condition(each), f"over {each.claim}", each.values, COLORS[each.claim], each.error)
            for each in compared
        ]
        figures["forest.png"] = forest(rows, "accuracy gain in points (95 % CI), at the last epoch")
    for number, name in enumerate(cifar.configurations, start=1):
        drawn = draw_experiment(cifar, name, judged_reading(cifar, name, epoch_loss))
        slug = re.sub(r"[^a-z0-9]+", "-", f"{number} {name}".lower()).strip("-")
        figures |= {f"{slug}-{kind}.png": figure for kind, (_, figure) in drawn.items()}
        galleries[name] = pictures({f"{slug}-{kind}.png": f"{title}, {name}" for kind, (title, _) in drawn.items()})
    tables = {
        "gains": gain_table(compared),
        "secondary": secondary_table(cifar),
        "beside_paper": beside_paper(cifar, epoch_loss),
        "glance": verdicts_at_a_glance(cifar, findings),
        "table_1": table_1(cifar),
        "overhead": overhead_table(cifar),
        "repeats": repeats_table(cifar),
        "table_2_best": table_2(cifar, "best"),
        "table_2_last": table_2(cifar, "last"),
        "flipped": flipped_table(cifar),
        "trained": trained_table(cifar),
    }
    text = render_template(
        "cifar.md.jinja",
        **tables,
        facts=summarize(cifar, compared, findings),
        claims={
            name: claims_table([each for each in findings if each.experiment == name]) for name in cifar.configurations
        },
        reductions={name: ", ".join(reductions(cifar, name)) for name in cifar.configurations},
        galleries=galleries,
        paper=paper.CITATION,
    )
    return Report(text, figures)


def summarize(cifar: Cifar, compared: Sequence[Finding], findings: Sequence[Finding]) -> dict[str, Any]:
    """What the sentences in front say."""
    attention = cifar.runs[cifar.runs["arm"] == "attention"]
    extra = attention.groupby(["experiment", "noise", "reading"], observed=True)["repeats"].mean()
    conditions: dict[str, dict[str, list[str]]] = {}
    for each in compared:
        by_condition = conditions.setdefault(each.experiment, {})
        by_condition.setdefault(_reading(each), []).append(f"{each.values.mean:+.2f} over {each.claim}")
    return {
        "runs": len(cifar.runs),
        "experiments": len(cifar.configurations),
        "reduced": sum(bool(reductions(cifar, name)) for name in cifar.configurations),
        "standing": {
            other: _standing([each for each in compared if each.claim == other]) for other in ("baseline", "random")
        },
        "extra": _span([*extra], ".1f") if len(extra) else "no",
        "compared": sum(not math.isnan(each.judged.p) for each in compared),
        "survivors": [f"{_condition(each)} over {each.claim}" for each in compared if each.judged.p < SIGNIFICANCE],
        "verdicts": len(findings),
        "overturned": sum(each.is_overturned for each in findings),
        "overfitted": overfitted(cifar),
        "conditions": conditions,
    }


def _standing(compared: Sequence[Finding]) -> str:
    """How many conditions have which verdict, and the range of the gains."""
    if not compared:
        return "not compared"
    counts = Counter(each.judged.verdict for each in compared)
    words = ", ".join(f"{text} in {counts[verdict]}" for verdict, text in _STANDINGS.items() if counts[verdict])
    means = _span([each.values.mean for each in compared], "+.2f")
    return f"{words} of {len(compared)} condition{'s' * (len(compared) > 1)} ({means} points at the last epoch)"


def _span(values: Sequence[float], spec: str) -> str:
    return f"{values[0]:{spec}}" if len(values) == 1 else f"{min(values):{spec}} to {max(values):{spec}}"


def _reading(finding: Finding) -> str:
    return finding.reading + (f", label noise {noise_in_words(finding.noise)}" if finding.noise else "")


def _condition(finding: Finding) -> str:
    return f"{finding.experiment}, {_reading(finding)}"


def reductions(cifar: Cifar, name: str) -> list[str]:
    """In what an experiment is less than, or other than, what the paper did; empty where it is the same."""
    own, data = cifar.configurations[name], cifar.configurations[name].data
    runs = cifar.runs[cifar.runs["experiment"] == name]
    theirs = paper.EXPERIMENTS.get(own.model)
    options = {} if theirs is None else {key: own.model_options[key] for key in own.model_options if key != "img_size"}
    capped = sum(epoch.capped_batches for epochs in runs["epochs"] for epoch in epochs)
    compared = [
        (theirs is None or theirs.data != data.name, f"{own.model} on {data.name}, which the paper has not"),
        *((theirs and theirs.options.get(key) != value, f"{key} {value}") for key, value in options.items()),
        (data.train_images != paper.TRAIN_IMAGES, f"{data.train_images:,} training images"),
        (data.test_images != paper.TEST_IMAGES, f"{data.test_images:,} test images"),
        (own.epochs != paper.EPOCHS, f"{own.epochs} epochs"),
        (own.batch_size != paper.BATCH_SIZE, f"batches of {own.batch_size}"),
        (own.learning_rate != paper.LEARNING_RATE, f"learning rate {own.learning_rate:g}"),
        (theirs and own.k != theirs.k, f"K {own.k:g}"),
        (theirs and own.pretrained != theirs.pretrained, f"with{'' if own.pretrained else 'out'} ImageNet weights"),
        (own.precision in ("bf16", "fp16"), own.precision),
        (any(place.device == "cpu" for run in runs["run"] for place in run.surroundings), "on a CPU"),
        (capped, f"{capped:,} batches left at max_visits, where the paper has no limit"),
    ]
    return [text for is_other, text in compared if is_other]


def gain_table(compared: Sequence[Finding]) -> str:
    """The accuracy gain over every other arm, at the last epoch."""
    rows: Rows = [
        [
            each.experiment,
            noise_in_words(each.noise),
            each.reading,
            each.claim,
            str(each.values.n),
            Gain(each.values, p=each.judged.p),
        ]
        for each in compared
    ]
    return table(["experiment", "label noise", "epoch_loss", "over", "n", "accuracy gain (95 % CI)"], rows)


def secondary_table(cifar: Cifar) -> str:
    """The gains at the best epoch, and of macro-F1."""
    measures = {"accuracy, best epoch": "best_accuracy", "macro-F1, last epoch": "macro_f1"}
    measures["macro-F1, best epoch"] = "best_macro_f1"
    groups = cifar.pairs.groupby(["experiment", "noise", "reading", "other"], observed=True)
    rows: Rows = [
        [
            name,
            noise_in_words(noise),
            reading,
            other,
            str(len(pairs)),
            *(Gain(sample(pairs[each])) for each in measures.values()),
        ]
        for (name, noise, reading, other), pairs in groups
    ]
    correct(rows)
    return table(["experiment", "label noise", "epoch_loss", "over", "n", *measures], rows)


def beside_paper(cifar: Cifar, epoch_loss: str) -> str:
    """The paper's Table 1, and the same of every experiment's runs without label noise."""
    rows: Rows = []
    for model, arms in paper.TABLE_1.items():
        losses, f1 = zip(*arms.values(), strict=True)
        texts = [f"{loss:.6f}" for loss in losses] + [f"{100 * each:.4f}" for each in f1]
        rows.append([f"paper: {model} on cifar10", *texts, f"{100 * (f1[1] - f1[0]):+.2f}"])
        rows += [
            row
            for name in cifar.configurations
            if name.startswith(f"{model} ")
            for row in _ours(cifar, name, epoch_loss)
        ]
    others = [name for name, own in cifar.configurations.items() if own.model not in paper.TABLE_1]
    rows += [row for name in others for row in _ours(cifar, name, epoch_loss)]
    head = [
        "",
        "least test loss: baseline",
        "attention",
        "highest macro-F1, %: baseline",
        "attention",
        "gain (95 % CI)",
    ]
    return table(head, rows)


def _ours(cifar: Cifar, name: str, epoch_loss: str) -> Rows:
    readings = ["-", judged_reading(cifar, name, epoch_loss)]
    runs = cifar.runs[
        (cifar.runs["experiment"] == name) & (cifar.runs["noise"] == 0) & cifar.runs["reading"].isin(readings)
    ]
    pairs = cifar.pairs[
        (cifar.pairs["experiment"] == name) & (cifar.pairs["noise"] == 0) & (cifar.pairs["other"] == "baseline")
    ]
    gain = sample(pairs[pairs["reading"] == readings[1]]["best_macro_f1"])
    if not gain.n:
        return []
    cells = [
        mean_and_deviation(sample(runs[runs["arm"] == arm][measure]), digits)
        for measure, digits in (("best_test_loss", 3), ("best_macro_f1", 2))
        for arm in ("baseline", "attention")
    ]
    return [[f"ours: {name}", *cells, Gain(gain)]]


def verdicts_at_a_glance(cifar: Cifar, findings: Sequence[Finding]) -> str:
    """A row a claim and a column an experiment; where a claim was judged several times, the first is shown."""
    first = {
        (each.claim, each.experiment): Mark(each.judged.verdict, each.is_overturned) for each in reversed(findings)
    }
    rows: Rows = [
        [text, *(first.get((claim, name), "-") for name in cifar.configurations)] for claim, text in CLAIMS.items()
    ]
    return table(["claim", *cifar.configurations], rows)


def claims_table(findings: Sequence[Finding]) -> str:
    """Every finding on an experiment, with its numbers."""
    rows: Rows = []
    for each in findings:
        p = "-" if math.isnan(each.judged.p) else show_p(each.judged.p)
        mark = Mark(each.judged.verdict, each.is_overturned)
        rows.append([mark, CLAIMS[each.claim], each.numbers, p, each.remark])
    return table(["verdict", "claim", "attention minus the other arm (95 % CI)", "p, Holm", "remark"], rows)


def _by_arm(runs: pd.DataFrame, cells: Callable[[pd.DataFrame], Sequence[Cell]]) -> Rows:
    groups = runs.groupby(["experiment", "noise", "reading", "arm"], observed=True)
    return [
        [name, noise_in_words(noise), arm if reading == "-" else f"{arm}, {reading}", str(len(group)), *cells(group)]
        for (name, noise, reading, arm), group in groups
    ]


def table_1(cifar: Cifar) -> str:
    """The paper's Table 1, with the same at the last epoch, for all arms."""
    measures = {"least test loss": "best_test_loss", "highest macro-F1, %": "best_macro_f1"}
    measures |= {"highest accuracy, %": "best_accuracy", "last test loss": "test_loss", "last macro-F1, %": "macro_f1"}
    measures |= {"last accuracy, %": "accuracy"}

    def cells(runs: pd.DataFrame) -> list[Cell]:
        return [mean_and_deviation(sample(runs[each]), 3 if "loss" in each else 2) for each in measures.values()]

    return table(["experiment", "label noise", "arm", "n", *measures], _by_arm(cifar.runs, cells))


def table_2(cifar: Cifar, at: str) -> str:
    """The paper's Table 2: wrong predictions by predicted class, and their variance; empty without such experiments."""
    lists = {
        name: own.data.classes for name, own in cifar.configurations.items() if len(own.data.classes) <= _MOST_CLASSES
    }
    most = max(map(len, lists.values()), default=0)
    is_same = len({*map(tuple, lists.values())}) == 1
    heads = next(iter(lists.values())) if is_same else [f"class {number}" for number in range(1, most + 1)]
    rows: Rows = []
    if at == "best" and any(cifar.configurations[name].data.name == "cifar10" for name in lists):
        for arm, (counts, cats, dogs) in paper.TABLE_2.items():
            padded = [*map(str, counts), *["-"] * (most - len(counts))]
            # The variance is computed from the counts like ours, and equal to what the paper prints.
            rows.append(["paper: tnt", "none", arm, "1", *padded, f"{np.var(counts):.2f}", str(cats), str(dogs)])

    def cells(runs: pd.DataFrame) -> list[Cell]:
        classes = lists[runs["experiment"].iloc[0]]
        prefix = "best_" if at == "best" else ""
        means = [f"{mean:.1f}" for mean in np.mean([*runs[f"{prefix}wrong"]], axis=0)] + ["-"] * (most - len(classes))
        confusion = np.mean([getattr(run, at).confusion for run in runs["run"]], axis=0)
        mixed = ["-", "-"]
        if {"cat", "dog"} <= set(classes):
            cat, dog = classes.index("cat"), classes.index("dog")
            mixed = [f"{confusion[cat, dog]:.1f}", f"{confusion[dog, cat]:.1f}"]
        return [*means, mean_and_deviation(sample(runs[f"{prefix}variance"]), 0), *mixed]

    rows += _by_arm(cifar.runs[cifar.runs["experiment"].isin(list(lists))], cells)
    head = ["experiment", "label noise", "arm", "n", *heads, "variance", "cat taken for dog", "dog taken for cat"]
    return table(head, rows) if rows else ""


def _by_condition(cifar: Cifar, head: Sequence[str], cells: Callable[[pd.DataFrame], list[Cell]]) -> str:
    groups = cifar.runs[cifar.runs["arm"] == "attention"].groupby(["experiment", "noise", "reading"], observed=True)
    rows = [[name, noise_in_words(noise), reading, *cells(runs)] for (name, noise, reading), runs in groups]
    return table(["experiment", "label noise", "epoch_loss", *head], rows)


def overhead_table(cifar: Cifar) -> str:
    """What attention costs, for each reading of ``epoch_loss``."""
    keys = ["experiment", "noise", "reading"]

    def cells(runs: pd.DataFrame) -> list[Cell]:
        pairs = cifar.pairs[cifar.pairs["other"] == "baseline"].merge(runs[[*keys, "seed"]], on=[*keys, "seed"])
        timed = show(sample(pairs["more_seconds"]), "", 1, sign=False) if is_timed(pairs) else "-"
        epochs = [epoch for of_run in runs["epochs"] for epoch in of_run]
        capped = f"{sum(epoch.capped_batches for epoch in epochs):,} of {sum(epoch.batches for epoch in epochs):,}"
        updates = show(sample(runs["repeats"]), "", 1, sign=False)
        return [updates, timed, str(max(epoch.most_visits for epoch in epochs)), capped]

    head = ["extra updates, %", "extra seconds, %", "most visits to a batch", "batches at max_visits"]
    return _by_condition(cifar, head, cells)


def repeats_table(cifar: Cifar) -> str:
    """Repeats in each epoch, or in every tenth of more than 30."""
    longest = max(own.epochs for own in cifar.configurations.values())
    step = 1 if longest <= _MOST_EPOCHS else 10
    shown = sorted({1, *range(step, longest + 1, step), longest})

    def cells(runs: pd.DataFrame) -> list[Cell]:
        there = [[epochs[number - 1] for epochs in runs["epochs"] if number <= len(epochs)] for number in shown]
        return [
            f"{np.mean([100 * epoch.repeats / epoch.batches for epoch in each]):.1f}" if each else "-" for each in there
        ]

    return _by_condition(cifar, [*map(str, shown)], cells)


def flipped_table(cifar: Cifar) -> str:
    """Do repeats point to wrong labels? Empty without label noise."""
    noisy = cifar.runs[(cifar.runs["arm"] == "attention") & (cifar.runs["noise"] > 0)]
    rows: Rows = []
    for (name, noise, reading), runs in noisy.groupby(["experiment", "noise", "reading"], observed=True):
        counts: dict[int, Any] = {}
        for epoch in [epoch for epochs in runs["epochs"] for epoch in epochs]:
            for visits, of in (epoch.batches_by_visits or {}).items():
                counts[visits] = counts.get(visits, 0) + np.array([of.batches, of.with_flipped, of.flipped])
        groups = {"all": [*counts], "visited once": [1], "repeated": [visits for visits in counts if visits > 1]}
        batches = {visits: int(each[0]) for visits, each in counts.items()}
        groups[f"most repeated, {_MOST_REPEATED_SHARE:.0%} of all"] = most_repeated(batches)
        for group, members in groups.items():
            total, with_flipped, flipped = sum((counts[each] for each in members if each in counts), np.zeros(3, int))
            if total:
                numbers = [f"{total:,}", f"{100 * with_flipped / total:.1f}", f"{flipped / total:.2f}"]
                rows.append([name, noise_in_words(noise), reading, group, *numbers])
    head = [
        "experiment",
        "label noise",
        "epoch_loss",
        "batches",
        "how many",
        "with a wrong label, %",
        "wrong labels a batch",
    ]
    return table(head, rows) if rows else ""


def most_repeated(batches: dict[int, int]) -> list[int]:
    """The numbers of visits of the most visited batches: from the top, until a hundredth of all are together."""
    wanted, chosen = _MOST_REPEATED_SHARE * sum(batches.values()), list[int]()
    for visits in sorted(batches, reverse=True):
        if visits > 1 and sum(batches[each] for each in chosen) < wanted:
            chosen.append(visits)
    return chosen


def trained_table(cifar: Cifar) -> str:
    """What was trained, with what, and on what."""
    rows: Rows = []
    for name, own in cifar.configurations.items():
        runs = cifar.runs[cifar.runs["experiment"] == name]
        start = f"ImageNet weights{f' ({own.weights})' if own.weights else ''}" if own.pretrained else "from scratch"
        training = (
            f"{own.architecture}, {own.parameters:,} parameters, {start}; Adam {own.learning_rate:g}, batch "
            f"{own.batch_size}, {own.epochs} epochs, K {own.k:g}, max_visits {own.max_visits or 'none'}; precision "
            f"{own.precision}{', channels last' * own.channels_last}{', deterministic algorithms' * own.deterministic}"
        )
        size = f"{own.data.train_images:,} + {own.data.test_images:,} images of {own.data.height}x{own.data.width}"
        unfinished = f", {cifar.unfinished[name]} unfinished left out" if cifar.unfinished[name] else ""
        rows.append([name, training, size, f"{len(runs)}{unfinished}", "; ".join(machines(runs))])
    return table(["experiment", "training", "data", "runs", "hardware and versions"], rows)


def machines(runs: pd.DataFrame) -> list[str]:
    """What runs ran on, a line each."""
    return sorted({one_line(place.environment) for run in runs["run"] for place in run.surroundings})
