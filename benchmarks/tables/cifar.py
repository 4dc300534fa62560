"""What the records of CIFAR come to."""

from __future__ import annotations

import itertools
from functools import cache

from benchmarks.environment import one_line
from benchmarks.reading import read_configuration, read_lines
from benchmarks.report.cifar import machines, report_cifar, summarize, verdicts_at_a_glance
from benchmarks.report.claims import compare_arms, judge_claims
from benchmarks.report.document import Report, Table, render, render_template
from benchmarks.report.results import Cifar, read_folders, tabulate
from benchmarks.schema import Configuration, Epoch, OfVisits
from benchmarks.tables.newest import RECORDS, read_newest


@cache
def cifar_records() -> Cifar:
    """All that is recorded of CIFAR."""
    folders = [path.parent for path in sorted(RECORDS.glob("*/configuration.json"))]
    return tabulate(read_folders([each for each in folders if isinstance(read_configuration(each), Configuration)]))


def cifar_report() -> Report:
    """The report on it."""
    return report_cifar(cifar_records())


def cifar_found() -> str:
    """What was found, for a reader who reads no tables."""
    cifar = cifar_records()
    facts = summarize(cifar, compare_arms(cifar), judge_claims(cifar))
    return render_template("cifar-found.md.jinja", facts=facts).strip()


def cifar_claims_table() -> str:
    """What the records say about each of the paper's claims."""
    return verdicts_at_a_glance(cifar_records(), judge_claims(cifar_records()))


def cifar_cost_table() -> str:
    """Hours of training and evaluation, by experiment and arm."""
    runs = cifar_records().runs
    rows = []
    for (name, arm), of_arm in runs.groupby(["experiment", "arm"], observed=True):
        baselines = runs[(runs["experiment"] == name) & (runs["arm"] == "baseline")]["epochs"]
        of_baselines = {_moment(epoch) for epochs in baselines for epoch in epochs}
        # The first epochs of ``longer`` are the baseline's, to the second, unless they had to be made again.
        every = [epoch for epochs in of_arm["epochs"] for epoch in epochs]
        epochs = [epoch for epoch in every if arm == "baseline" or _moment(epoch) not in of_baselines]
        hours = [sum(getattr(epoch, cost) for epoch in epochs) / 3600 for cost in ("seconds", "evaluation_seconds")]
        numbers = [str(len(of_arm)), f"{len(epochs):,}", f"{sum(epoch.updates for epoch in epochs):,}"]
        rows.append([name, arm, *numbers, *(f"{value:.2f}" for value in hours)])
    head = ["experiment", "arm", "runs", "epochs", "updates", "hours of training", "hours of evaluation"]
    return render(Table(head, rows, f"Other work shared the machines. {'; '.join(machines(runs))}."))


def cifar_again_table() -> str:
    """How first epochs that were made again differ from their records."""
    rows: list[list[str]] = []
    for (record, run), group in itertools.groupby(
        read_newest("made-again"), lambda line: (line["records"], line["run"])
    ):
        lines = list(group)
        differs = dict.fromkeys(name.replace("_", " ") for line in lines for name in line["differs"])
        most = {
            name: max(abs(new - old) for line in lines for old, new in [line["differs"].get(name, (0, 0))])
            for name in ("train_loss", "accuracy")
        }
        machines = [one_line(lines[0][name]) for name in ("recorded", "environment")]
        numbers = [f"{most['train_loss']:.1g}", f"{100 * most['accuracy']:.2f}"]
        rows.append([record, run, str(len(lines)), ", ".join(differs) or "nothing", *numbers, *machines])
    head = ["record", "run", "epochs", "differs", "training loss, at most by", "accuracy, points at most"]
    head += ["recorded on", "made again on"]
    return render(Table(head, rows, "Everything but the machine's own numbers is compared: updates, repeats, losses."))


def short_last_batch_table() -> str:
    """How often an epoch's last batch, which is smaller, was repeated, and how often others were."""
    rows: list[list[str]] = []
    for path in sorted(RECORDS.glob("*/visits.jsonl")):
        configuration = read_configuration(path.parent)
        assert isinstance(configuration, Configuration)
        images = configuration.data.train_images % configuration.batch_size
        # Nothing is repeated in the first epoch, which has no threshold.
        epochs = [epoch for run in read_lines(path, OfVisits) for epoch in run.visits[1:]]
        others = [visits > 1 for epoch in epochs for visits in epoch[:-1]]
        if images and any(others):
            shares = [sum(epoch[-1] > 1 for epoch in epochs) / len(epochs), sum(others) / len(others)]
            name = f"{configuration.model}, {configuration.data.train_images:,} images"
            rows.append([name, str(images), *(f"{100 * share:.1f}" for share in shares)])
    head = ["experiment", "images in the last batch", "repeated, % of epochs", "other batches, %"]
    return render(Table(head, rows, "Batches of 32; all seeds, readings and label noises of each record together."))


def _moment(epoch: Epoch) -> tuple[str, float]:
    return epoch.finished_at, epoch.seconds
