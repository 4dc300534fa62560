"""The report on runs of ``benchmarks.cifar``: do the paper's claims hold?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.claims import CLAIMS, PAPER, Finding, compare_arms, judge_claims, judged_reading, overfitted
from benchmarks.report.document import Report, render_template
from benchmarks.report.figures import COLORS, Line, draw_experiment, forest
from benchmarks.report.results import Cifar, gain, is_timed
from benchmarks.report.statistics import SIGNIFICANCE, Verdict, sample
from benchmarks.report.wording import Gain, correct, noise_in_words

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


def report_cifar(cifar: Cifar, epoch_loss: str = "first") -> Report:
    """The report; claims are judged by a reading of ``epoch_loss``."""
    found, figures, galleries = findings(cifar, epoch_loss), {}, {}
    if compared := found["compared"]:
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
    attention = cifar.runs[cifar.runs["arm"] == "attention"]
    over_baseline = cifar.pairs[cifar.pairs["other"] == "baseline"].groupby("condition")
    data = {name: own.data for name, own in cifar.configurations.items() if len(own.data.classes) <= _MOST_CLASSES}
    text = render_template(
        "cifar.md.jinja",
        **found,
        cifar=cifar,
        attention=attention,
        secondary=secondary_gains(cifar),
        beside_paper=beside_paper(cifar, epoch_loss),
        timed={condition: pairs for condition, pairs in over_baseline if is_timed(pairs)},
        repeats=repeats_by_epoch(cifar, attention),
        classes=_heads([of.classes for of in data.values()]),
        few_classes=cifar.runs[cifar.runs["experiment"].isin([*data])],
        has_cifar10=any(of.name == "cifar10" for of in data.values()),
        flipped=[*flipped_groups(attention[attention["noise"] > 0])],
        reductions={name: ", ".join(reductions(cifar, name)) for name in cifar.configurations},
        machines=machines,
        galleries=galleries,
        paper=PAPER,
    )
    return Report(text, figures)


def findings(cifar: Cifar, epoch_loss: str = "first") -> dict[str, Any]:
    """What is found of the claims and of the comparisons, and what the sentences in front say of it."""
    compared, judged = compare_arms(cifar), judge_claims(cifar, epoch_loss)
    return {
        "compared": compared,
        "findings": judged,
        "facts": summarize(cifar, compared, judged),
        "claims": CLAIMS,
        "experiments": [*cifar.configurations],
        # Where a claim was judged several times, the first is shown.
        "verdicts": {
            (each.claim, each.experiment): (each.judged.verdict, each.is_overturned) for each in reversed(judged)
        },
    }


def summarize(cifar: Cifar, compared: Sequence[Finding], findings: Sequence[Finding]) -> dict[str, Any]:
    """What the sentences in front say."""
    attention = cifar.runs[cifar.runs["arm"] == "attention"]
    extra = attention.groupby("condition")["repeats"].mean()
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
    capped = runs["capped_batches"].sum()
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


def secondary_gains(cifar: Cifar) -> list[tuple[str, str, list[Gain]]]:
    """The gains at the best epoch, and of macro-F1, by condition and other arm."""
    rows = [
        (condition, other, [Gain(sample(pairs[field])) for field in ("best_accuracy", "macro_f1", "best_macro_f1")])
        for (condition, other), pairs in cifar.pairs.groupby(["condition", "other"], sort=False, observed=True)
    ]
    correct([gain for *_, gains in rows for gain in gains])
    return rows


def beside_paper(cifar: Cifar, epoch_loss: str) -> dict[str, list[Any]]:
    """By model, what stands below the paper's Table 1: runs without label noise of both arms, and the gain."""
    rows: dict[str, list[Any]] = {model: [] for model in PAPER["table_1"]}
    for name, own in cifar.configurations.items():
        runs = cifar.runs[(cifar.runs["experiment"] == name) & (cifar.runs["noise"] == 0)]
        runs = runs[runs["reading"].isin(["-", judged_reading(cifar, name, epoch_loss)])]
        gains = gain(runs, "attention", "baseline", "best_macro_f1")
        if gains.n:
            arms = [runs[runs["arm"] == arm] for arm in ("baseline", "attention")]
            rows.setdefault(own.model, []).append((name, *arms, Gain(gains)))
    return rows


def _heads(lists: Sequence[Sequence[str]]) -> list[str]:
    """Classes as heads of columns: with numbers where experiments have others."""
    most = max(lists, key=len, default=[])
    return [*most] if len({*map(tuple, lists)}) == 1 else [f"class {number}" for number in range(1, len(most) + 1)]


def repeats_by_epoch(cifar: Cifar, attention: pd.DataFrame) -> pd.DataFrame:
    """Mean repeats in per cent of batches by condition, in each epoch, or in every tenth of more than 30."""
    longest = max(own.epochs for own in cifar.configurations.values())
    step = 1 if longest <= _MOST_EPOCHS else 10
    percents = [[100 * epoch.repeats / epoch.batches for epoch in epochs] for epochs in attention["epochs"]]
    means = pd.DataFrame(percents, attention["condition"]).groupby(level=0, sort=False).mean()
    return means.rename(columns=lambda place: place + 1).reindex(
        columns=sorted({1, *range(step, longest + 1, step), longest})
    )


def flipped_groups(attention: pd.DataFrame) -> Iterator[tuple[str, str, int, int, int]]:
    """Do repeats point to wrong labels? By condition, groups of batches: how many, with wrong labels, and these."""
    for condition, runs in attention.groupby("condition", sort=False):
        lines = [
            {"visits": visits, **of.model_dump()}
            for epochs in runs["epochs"]
            for epoch in epochs
            for visits, of in (epoch.batches_by_visits or {}).items()
        ]
        counts = pd.DataFrame(lines, columns=["visits", "batches", "with_flipped", "flipped"]).groupby("visits").sum()
        groups = {"all": counts, "visited once": counts[counts.index == 1], "repeated": counts[counts.index > 1]}
        # From the top, until a hundredth of all are together.
        most = groups["repeated"].sort_index(ascending=False)
        is_most = most["batches"].cumsum() - most["batches"] < _MOST_REPEATED_SHARE * counts["batches"].sum()
        groups[f"most repeated, {_MOST_REPEATED_SHARE:.0%} of all"] = most[is_most]
        for group, members in groups.items():
            if len(members):
                yield condition, group, *members.sum()
