"""What the records of CIFAR come to."""

from __future__ import annotations

import itertools

from benchmarks import schema
from benchmarks.environment import one_line
from benchmarks.reading import read_configuration, read_lines
from benchmarks.report import markdown
from benchmarks.report.claims import judge_claims
from benchmarks.report.document import Box, Table
from benchmarks.report.page import verdicts_at_a_glance
from benchmarks.report.results import Experiment, read_experiments
from benchmarks.report.summary import summarize
from benchmarks.tables.newest import RECORDS, read_newest, render


def cifar_experiments() -> list[Experiment]:
    """All that is recorded of CIFAR."""
    return read_experiments([path.parent for path in sorted(RECORDS.glob("*/epochs.jsonl"))])


def cifar_found() -> str:
    """What was found, for somebody who reads no tables."""
    return markdown.render_block(Box(summarize(cifar_experiments())))


def cifar_claims_table() -> str:
    """What the records of CIFAR say about each of the paper's claims."""
    experiments = cifar_experiments()
    return markdown.render_block(verdicts_at_a_glance(experiments, judge_claims(experiments)))


def cifar_cost_table() -> str:
    """Hours of training and evaluation, by experiment and arm."""
    rows: list[list[str]] = []
    said: list[str] = []
    for experiment in cifar_experiments():
        names = experiment.epochs
        of_baselines = {_moment(e) for name, epochs in names.items() if name.arm == "baseline" for e in epochs}
        for arm in schema.ARMS:
            runs = [epochs for name, epochs in names.items() if name.arm == arm]
            # The first epochs of ``longer`` are the baseline's, to the second, unless they had to be made again.
            epochs = [epoch for run in runs for epoch in run if arm == "baseline" or _moment(epoch) not in of_baselines]
            updates = f"{sum(epoch.updates for epoch in epochs):,}"
            hours = [sum(getattr(epoch, name) for epoch in epochs) / 3600 for name in ("seconds", "evaluation_seconds")]
            numbers = [str(len(runs)), f"{len(epochs):,}", updates, *(f"{value:.2f}" for value in hours)]
            if runs:
                rows.append([experiment.name, arm, *numbers])
        said += experiment.machines
    head = ["experiment", "arm", "runs", "epochs", "updates", "hours of training", "hours of evaluation"]
    return render(Table(head, rows, f"Other work went on beside these runs. {'; '.join(dict.fromkeys(said))}."))


def cifar_again_table() -> str:
    """What first epochs came to when they were made again."""
    head = [
        "record",
        "run",
        "epochs",
        "differs",
        "training loss apart by, at most",
        "accuracy apart by, points at most",
    ]
    head += ["recorded on", "made again on"]
    rows: list[list[str]] = []
    for (record, run), group in itertools.groupby(
        read_newest("made-again"), lambda line: (line["records"], line["run"])
    ):
        lines = list(group)
        differs = list(dict.fromkeys(name for line in lines for name in line["differs"]))
        apart = {
            name: max(abs(new - old) for line in lines for old, new in [line["differs"].get(name, (0, 0))])
            for name in ("train_loss", "accuracy")
        }
        machines = [one_line(lines[0][name]) for name in ("recorded", "environment")]
        numbers = [f"{apart['train_loss']:.1g}", f"{100 * apart['accuracy']:.2f}"]
        said = ", ".join(name.replace("_", " ") for name in differs) or "nothing"
        rows.append([record, run, str(len(lines)), said, *numbers, *machines])
    return render(Table(head, rows, "Everything but the machine's own numbers is compared: updates, repeats, losses."))


def short_last_batch_table() -> str:
    """How often an epoch's last batch, which is smaller, was repeated, and how often others were."""
    head = ["experiment", "images in the last batch", "repeated, % of epochs", "other batches, %"]
    rows: list[list[str]] = []
    for path in sorted(RECORDS.glob("*/visits.jsonl")):
        configuration = read_configuration(path.parent)
        images = configuration.data.train_images % configuration.batch_size
        # Nothing is repeated in the first epoch, which has no threshold.
        epochs = [epoch for run in read_lines(path, schema.OfVisits) for epoch in run.visits[1:]]
        others = [visits > 1 for epoch in epochs for visits in epoch[:-1]]
        if not images or not any(others):
            continue
        shares = [sum(epoch[-1] > 1 for epoch in epochs) / len(epochs), sum(others) / len(others)]
        name = f"{configuration.model}, {configuration.data.train_images:,} images"
        rows.append([name, str(images), *(f"{share:.1%}".rstrip("%") for share in shares)])
    return render(Table(head, rows, "Batches of 32; all seeds, readings and label noises of each record together."))


def _moment(epoch: schema.Epoch) -> tuple[str, float]:
    return epoch.finished_at, epoch.seconds
