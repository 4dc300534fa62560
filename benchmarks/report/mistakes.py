"""Tables of what went wrong: predictions by class, and labels that were wrong from the begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.report import paper
from benchmarks.report.document import Table
from benchmarks.report.results import At, Experiment, confusion, variance, wrong_predictions
from benchmarks.report.statistics import sample
from benchmarks.report.tables import arm_name, arms, noise
from benchmarks.report.wording import mean_and_deviation
from benchmarks.schema import Flipped, Run

# More columns than this are no table.
_MOST_CLASSES = 20
# The batches with the most visits, until so many of all are together.
_MOST_REPEATED_SHARE = 0.01


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
        for condition, arm in arms(experiment):
            runs = [experiment.run_of(arm, condition, seed) for seed in experiment.seeds([arm], condition)]
            wrong = [wrong_predictions(run, at) for run in runs]
            means = [f"{sum(counts) / len(wrong):.1f}" for counts in zip(*wrong, strict=True)]
            padding = ["-"] * (most - len(means))
            spread = mean_and_deviation(sample([variance(counts) for counts in wrong]), 0)
            name = arm_name(arm, condition)
            mixed_up = _cats_and_dogs(experiment, runs, at)
            rows.append([experiment.name, noise(condition), name, str(len(runs)), *means, *padding, spread, *mixed_up])
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
                    rows.append([experiment.name, noise(condition), condition.epoch_loss, group, *_flipped(total)])
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


def _flipped(total: Flipped) -> list[str]:
    share = 100 * total.with_flipped / total.batches
    return [f"{total.batches:,}", f"{share:.1f}", f"{total.flipped / total.batches:.2f}"]
