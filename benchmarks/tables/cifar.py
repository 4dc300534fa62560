"""What the records of CIFAR come to."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, cast

from benchmarks.environment import one_line
from benchmarks.reading import read_configuration, read_lines
from benchmarks.report.cifar import machines, summarize, verdicts_at_a_glance
from benchmarks.report.claims import compare_arms, judge_claims
from benchmarks.report.document import Row
from benchmarks.report.results import Cifar, read_folders, tabulate
from benchmarks.schema import Configuration, Epoch, OfVisits
from benchmarks.tables.newest import RECORDS, read_newest


@cache
def cifar_records() -> Cifar:
    """All that is recorded of CIFAR."""
    folders = [path.parent for path in sorted(RECORDS.glob("*/configuration.json"))]
    return tabulate(read_folders([each for each in folders if isinstance(read_configuration(each), Configuration)]))


def facts() -> dict[str, Any]:
    """What the sentences in front of the report say."""
    return summarize(cifar_records(), compare_arms(cifar_records()), judge_claims(cifar_records()))


def glance() -> str:
    """What the records say about each of the paper's claims."""
    return verdicts_at_a_glance(cifar_records(), judge_claims(cifar_records()))


def where() -> list[str]:
    """What runs ran on."""
    return machines(cifar_records().runs)


def cost() -> list[Row]:
    """Hours of training and evaluation, by experiment and arm."""
    runs = cifar_records().runs
    rows = []
    for (name, arm), of_arm in runs.groupby(["experiment", "arm"], observed=True):
        baselines = runs[(runs["experiment"] == name) & (runs["arm"] == "baseline")]["epochs"]
        of_baselines = {_moment(epoch) for epochs in baselines for epoch in epochs}
        # The first epochs of ``longer`` are the baseline's, to the second, unless they had to be made again.
        every = [epoch for epochs in of_arm["epochs"] for epoch in epochs]
        epochs = [epoch for epoch in every if arm == "baseline" or _moment(epoch) not in of_baselines]
        row = {"experiment": name, "arm": arm, "runs": str(len(of_arm)), "epochs": f"{len(epochs):,}"}
        row["updates"] = f"{sum(epoch.updates for epoch in epochs):,}"
        for head, field in (("hours of training", "seconds"), ("hours of evaluation", "evaluation_seconds")):
            row[head] = f"{sum(getattr(epoch, field) for epoch in epochs) / 3600:.2f}"
        rows.append(row)
    return rows


def _moment(epoch: Epoch) -> tuple[str, float]:
    return epoch.finished_at, epoch.seconds


def again() -> list[Row]:
    """How first epochs that were made again differ from their records."""
    rows = []
    lines = read_newest("made-again")
    for (record, run), group in itertools.groupby(lines, lambda line: (line["records"], line["run"])):
        of_run = [*group]
        changes = [line["differs"] for line in of_run]
        differs = dict.fromkeys(name.replace("_", " ") for change in changes for name in change)
        loss, accuracy = (
            max(abs(new - old) for change in changes for old, new in [change.get(name, (0, 0))])
            for name in ("train_loss", "accuracy")
        )
        row = {"record": record, "run": run, "epochs": str(len(of_run)), "differs": ", ".join(differs) or "nothing"}
        row |= {"training loss, at most by": f"{loss:.1g}", "accuracy, points at most": f"{100 * accuracy:.2f}"}
        places = {"recorded on": one_line(of_run[0]["recorded"]), "made again on": one_line(of_run[0]["environment"])}
        rows.append(row | places)
    return rows


def short_last_batch() -> list[Row]:
    """How often an epoch's last batch, which is smaller, was repeated, and how often others were."""
    rows = []
    for path in sorted(RECORDS.glob("*/visits.jsonl")):
        configuration = cast("Configuration", read_configuration(path.parent))
        images = configuration.data.train_images % configuration.batch_size
        # Nothing is repeated in the first epoch, which has no threshold.
        epochs = [epoch for run in read_lines(path, OfVisits) for epoch in run.visits[1:]]
        others = [visits > 1 for epoch in epochs for visits in epoch[:-1]]
        if images and any(others):
            last = sum(epoch[-1] > 1 for epoch in epochs) / len(epochs)
            name = f"{configuration.model}, {configuration.data.train_images:,} images"
            row = {"experiment": name, "images in the last batch": str(images)}
            row |= {"repeated, % of epochs": f"{100 * last:.1f}"}
            rows.append(row | {"other batches, %": f"{100 * sum(others) / len(others):.1f}"})
    return rows
