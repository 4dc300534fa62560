"""The tables of a report: rows of text, each number from the records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report import paper
from benchmarks.report.claims import Finding, show
from benchmarks.report.comparisons import pairs, seconds_overhead
from benchmarks.report.results import (
    At,
    Condition,
    Experiment,
    accuracy,
    confusion,
    macro_f1,
    overhead_percent,
    test_loss,
    variance,
    wrong_predictions,
)
from benchmarks.report.statistics import Sample, sample
from benchmarks.schema import ARMS, Arm, Flipped, Run

# More columns than this are no table.
_MOST_CLASSES = 20
# The batches with the most visits, until so many of all are together.
_MOST_REPEATED_SHARE = 0.01


class Table(NamedTuple):
    """A table.

    Attributes:
        head: The names of the columns.
        rows: Text for each column.
        caption: What stands below it; may be empty.
    """

    head: list[str]
    rows: list[list[str]]
    caption: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [f"| {' | '.join(row)} |" for row in [self.head, *self.rows]]
        lines.insert(1, "|" + " --- |" * len(self.head))
        return "\n".join([*lines, *(["", self.caption] if self.caption else [])])


def claims_table(findings: Sequence[Finding]) -> Table:
    """A verdict for every claim and experiment."""
    rows = [
        [
            finding.claim,
            finding.experiment or "-",
            f"**{finding.verdict.value}**",
            finding.numbers,
            f"reduced: {finding.caveat}" if finding.caveat else "",
        ]
        for finding in findings
    ]
    return Table(["claim", "experiment", "verdict", "attention less the other arm", "what it rests on"], rows)


def table_1(experiments: Sequence[Experiment]) -> Table:
    """The paper's Table 1, with the same at the last epoch, for all arms."""
    head = ["experiment", "labels redrawn", "arm", "n", "least test loss", "highest macro-F1, %", "highest accuracy, %"]
    head += ["last test loss", "last macro-F1, %", "last accuracy, %"]
    rows = [
        [f"paper: {row.model}", "none", row.arm, "1", f"{row.min_test_loss}", f"{100 * row.max_f1:.4f}", *["-"] * 4]
        for row in paper.TABLE_1
    ]
    for experiment in experiments:
        for condition, arm in _arms(experiment):
            columns: list[Sample] = []
            for at in ("best", "last"):
                columns += [
                    experiment.measure(arm, condition, measure(at)) for measure in (test_loss, macro_f1, accuracy)
                ]
            texts = [mean_and_deviation(column, 3 if i % 3 == 0 else 2) for i, column in enumerate(columns)]
            name = _arm_name(arm, condition)
            rows.append([experiment.name, _noise(condition), name, str(columns[0].n), *texts])
    caption = (
        "Mean ± standard deviation (n - 1) over n seeds. Least and highest are over the epochs, on the test set, as in "
        "the paper."
    )
    return Table(head, rows, caption)


def differences_table(experiments: Sequence[Experiment]) -> Table:
    """Attention against every other arm, paired by seed."""
    head = [
        "experiment",
        "labels redrawn",
        "epoch_loss",
        "attention less",
        "accuracy, last epoch",
        "accuracy, best epoch",
    ]
    head += ["macro-F1, last epoch", "macro-F1, best epoch"]
    rows = []
    for experiment in experiments:
        for condition in experiment.conditions():
            for other in ("baseline", "random", "longer"):
                if experiment.seeds(["attention", other], condition):
                    texts = [
                        show(experiment.differences(condition, other, measure(at)), "")
                        for measure in (accuracy, macro_f1)
                        for at in ("last", "best")
                    ]
                    rows.append([experiment.name, _noise(condition), condition.epoch_loss, other, *texts])
    return Table(head, rows, "Points; mean of paired differences with its 95 % t interval.")


def overhead_table(experiments: Sequence[Experiment]) -> Table:
    """What attention costs, for each reading of ``epoch_loss``."""
    head = [
        "experiment",
        "labels redrawn",
        "epoch_loss",
        "more updates, %",
        "more seconds, %",
        "most visits to a batch",
    ]
    head += ["batches at max_visits"]
    rows = []
    for experiment in experiments:
        for condition in experiment.conditions():
            timed = "-"
            if not experiment.seeds(("baseline", "attention"), condition):
                timed = "no baseline"
            elif experiment.is_timed(("baseline", "attention"), condition):
                values = sample([seconds_overhead(*pair) for pair in pairs(experiment, condition, "baseline")])
                timed = show(values, "", 1, sign=False)
            epochs = [
                epoch
                for seed in experiment.seeds(["attention"], condition)
                for epoch in experiment.epochs_of("attention", condition, seed)
            ]
            extra = experiment.measure("attention", condition, overhead_percent)
            rows.append(
                [
                    experiment.name,
                    _noise(condition),
                    condition.epoch_loss,
                    show(extra, "", 1, sign=False),
                    timed,
                    str(max(epoch.most_visits for epoch in epochs)),
                    f"{sum(epoch.capped_batches for epoch in epochs):,} of {sum(epoch.batches for epoch in epochs):,}",
                ]
            )
    caption = (
        f"Repeats in per cent of batches over all epochs; the paper has {paper.OVERHEAD_PERCENT[0]:g} to "
        f"{paper.OVERHEAD_PERCENT[1]:g} % more time. Mean with 95 % interval; no seconds where runs shared a device."
    )
    return Table(head, rows, caption)


