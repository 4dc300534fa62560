"""The tables of a report: rows of text, each number from the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from benchmarks.report import paper
from benchmarks.report.comparisons import pairs, seconds_overhead
from benchmarks.report.document import Table
from benchmarks.report.results import (
    Condition,
    Experiment,
    accuracy,
    macro_f1,
    overhead_percent,
    test_loss,
)
from benchmarks.report.statistics import Sample, sample
from benchmarks.report.wording import mean_and_deviation, show
from benchmarks.schema import ARMS, Arm, Configuration, EpochLoss


def table_1(experiments: Sequence[Experiment]) -> Table:
    """The paper's Table 1, with the same at the last epoch, for all arms."""
    head = ["experiment", "labels redrawn", "arm", "n", "least test loss", "highest macro-F1, %", "highest accuracy, %"]
    head += ["last test loss", "last macro-F1, %", "last accuracy, %"]
    rows = [
        [f"paper: {row.model}", "none", row.arm, "1", f"{row.min_test_loss}", f"{100 * row.max_f1:.4f}", *["-"] * 4]
        for row in paper.TABLE_1
    ]
    for experiment in experiments:
        for condition, arm in arms(experiment):
            columns: list[Sample] = []
            for at in ("best", "last"):
                columns += [
                    experiment.measure(arm, condition, measure(at)) for measure in (test_loss, macro_f1, accuracy)
                ]
            texts = [mean_and_deviation(column, 3 if i % 3 == 0 else 2) for i, column in enumerate(columns)]
            name = arm_name(arm, condition)
            rows.append([experiment.name, noise(condition), name, str(columns[0].n), *texts])
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
                    rows.append([experiment.name, noise(condition), condition.epoch_loss, other, *texts])
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
                    noise(condition),
                    condition.epoch_loss,
                    show(extra, "", 1, sign=False),
                    timed,
                    str(max(epoch.most_visits for epoch in epochs)),
                    f"{sum(epoch.capped_batches for epoch in epochs):,} of {sum(epoch.batches for epoch in epochs):,}",
                ]
            )
    caption = (
        f"Repeats in per cent of batches over all epochs; the paper has {paper.OVERHEAD_PERCENT[0]:g} to "
        f"{paper.OVERHEAD_PERCENT[1]:g} % more time. Mean with 95 % interval; no seconds where runs shared a device or "
        "had different ones."
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
            rows.append([experiment.name, noise(condition), condition.epoch_loss, *texts])
    caption = "Repeats in per cent of batches, mean over the seeds."
    return Table(["experiment", "labels redrawn", "epoch_loss", *map(str, shown)], rows, caption)


def runs_table(experiments: Sequence[Experiment]) -> Table:
    """What was trained, with what, and on what."""
    rows = []
    for experiment in experiments:
        configuration, data = experiment.configuration, experiment.configuration.data
        layout = ", channels last" if configuration.channels_last else ""
        details = (
            f"{configuration.architecture}, {configuration.parameters:,} parameters, "
            f"{_beginning(configuration)}; Adam "
            f"{configuration.learning_rate:g}, batch {configuration.batch_size}, {configuration.epochs} epochs, K "
            f"{configuration.k:g}, max_visits {configuration.max_visits or 'none'}; precision {configuration.precision}"
            f"{layout}{', deterministic algorithms' if configuration.deterministic else ''}"
        )
        size = f"{data.train_images:,} + {data.test_images:,} images of {data.height}x{data.width}"
        left_out = f", {experiment.unfinished} unfinished left out" if experiment.unfinished else ""
        places = "; ".join(experiment.machines)
        rows.append([experiment.name, details, size, f"{len(experiment.runs)}{left_out}", places])
    return Table(["experiment", "training", "data", "runs", "hardware and versions"], rows)


def _beginning(configuration: Configuration) -> str:
    if not configuration.pretrained:
        return "from scratch"
    return f"ImageNet weights{f' ({configuration.weights})' if configuration.weights else ''}"


def arms(experiment: Experiment) -> list[tuple[Condition, Arm]]:
    """Every arm that there are runs of, with its condition; a baseline once for each level of noise."""
    found: list[tuple[Condition, Arm]] = []
    for label_noise in experiment.label_noises():
        conditions = [Condition(reading, label_noise) for reading in get_args(EpochLoss)]
        if experiment.seeds(["baseline"], conditions[0]):
            found.append((conditions[0], "baseline"))
        for condition in conditions:
            found += [(condition, arm) for arm in ARMS[1:] if experiment.seeds([arm], condition)]
    return found


def arm_name(arm: Arm, condition: Condition) -> str:
    """An arm with the reading that it is of."""
    return arm if arm == "baseline" else f"{arm}, {condition.epoch_loss}"


def noise(condition: Condition) -> str:
    """The labels redrawn, in words."""
    return f"{condition.label_noise} of 32" if condition.label_noise else "none"
