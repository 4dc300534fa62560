"""The report on runs of ``benchmarks.cifar``: do the paper's claims hold?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.claims import CLAIMS, PAPER, Finding, compare_arms, judge_claims, judged_reading, overfitted
from benchmarks.report.document import Report, Row, correct, render_template, table
from benchmarks.report.figures import COLORS, Line, draw_experiment, forest
from benchmarks.report.results import Cifar, gain, is_timed
from benchmarks.report.statistics import SIGNIFICANCE, Verdict, sample
from benchmarks.report.wording import Gain, Mark, mean_and_deviation, noise_in_words, show, show_p

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
# Classes of the same name have numbers in place of names.
_HEADS = {"experiment", "label noise", "arm", "n", "variance"}
_CONDITION = ["experiment", "noise", "reading"]


def report_cifar(cifar: Cifar, epoch_loss: str = "first") -> Report:
    """The report; claims are judged by a reading of ``epoch_loss``."""
    compared, findings, figures, galleries = compare_arms(cifar), judge_claims(cifar, epoch_loss), {}, {}
    if compared:
        lines = [
            Line(_condition(each), f"over {each.claim}", each.values, COLORS[each.claim], each.error)
            for each in compared
        ]
        figures["forest.png"] = forest(lines, "accuracy gain in points (95 % CI), at the last epoch")
    for number, name in enumerate(cifar.configurations, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", f"{number} {name}".lower()).strip("-")
        drawn = draw_experiment(cifar, name, judged_reading(cifar, name, epoch_loss))
        figures |= {f"{slug}-{kind}.png": figure for kind, figure in drawn.items()}
        galleries[name] = {kind: f"{slug}-{kind}.png" for kind in drawn}
    trained = [
        (name, own, len(runs), cifar.unfinished[name], machines(runs))
        for name, own in cifar.configurations.items()
        for runs in [cifar.runs[cifar.runs["experiment"] == name]]
    ]
    text = render_template(
        "cifar.md.jinja",
        gains=gain_table(compared),
        secondary=secondary_table(cifar),
        beside_paper=beside_paper(cifar, epoch_loss),
        glance=verdicts_at_a_glance(cifar, findings),
        table_1=table_1(cifar),
        overhead=overhead_table(cifar),
        repeats=repeats_table(cifar),
        table_2_best=table_2(cifar, "best_"),
        table_2_last=table_2(cifar, ""),
        flipped=flipped_table(cifar),
        trained=trained,
        facts=summarize(cifar, compared, findings),
        claims={name: claims_table(findings, name) for name in cifar.configurations},
        reductions={name: ", ".join(reductions(cifar, name)) for name in cifar.configurations},
        galleries=galleries,
        paper=PAPER["citation"],
    )
    return Report(text, figures)


def summarize(cifar: Cifar, compared: Sequence[Finding], findings: Sequence[Finding]) -> dict[str, Any]:
    """What the sentences in front say."""
    attention = cifar.runs[cifar.runs["arm"] == "attention"]
    extra = attention.groupby(_CONDITION, observed=True)["repeats"].mean()
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
    runs, theirs = cifar.runs[cifar.runs["experiment"] == name], PAPER["experiments"].get(own.model)
    options = {key: value for key, value in own.model_options.items() if theirs and key != "img_size"}
    capped = sum(epoch.capped_batches for epochs in runs["epochs"] for epoch in epochs)
    compared = [
        (not theirs or theirs["data"] != data.name, f"{own.model} on {data.name}, which the paper has not"),
        *((theirs["options"].get(key) != value, f"{key} {value}") for key, value in options.items()),
        (data.train_images != PAPER["train_images"], f"{data.train_images:,} training images"),
        (data.test_images != PAPER["test_images"], f"{data.test_images:,} test images"),
        (own.epochs != PAPER["epochs"], f"{own.epochs} epochs"),
        (own.batch_size != PAPER["batch_size"], f"batches of {own.batch_size}"),
        (own.learning_rate != PAPER["learning_rate"], f"learning rate {own.learning_rate:g}"),
        (theirs and own.k != theirs["k"], f"K {own.k:g}"),
        (theirs and own.pretrained != theirs["pretrained"], f"with{'' if own.pretrained else 'out'} ImageNet weights"),
        (own.precision in ("bf16", "fp16"), own.precision),
        (any(place.device == "cpu" for run in runs["run"] for place in run.surroundings), "on a CPU"),
        (capped, f"{capped:,} batches left at max_visits, where the paper has no limit"),
    ]
    return [text for is_other, text in compared if is_other]


def machines(runs: pd.DataFrame) -> list[str]:
    """What runs ran on, a line each."""
    return sorted({one_line(place.environment) for run in runs["run"] for place in run.surroundings})


def _name(experiment: str, noise: int, reading: str) -> dict[str, Any]:
    return {"experiment": experiment, "label noise": noise_in_words(noise), "epoch_loss": reading}


def _each(frame: pd.DataFrame, *more: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The first cells of a row, and what it is on."""
    for (experiment, noise, reading, *others), group in frame.groupby([*_CONDITION, *more], observed=True):
        named = _name(str(experiment), int(noise), str(reading)) | dict(zip(more, others, strict=True))
        if "arm" in more:
            reading = named.pop("epoch_loss")
            named["arm"] += "" if reading == "-" else f", {reading}"
        yield named | ({"n": str(len(group))} if more else {}), group