def overhead_by_epoch_table(experiments: Sequence[Experiment]) -> Table:
    """Repeats in each epoch, or in every tenth of more than 30."""
    longest = max(experiment.configuration.epochs for experiment in experiments)
    step = 1 if longest <= 30 else 10
    shown = sorted({1, *range(step, longest + 1, step), longest})
    rows = []
    for experiment in experiments:
        for condition in experiment.conditions():
            runs = [
                experiment.epochs_of("attention", condition, seed)
                for seed in experiment.seeds(["attention"], condition)
            ]
            texts = []
            for number in shown:
                there = [run[number - 1] for run in runs if number <= len(run)]
                values = sample([100 * epoch.repeats / epoch.batches for epoch in there])
                texts.append(f"{values.mean:.1f}" if there else "-")
            rows.append([experiment.name, _noise(condition), condition.epoch_loss, *texts])
    caption = "Repeats in per cent of batches, mean over the seeds."
    return Table(["experiment", "labels redrawn", "epoch_loss", *map(str, shown)], rows, caption)


def table_2(experiments: Sequence[Experiment], at: At) -> Table | None:
    """The paper's Table 2: wrong predictions by predicted class, and their variance; None without such runs."""
    fitting = [e for e in experiments if len(e.configuration.data.classes) <= _MOST_CLASSES]
    if not fitting:
        return None
    classes = fitting[0].configuration.data.classes
    most = max(len(experiment.configuration.data.classes) for experiment in fitting)
    if any(experiment.configuration.data.classes != classes for experiment in fitting):
        classes = [f"class {number}" for number in range(1, most + 1)]
    rows: list[list[str]] = []
    if at == "best" and any(experiment.configuration.data.name == "cifar10" for experiment in fitting):
        for row in paper.TABLE_2:
            counts = [str(count) for count in row.wrong_predictions]
            # Computed from the counts like ours, and equal to what the paper prints.
            spread = f"{variance(row.wrong_predictions):.2f}"
            mixed_up = [str(row.cat_taken_for_dog), str(row.dog_taken_for_cat)]
            padding = ["-"] * (most - len(counts))
            rows.append(["paper: tnt", "none", row.arm, "1", *counts, *padding, spread, *mixed_up])
    for experiment in fitting:
        for condition, arm in _arms(experiment):
            runs = [experiment.run_of(arm, condition, seed) for seed in experiment.seeds([arm], condition)]
            wrong = [wrong_predictions(run, at) for run in runs]
            means = [f"{sum(counts) / len(wrong):.1f}" for counts in zip(*wrong, strict=True)]
            padding = ["-"] * (most - len(means))
            spread = mean_and_deviation(sample([variance(counts) for counts in wrong]), 0)
            name = _arm_name(arm, condition)
            mixed_up = _cats_and_dogs(experiment, runs, at)
            rows.append([experiment.name, _noise(condition), name, str(len(runs)), *means, *padding, spread, *mixed_up])
    caption = (
        f"At the {at} epoch. Counts are means over n seeds; the variance (population, over classes) is of each seed's "
        "counts, with its standard deviation over seeds."
    )
    head = ["experiment", "labels redrawn", "arm", "n", *classes, "variance", "cat taken for dog", "dog taken for cat"]
    return Table(head, rows, caption)


def _cats_and_dogs(experiment: Experiment, runs: Sequence[Run], at: At) -> list[str]:
    """The two mistakes that the paper names, mean over seeds."""
    classes = experiment.configuration.data.classes
    if not {"cat", "dog"} <= set(classes):
        return ["-", "-"]
    cat, dog = classes.index("cat"), classes.index("dog")
    matrices = [confusion(run, at) for run in runs]
    return [f"{sum(int(m[place]) for m in matrices) / len(matrices):.1f}" for place in ((cat, dog), (dog, cat))]


