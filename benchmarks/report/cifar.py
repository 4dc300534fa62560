"""The report on runs of ``benchmarks.cifar``: do the paper's claims hold?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from benchmarks.environment import one_line
from benchmarks.report.claims import CLAIMS, PAPER, compare_arms, judge_claims, judged_reading, overfitted
from benchmarks.report.document import Report, render_template
from benchmarks.report.figures import COLORS, Line, draw_experiment, forest
from benchmarks.report.results import Cifar, gain, is_timed
from benchmarks.report.statistics import Gain, Verdict, correct, sample

# With more columns, a table of classes cannot be read.
_MOST_CLASSES = 20
# The batches with the most visits, until so many of all are together.
_MOST_REPEATED_SHARE = 0.01
# Longer trainings have every tenth epoch in the table of repeats.
_MOST_EPOCHS = 30


def report_cifar(cifar: Cifar, epoch_loss: str = "first") -> Report:
    """The report; claims are judged by a reading of ``epoch_loss``."""
    found, figures, galleries = findings(cifar, epoch_loss), {}, {}
    if compared := found["compared"]:
        lines = [
            Line(
                f"{each.experiment}, {each.condition}",
                f"over {each.claim}",
                each.gain.values,
                COLORS[each.claim],
                each.error,
            )
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
        attention=attention,
        secondary=secondary_gains(cifar),
        beside_paper=beside_paper(cifar, epoch_loss),
        timed={condition: pairs for condition, pairs in over_baseline if is_timed(pairs)},
        repeats=repeats_by_epoch(cifar, attention),
        classes=_heads([of.classes for of in data.values()]),
        few_classes=cifar.runs[cifar.runs["experiment"].isin([*data])],
        has_cifar10=any(of.name == "cifar10" for of in data.values()),
        flipped=[*flipped_groups(attention[attention["noise"] > 0])],
        machines=machines,
        galleries=galleries,
        paper=PAPER,
    )
    return Report(text, figures)


def findings(cifar: Cifar, epoch_loss: str = "first") -> dict[str, Any]:
    """What the templates of what was found are filled in with."""
    judged = judge_claims(cifar, epoch_loss)
    return {
        "cifar": cifar,
        "compared": compare_arms(cifar),
        "findings": judged,
        "claims": CLAIMS,
        # Where a claim was judged several times, the first is shown.
        "first_findings": {(each.claim, each.experiment): each for each in reversed(judged)},
        "overfitted": overfitted(cifar),
        "reductions": {name: ", ".join(reductions(cifar, name)) for name in cifar.configurations},
        "verdicts": Verdict,
    }


def reductions(cifar: Cifar, name: str) -> list[str]:
    """In what an experiment is less than, or other than, what the paper did; empty where it is the same."""
    own, runs = cifar.configurations[name], cifar.runs[cifar.runs["experiment"] == name]
    known, capped = PAPER["experiments"].get(own.model, {}), runs["capped_batches"].sum()
    ours, theirs = own.model_dump() | own.data.model_dump(), PAPER["settings"] | known
    options = {key: value for key, value in own.model_options.items() if known and key != "img_size"}
    words = PAPER["other settings"].items()
    compared = [
        (own.data.name != known.get("data"), f"{own.model} on {own.data.name}, which the paper has not"),
        *((known.get(key) != value, f"{key} {value}") for key, value in options.items()),
        *((ours[key] != theirs.get(key, ours[key]), text.format(ours[key])) for key, text in words),
        (known and own.pretrained != known["pretrained"], f"with{'' if own.pretrained else 'out'} ImageNet weights"),
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
        if gains.values.n:
            arms = [runs[runs["arm"] == arm] for arm in ("baseline", "attention")]
            rows.setdefault(own.model, []).append((name, *arms, gains.values))
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