def gain_table(compared: Sequence[Finding]) -> str:
    """The accuracy gain over every other arm, at the last epoch."""
    return table(
        _name(each.experiment, each.noise, each.reading)
        | {"over": each.claim, "n": str(each.values.n)}
        | {"accuracy gain (95 % CI)": Gain(each.values, p=each.judged.p)}
        for each in compared
    )


def secondary_table(cifar: Cifar) -> str:
    """The gains at the best epoch, and of macro-F1."""
    measures = {"accuracy, best epoch": "best_accuracy", "macro-F1, last epoch": "macro_f1"}
    measures["macro-F1, best epoch"] = "best_macro_f1"
    rows, gains = [], list[Gain]()
    for named, pairs in _each(cifar.pairs.assign(over=cifar.pairs["other"]), "over"):
        of_row = {head: Gain(sample(pairs[measure])) for head, measure in measures.items()}
        gains += of_row.values()
        rows.append(named | of_row)
    correct(gains)
    return table(rows)


def beside_paper(cifar: Cifar, epoch_loss: str) -> str:
    """The paper's Table 1, and the same of every experiment's runs without label noise."""
    rows = {model: [theirs] for model, theirs in PAPER["table_1"].items()}
    for name, own in cifar.configurations.items():
        readings = ["-", judged_reading(cifar, name, epoch_loss)]
        runs = cifar.runs[(cifar.runs["experiment"] == name) & (cifar.runs["noise"] == 0)]
        runs = runs[runs["reading"].isin(readings)]
        row: Row = {"": f"ours: {name}"}
        for words, measure, digits in (
            ("least test loss", "best_test_loss", 3),
            ("highest macro-F1, %", "best_macro_f1", 2),
        ):
            for arm in ("baseline", "attention"):
                row[f"{words}: {arm}"] = mean_and_deviation(sample(runs[runs["arm"] == arm][measure]), digits)
        row["gain (95 % CI)"] = Gain(gain(runs, "attention", "baseline", "best_macro_f1"))
        if row["gain (95 % CI)"].values.n:
            rows.setdefault(own.model, []).append(row)
    return table(row for of_model in rows.values() for row in of_model)


def verdicts_at_a_glance(cifar: Cifar, findings: Sequence[Finding]) -> str:
    """A row a claim and a column an experiment; where a claim was judged several times, the first is shown."""
    first = {
        (each.claim, each.experiment): Mark(each.judged.verdict, each.is_overturned) for each in reversed(findings)
    }
    return table(
        {"claim": text} | {name: first.get((claim, name), "-") for name in cifar.configurations}
        for claim, text in CLAIMS.items()
    )


def claims_table(findings: Sequence[Finding], name: str) -> str:
    """Every finding on an experiment, with its numbers."""
    return table(
        {
            "verdict": Mark(each.judged.verdict, each.is_overturned),
            "claim": CLAIMS[each.claim],
            "attention minus the other arm (95 % CI)": each.numbers,
            "p, Holm": "-" if math.isnan(each.judged.p) else show_p(each.judged.p),
            "remark": each.remark,
        }
        for each in findings
        if each.experiment == name
    )


def table_1(cifar: Cifar) -> str:
    """The paper's Table 1, with the same at the last epoch, for all arms."""
    measures = {"least test loss": "best_test_loss", "highest macro-F1, %": "best_macro_f1"}
    measures |= {"highest accuracy, %": "best_accuracy", "last test loss": "test_loss", "last macro-F1, %": "macro_f1"}
    measures |= {"last accuracy, %": "accuracy"}
    return table(
        named
        | {head: mean_and_deviation(sample(runs[of]), 3 if "loss" in head else 2) for head, of in measures.items()}
        for named, runs in _each(cifar.runs, "arm")
    )