def flipped_table(experiments: Sequence[Experiment]) -> Table | None:
    """Do repeats point to wrong labels? None without label noise."""
    rows = []
    for experiment in experiments:
        for condition in experiment.conditions():
            if condition.label_noise == 0:
                continue
            by_visits: Counter[int] = Counter()
            with_flipped: Counter[int] = Counter()
            flipped: Counter[int] = Counter()
            for seed in experiment.seeds(["attention"], condition):
                for epoch in experiment.epochs_of("attention", condition, seed):
                    for visits, of_visits in (epoch.batches_by_visits or {}).items():
                        by_visits[visits] += of_visits.batches
                        with_flipped[visits] += of_visits.with_flipped
                        flipped[visits] += of_visits.flipped
            groups = {
                "all": list(by_visits),
                "visited once": [1],
                "repeated": [visits for visits in by_visits if visits > 1],
                f"most repeated, {_MOST_REPEATED_SHARE:.0%} of all": most_repeated(by_visits),
            }
            for group, members in groups.items():
                total = Flipped(
                    batches=sum(by_visits[visits] for visits in members),
                    with_flipped=sum(with_flipped[visits] for visits in members),
                    flipped=sum(flipped[visits] for visits in members),
                )
                if total.batches:
                    rows.append([experiment.name, _noise(condition), condition.epoch_loss, group, *_flipped(total)])
    head = ["experiment", "labels redrawn", "epoch_loss", "batches", "how many", "with a wrong label, %"]
    head += ["wrong labels a batch"]
    caption = (
        "Attention's batches of all epochs and seeds, by their visits in the epoch; the most repeated are those with "
        "the most visits, down to where so many of all are together. A wrong label is one that was redrawn to another "
        "class."
    )
    return Table(head, rows, caption) if rows else None


def most_repeated(batches_by_visits: Counter[int]) -> list[int]:
    """The numbers of visits of the most visited batches: from the top, until a hundredth of all are together."""
    wanted = _MOST_REPEATED_SHARE * sum(batches_by_visits.values())
    chosen: list[int] = []
    for visits in sorted(batches_by_visits, reverse=True):
        if visits == 1 or sum(batches_by_visits[each] for each in chosen) >= wanted:
            break
        chosen.append(visits)
    return chosen


def runs_table(experiments: Sequence[Experiment]) -> Table:
    """What was trained, with what, and on what."""
    rows = []
    for experiment in experiments:
        configuration, data = experiment.configuration, experiment.configuration.data
        layout = ", channels last" if configuration.channels_last else ""
        details = (
            f"{configuration.architecture}, {configuration.parameters:,} parameters, "
            f"{'ImageNet weights' if configuration.pretrained else 'from scratch'}; Adam "
            f"{configuration.learning_rate:g}, batch {configuration.batch_size}, {configuration.epochs} epochs, K "
            f"{configuration.k:g}, max_visits {configuration.max_visits or 'none'}; precision {configuration.precision}"
            f"{layout}{', deterministic algorithms' if configuration.deterministic else ''}"
        )
        size = f"{data.train_images:,} + {data.test_images:,} images of {data.height}x{data.width}"
        left_out = f", {experiment.unfinished} unfinished left out" if experiment.unfinished else ""
        places = "; ".join(experiment.machines)
        rows.append([experiment.name, details, size, f"{len(experiment.runs)}{left_out}", places])
    return Table(["experiment", "training", "data", "runs", "hardware and versions"], rows)


def mean_and_deviation(values: Sample, digits: int) -> str:
    """A mean and a standard deviation, as text."""
    spread = "" if math.isnan(values.deviation) else f" ± {values.deviation:.{digits}f}"
    return f"{values.mean:.{digits}f}{spread}"


def _flipped(total: Flipped) -> list[str]:
    share = 100 * total.with_flipped / total.batches
    return [f"{total.batches:,}", f"{share:.1f}", f"{total.flipped / total.batches:.2f}"]


def _arms(experiment: Experiment) -> list[tuple[Condition, Arm]]:
    """Every arm that there are runs of, with its condition; a baseline once for each level of noise."""
    found: list[tuple[Condition, Arm]] = []
    for noise in experiment.label_noises():
        conditions = [c for c in experiment.conditions() if c.label_noise == noise] or [Condition("first", noise)]
        if experiment.seeds(["baseline"], conditions[0]):
            found.append((conditions[0], "baseline"))
        for condition in conditions:
            found += [(condition, arm) for arm in ARMS[1:] if experiment.seeds([arm], condition)]
    return found


def _arm_name(arm: Arm, condition: Condition) -> str:
    return arm if arm == "baseline" else f"{arm}, {condition.epoch_loss}"


def _noise(condition: Condition) -> str:
    return f"{condition.label_noise} of 32" if condition.label_noise else "none"