def table_2(cifar: Cifar, at: str) -> str:
    """The paper's Table 2: wrong predictions by predicted class, and their variance; empty without such experiments."""
    lists = {
        name: own.data.classes for name, own in cifar.configurations.items() if len(own.data.classes) <= _MOST_CLASSES
    }
    most = max(map(len, lists.values()), default=0)
    heads, *others = {*map(tuple, lists.values())} or {()}
    if others or _HEADS & {*heads}:
        heads = tuple(f"class {number}" for number in range(1, most + 1))
    rows: list[Row] = []
    if at == "best_" and any(cifar.configurations[name].data.name == "cifar10" for name in lists):
        for arm, theirs in PAPER["table_2"].items():
            named = {"experiment": "paper: tnt", "label noise": "none", "arm": arm, "n": "1"}
            # The variance is computed from the counts like ours, and equal to what the paper prints.
            rows.append(
                named
                | _counts(heads, theirs["wrong"], ".0f")
                | {"variance": f"{np.var(theirs['wrong']):.2f}"}
                | theirs["mixed"]
            )
    for named, runs in _each(cifar.runs[cifar.runs["experiment"].isin([*lists])], "arm"):
        classes = lists[named["experiment"]]
        row = named | _counts(heads, np.mean([*runs[f"{at}wrong"]], axis=0), ".1f")
        row["variance"] = mean_and_deviation(sample(runs[f"{at}variance"]), 0)
        if {"cat", "dog"} <= {*classes}:
            confusion, cat, dog = np.mean([*runs[f"{at}confusion"]], axis=0), classes.index("cat"), classes.index("dog")
            row |= {
                "cat taken for dog": f"{confusion[cat, dog]:.1f}",
                "dog taken for cat": f"{confusion[dog, cat]:.1f}",
            }
        rows.append(row)
    return table(rows)


def _counts(heads: Sequence[str], counts: Sequence[float], spec: str) -> dict[str, str]:
    """Cells of classes; an experiment with fewer has none in the last."""
    return dict.fromkeys(heads, "-") | {head: f"{count:{spec}}" for head, count in zip(heads, counts, strict=False)}


def overhead_table(cifar: Cifar) -> str:
    """What attention costs, for each reading of ``epoch_loss``."""
    rows = []
    for named, runs in _each(cifar.runs[cifar.runs["arm"] == "attention"]):
        of_baseline = cifar.pairs[cifar.pairs["other"] == "baseline"]
        pairs = of_baseline.merge(runs[[*_CONDITION, "seed"]], on=[*_CONDITION, "seed"])
        epochs = [epoch for of_run in runs["epochs"] for epoch in of_run]
        capped = f"{sum(epoch.capped_batches for epoch in epochs):,} of {sum(epoch.batches for epoch in epochs):,}"
        numbers = {
            "extra updates, %": show(sample(runs["repeats"]), "", 1, sign=False),
            "extra seconds, %": show(sample(pairs["more_seconds"]), "", 1, sign=False) if is_timed(pairs) else "-",
            "most visits to a batch": str(max(epoch.most_visits for epoch in epochs)),
            "batches at max_visits": capped,
        }
        rows.append(named | numbers)
    return table(rows)


def repeats_table(cifar: Cifar) -> str:
    """Repeats in each epoch, or in every tenth of more than 30."""
    longest = max(own.epochs for own in cifar.configurations.values())
    step = 1 if longest <= _MOST_EPOCHS else 10
    shown = sorted({1, *range(step, longest + 1, step), longest})
    rows = []
    for named, runs in _each(cifar.runs[cifar.runs["arm"] == "attention"]):
        percents = pd.DataFrame(
            [[100 * epoch.repeats / epoch.batches for epoch in epochs] for epochs in runs["epochs"]]
        )
        means = percents.mean().reindex([number - 1 for number in shown])
        rows.append(named | {str(each + 1): "-" if math.isnan(mean) else f"{mean:.1f}" for each, mean in means.items()})
    return table(rows)


def flipped_table(cifar: Cifar) -> str:
    """Do repeats point to wrong labels? Empty without label noise."""
    rows = []
    for named, runs in _each(cifar.runs[(cifar.runs["arm"] == "attention") & (cifar.runs["noise"] > 0)]):
        lines = [
            {"visits": visits, **of.model_dump()}
            for epochs in runs["epochs"]
            for epoch in epochs
            for visits, of in (epoch.batches_by_visits or {}).items()
        ]
        counts = pd.DataFrame(lines, columns=["visits", "batches", "with_flipped", "flipped"]).groupby("visits").sum()
        groups = {"all": counts, "visited once": counts[counts.index == 1], "repeated": counts[counts.index > 1]}
        groups[f"most repeated, {_MOST_REPEATED_SHARE:.0%} of all"] = most_repeated(counts)
        for group, members in groups.items():
            batches, with_flipped, flipped = members.sum()
            if batches:
                row = named | {"batches": group, "how many": f"{batches:,}"}
                row["with a wrong label, %"] = f"{100 * with_flipped / batches:.1f}"
                rows.append(row | {"wrong labels a batch": f"{flipped / batches:.2f}"})
    return table(rows)


def most_repeated(counts: pd.DataFrame) -> pd.DataFrame:
    """The most visited batches: from the top, until a hundredth of all are together."""
    repeated = counts[counts.index > 1].sort_index(ascending=False)
    above = repeated["batches"].cumsum() - repeated["batches"]
    return repeated[above < _MOST_REPEATED_SHARE * counts["batches"].sum()]
