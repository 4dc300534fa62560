"""The report on runs of ``benchmarks.cifar``: do the paper's claims hold?"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.report import paper
from benchmarks.report.claims import (
    CLAIMS,
    RULES,
    Compared,
    Finding,
    compare_arms,
    judge_claims,
    more_seconds,
    overfitted,
)
from benchmarks.report.document import Cell, Report, Table, correct, escape, fold, pictures, render
from benchmarks.report.figures import COLORS, Row, draw_experiment, forest
from benchmarks.report.results import OTHERS, Condition, Experiment
from benchmarks.report.statistics import SIGNIFICANCE, Sample, Verdict, sample
from benchmarks.report.wording import Gain, mean_and_deviation, show, show_p

# With more columns, a table of classes cannot be read.
_MOST_CLASSES = 20
# The batches with the most visits, until so many of all are together.
_MOST_REPEATED_SHARE = 0.01
# Longer trainings have every tenth epoch in the table of repeats.
_MOST_EPOCHS = 30
_FOREST = (
    "Accuracy gain of attention over each other arm: line: 95 % CI; grey: sampling error of the test set; to the right of "
    "0 attention is ahead"
)
_METHOD = (
    "Arms are paired by seed, with the same initial weights and order: `baseline` is plain training, `attention` is "
    "Batch-attention, `random` makes as many visits to random batches, `longer` is plain training for as many updates."
)
_STANDING = {
    Verdict.HOLDS: "ahead",
    Verdict.DOES_NOT_HOLD: "behind",
    **{each: each.text for each in (Verdict.NO_DIFFERENCE, Verdict.HARDLY_ANY_REPEATS, Verdict.NOT_ENOUGH_RUNS)},
}


def report_cifar(experiments: Sequence[Experiment], epoch_loss: str = "first") -> Report:
    """The report; claims are judged by a reading of ``epoch_loss``."""
    compared, findings = compare_arms(experiments), judge_claims(experiments, epoch_loss)
    figures, galleries = {}, []
    if compared:
        rows = [
            Row(
                f"{each.experiment.name}, {each.condition}",
                f"over {each.other}",
                each.gain,
                COLORS[each.other],
                each.error,
            )
            for each in compared
        ]
        figures["forest.png"] = forest(rows, "accuracy gain in points (95 % CI), at the last epoch")
    for number, experiment in enumerate(experiments, start=1):
        if experiment.conditions:
            slug = re.sub(r"[^a-z0-9]+", "-", f"{number} {experiment.name}".lower()).strip("-")
            drawn = draw_experiment(experiment, experiment.judged_condition(epoch_loss))
            figures |= {f"{slug}-{kind}.png": figure for kind, (_, figure) in drawn.items()}
            titles = {f"{slug}-{kind}.png": f"{title}, {experiment.name}" for kind, (title, _) in drawn.items()}
            galleries.append(fold(experiment.name, pictures(titles)))
    flipped, classes = flipped_table(experiments), [table_2(experiments, at) for at in ("best", "last")]
    sections: dict[str, list[str]] = {
        "Accuracy gain": [pictures({"forest.png": _FOREST}), *gain_tables(compared)] if compared else [],
        "The paper's table beside ours": [render(beside_paper(experiments, epoch_loss))],
        "Do the claims hold?": [
            render(verdicts_at_a_glance(experiments, findings)),
            *(fold(f"Claims: {each.name}", *_claims(each, findings)) for each in experiments),
            fold("What a verdict takes", *RULES),
        ],
        "What was trained": [_METHOD, fold("Models, data and machines", render(runs_table(experiments)))],
        "Table 1: the best over the epochs, and the last epoch": [fold("All arms", render(table_1(experiments)))],
        "What it costs": [
            fold("Extra updates and seconds", render(overhead_table(experiments))),
            fold("Repeats by epoch", render(repeats_table(experiments))),
        ],
        "Table 2: wrong predictions by predicted class": [
            fold(f"At the {at} epoch", render(each))
            for at, each in zip(("best", "last"), classes, strict=True)
            if each.rows
        ],
        "Do repeats point to wrong labels?": [render(flipped)] if flipped.rows else [],
        "Figures": ["Lines are means over seeds, bands reach from the least to the greatest.", *galleries],
    }
    blocks = [block for title, each in sections.items() if each for block in (f"## {title}", *each)]
    summary = [*summarize(experiments, epoch_loss), *each_condition(compared)]
    title = "Batch-attention: do the paper's claims hold?"
    return Report(title, summary, [f"The paper: {paper.CITATION}.", *blocks], figures)


def summarize(experiments: Sequence[Experiment], epoch_loss: str = "first") -> list[str]:
    """A few sentences on all conditions of all experiments."""
    compared, findings = compare_arms(experiments), judge_claims(experiments, epoch_loss)
    runs, reduced = sum(len(each.epochs) for each in experiments), sum(bool(each.reductions) for each in experiments)
    size = (
        f"{reduced} at reduced size, which neither confirm nor refute the paper's figures"
        if reduced
        else "at full size"
    )
    extra = [
        each.of(condition).values("attention", "repeats").mean for each in experiments for condition in each.conditions
    ]
    said = [f"{runs:,} runs in {_count(len(experiments), 'experiment')}, {size}."]
    if not compared:
        return said
    survivors = [f"{_name(each)} over {each.other}" for each in compared if each.p < SIGNIFICANCE]
    overturned, fallen = (
        sum(each.is_overturned for each in findings),
        [each for each in experiments if overfitted(each)],
    )
    said += [
        f"Accuracy gain over plain training: {_standing(compared, 'baseline')}; the paper has 2 to 3 points on CIFAR-10.",
        f"Over as many repeats of random batches, the worth of choosing by the loss: {_standing(compared, 'random')}.",
        f"Batch-attention makes {_span(extra, '.1f')} % more updates; the paper has 15 to 20 % more time.",
        f"After Holm's correction over {_count(len(compared), 'comparison')} of accuracy, p < 0.05 remains for "
        f"{', '.join(survivors) or 'none'}; of {_count(len(findings), 'verdict')} on claims, {overturned} that hold or do "
        "not hold do not survive it.",
    ]
    if fallen:
        names = "; ".join(f"{each.name} ({', '.join(overfitted(each))})" for each in fallen)
        said.append(
            f"Verdicts are of overfitted networks, whose test accuracy falls while training continues, in {names}."
        )
    return said


def _standing(compared: Iterable[Compared], other: str) -> str:
    """How many conditions have which verdict, and the range of the gains."""
    found = [each for each in compared if each.other == other]
    if not found:
        return "not compared"
    counts = Counter(each.verdict for each in found)
    total = _count(len(found), "condition")
    words = ", ".join(f"{text} in {counts[verdict]}" for verdict, text in _STANDING.items() if counts[verdict])
    return f"{words} of {total} ({_span([each.gain.mean for each in found], '+.2f')} points at the last epoch)"


def each_condition(compared: Sequence[Compared]) -> list[str]:
    """A sentence an experiment, with the accuracy gains of each of its conditions."""
    said = []
    for experiment, group in itertools.groupby(compared, key=lambda each: each.experiment):
        conditions = [
            f"{condition}: " + ", ".join(f"{each.gain.mean:+.2f} over {each.other}" for each in of_condition)
            for condition, of_condition in itertools.groupby(group, key=lambda each: each.condition)
        ]
        said.append(f"{experiment.name}, accuracy gain by epoch_loss and label noise: {'; '.join(conditions)}.")
    return said


def _name(compared: Compared) -> str:
    return f"{compared.experiment.name}, {compared.condition}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _span(values: Sequence[float], spec: str) -> str:
    return f"{values[0]:{spec}}" if len(values) == 1 else f"{min(values):{spec}} to {max(values):{spec}}"


def gain_tables(compared: Sequence[Compared]) -> list[str]:
    """Attention against every other arm: accuracy at the last epoch, and secondary measures."""
    head = ["experiment", "label noise", "epoch_loss", "over", "n"]
    names = {"accuracy, best epoch": "best_accuracy", "macro-F1, last epoch": "macro_f1"}
    names["macro-F1, best epoch"] = "best_macro_f1"
    first, second = [], []
    for each in compared:
        before = [each.experiment.name, each.condition.noise, each.condition.epoch_loss, each.other, str(each.gain.n)]
        runs = each.experiment.of(each.condition)
        first.append([*before, Gain(each.gain, p=None if math.isnan(each.p) else each.p)])
        second.append([*before, *(Gain(runs.gain("attention", each.other, name)) for name in names.values())])
    caption = (
        "Points; mean of paired differences, its 95 % t interval, and p of a paired t-test, adjusted by Holm's method "
    )
    secondary = Table([*head, *names], second, f"{caption}over this table.")
    correct([secondary])
    primary = Table([*head, "accuracy gain (95 % CI)"], first, f"{caption}over this table.")
    return [fold("The gains as a table", render(primary)), fold("Best epoch and macro-F1", render(secondary))]


def beside_paper(experiments: Sequence[Experiment], epoch_loss: str) -> Table:
    """The paper's Table 1, and the same of every experiment's runs without label noise."""
    head = [
        "",
        "least test loss: baseline",
        "attention",
        "highest macro-F1, %: baseline",
        "attention",
        "gain (95 % CI)",
    ]
    rows: list[list[Cell]] = []
    for model, arms in paper.TABLE_1.items():
        (loss, f1), (our_loss, our_f1) = arms["baseline"], arms["attention"]
        texts = [f"{loss:.6f}", f"{our_loss:.6f}", f"{100 * f1:.4f}", f"{100 * our_f1:.4f}"]
        rows.append([f"paper: {model} on cifar10", *texts, f"{100 * (our_f1 - f1):+.2f}"])
        rows += _ours([each for each in experiments if each.configuration.model == model], epoch_loss)
    rows += _ours([each for each in experiments if each.configuration.model not in paper.TABLE_1], epoch_loss)
    return Table(
        head, rows, f"Best over the epochs, on the test set, as in the paper, which has one seed. {_DEVIATION}"
    )


def _ours(experiments: Iterable[Experiment], epoch_loss: str) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for experiment in experiments:
        runs = experiment.of(experiment.judged_condition(epoch_loss))
        if runs.pairs("attention", "baseline"):
            cells = [
                mean_and_deviation(runs.values(arm, name), digits)
                for name, digits in (("best_test_loss", 3), ("best_macro_f1", 2))
                for arm in ("baseline", "attention")
            ]
            rows.append([f"ours: {experiment.name}", *cells, Gain(runs.gain("attention", "baseline", "best_macro_f1"))])
    return rows


_DEVIATION = "Mean ± standard deviation (n - 1) over seeds."


def verdicts_at_a_glance(experiments: Sequence[Experiment], findings: Sequence[Finding]) -> Table:
    """A row a claim and a column an experiment; where a claim was judged several times, the first is shown."""
    first = {(finding.claim, finding.experiment): finding.verdict for finding in reversed(findings)}
    rows: list[list[Cell]] = [
        [claim, *(first.get((claim, each.name), "-") for each in experiments)] for claim in CLAIMS
    ]
    overturned = sorted({f"{each.claim.split(' (')[0]} ({each.experiment})" for each in findings if each.is_overturned})
    caption = f"Verdicts that do not survive Holm's correction: {escape('; '.join(overturned))}." if overturned else ""
    return Table(["claim", *(each.name for each in experiments)], rows, caption)


def _claims(experiment: Experiment, findings: Sequence[Finding]) -> list[str]:
    reductions = ", ".join(experiment.reductions)
    said = [escape(f"Reduced: {reductions}.") if reductions else "At the paper's size and settings."]
    if falls := overfitted(experiment):
        said.append(
            f"Verdicts are of an overfitted network: the baseline's test accuracy falls from its best epoch to its last, "
            f"{'; '.join(falls)}."
        )
    rows: list[list[Cell]] = []
    for each in findings:
        if each.experiment == experiment.name:
            p = "-" if math.isnan(each.p) else show_p(each.p)
            remarks = [each.remark, "does not survive the correction" if each.is_overturned else ""]
            rows.append([each.verdict, each.claim, each.numbers, p, "; ".join(filter(None, remarks))])
    return [
        *said,
        render(Table(["verdict", "claim", "attention minus the other arm (95 % CI)", "p, Holm", "remark"], rows)),
    ]


def _by_arm(
    experiments: Sequence[Experiment], cells: Callable[[Experiment, Condition, str], list[Cell]]
) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for experiment in experiments:
        for condition, arm in experiment.arms:
            name = arm if arm == "baseline" else f"{arm}, {condition.epoch_loss}"
            n = experiment.of(condition).values(arm, "accuracy").n
            rows.append([experiment.name, condition.noise, name, str(n), *cells(experiment, condition, arm)])
    return rows


def table_1(experiments: Sequence[Experiment]) -> Table:
    """The paper's Table 1, with the same at the last epoch, for all arms."""
    columns = {"least test loss": "best_test_loss", "highest macro-F1, %": "best_macro_f1"}
    columns |= {"highest accuracy, %": "best_accuracy", "last test loss": "test_loss", "last macro-F1, %": "macro_f1"}
    columns |= {"last accuracy, %": "accuracy"}

    def cells(experiment: Experiment, condition: Condition, arm: str) -> list[Cell]:
        runs = experiment.of(condition)
        return [mean_and_deviation(runs.values(arm, name), 3 if "loss" in name else 2) for name in columns.values()]

    rows = _by_arm(experiments, cells)
    return Table(["experiment", "label noise", "arm", "n", *columns], rows, _DEVIATION)


def table_2(experiments: Sequence[Experiment], at: str) -> Table:
    """The paper's Table 2: wrong predictions by predicted class, and their variance."""
    fitting = [each for each in experiments if len(each.configuration.data.classes) <= _MOST_CLASSES]
    lists = [each.configuration.data.classes for each in fitting]
    most = max(map(len, lists), default=0)
    is_same = all(classes == lists[0] for classes in lists)
    names = lists[0] if lists and is_same else [f"class {number}" for number in range(1, most + 1)]
    rows: list[list[Cell]] = []
    if at == "best" and any(each.configuration.data.name == "cifar10" for each in fitting):
        for arm, (counts, cats, dogs) in paper.TABLE_2.items():
            padded = [*map(str, counts), *["-"] * (most - len(counts))]
            # The variance is computed from the counts like ours, and equal to what the paper prints.
            rows.append(["paper: tnt", "none", arm, "1", *padded, f"{np.var(counts):.2f}", str(cats), str(dogs)])

    def cells(experiment: Experiment, condition: Condition, arm: str) -> list[Cell]:
        runs, classes = experiment.of(condition).pairs(arm, arm), experiment.configuration.data.classes
        wrong = [row.wrong if at == "last" else row.best_wrong for row, _ in runs]
        means = [f"{mean:.1f}" for mean in np.mean(wrong, axis=0)] + ["-"] * (most - len(classes))
        confusion = np.mean([getattr(row, at).confusion for row, _ in runs], axis=0)
        mixed = ["-", "-"]
        if {"cat", "dog"} <= set(classes):
            cat, dog = classes.index("cat"), classes.index("dog")
            mixed = [f"{confusion[cat, dog]:.1f}", f"{confusion[dog, cat]:.1f}"]
        return [*means, mean_and_deviation(sample([float(np.var(each)) for each in wrong]), 0), *mixed]

    rows += _by_arm(fitting, cells)
    caption = "Means over n seeds; the variance (population, over classes) is of each seed's counts, ± its deviation."
    head = ["experiment", "label noise", "arm", "n", *names, "variance", "cat taken for dog", "dog taken for cat"]
    return Table(head, rows, caption)


def _by_condition(
    experiments: Sequence[Experiment],
    head: Sequence[str],
    cells: Callable[[Experiment, Condition], list[Cell]],
    caption: str,
) -> Table:
    rows = [
        [experiment.name, condition.noise, condition.epoch_loss, *cells(experiment, condition)]
        for experiment in experiments
        for condition in experiment.conditions
    ]
    return Table(["experiment", "label noise", "epoch_loss", *head], rows, caption)


def overhead_table(experiments: Sequence[Experiment]) -> Table:
    """What attention costs, for each reading of ``epoch_loss``."""

    def cells(experiment: Experiment, condition: Condition) -> list[Cell]:
        runs = experiment.of(condition)
        pairs, timed = runs.pairs("attention", "baseline"), "-"
        if experiment.is_timed(condition):
            timed = show(
                sample([more_seconds(ours.epochs, theirs.epochs) for ours, theirs in pairs]), "", 1, sign=False
            )
        epochs = [epoch for row, _ in runs.pairs("attention", "attention") for epoch in row.epochs]
        capped = f"{sum(epoch.capped_batches for epoch in epochs):,} of {sum(epoch.batches for epoch in epochs):,}"
        updates = show(runs.values("attention", "repeats"), "", 1, sign=False)
        return [updates, timed, str(max(epoch.most_visits for epoch in epochs)), capped]

    head = ["extra updates, %", "extra seconds, %", "most visits to a batch", "batches at max_visits"]
    caption = (
        "Repeats in per cent of batches over all epochs; the paper has 15 to 20 % more time. Mean with 95 % interval; no "
        "seconds where runs shared a device or had different ones."
    )
    return _by_condition(experiments, head, cells, caption)


def repeats_table(experiments: Sequence[Experiment]) -> Table:
    """Repeats in each epoch, or in every tenth of more than 30."""
    longest = max(experiment.configuration.epochs for experiment in experiments)
    step = 1 if longest <= _MOST_EPOCHS else 10
    shown = sorted({1, *range(step, longest + 1, step), longest})

    def cells(experiment: Experiment, condition: Condition) -> list[Cell]:
        runs = [row.epochs for row, _ in experiment.of(condition).pairs("attention", "attention")]
        there = [[run[number - 1] for run in runs if number <= len(run)] for number in shown]
        return [
            f"{np.mean([100 * epoch.repeats / epoch.batches for epoch in each]):.1f}" if each else "-" for each in there
        ]

    return _by_condition(experiments, [*map(str, shown)], cells, "Repeats in per cent of batches, mean over the seeds.")


def flipped_table(experiments: Sequence[Experiment]) -> Table:
    """Do repeats point to wrong labels? Without rows where there is no label noise."""
    rows: list[list[Cell]] = []
    for experiment in experiments:
        for condition in [each for each in experiment.conditions if each.label_noise]:
            counts: dict[int, np.ndarray] = {}
            for row, _ in experiment.of(condition).pairs("attention", "attention"):
                for epoch in row.epochs:
                    for visits, of in (epoch.batches_by_visits or {}).items():
                        counts[visits] = counts.get(visits, 0) + np.array([of.batches, of.with_flipped, of.flipped])
            batches = {visits: int(each[0]) for visits, each in counts.items()}
            groups = {"all": [*counts], "visited once": [1], "repeated": [visits for visits in counts if visits > 1]}
            groups[f"most repeated, {_MOST_REPEATED_SHARE:.0%} of all"] = most_repeated(batches)
            for group, members in groups.items():
                total, with_flipped, flipped = sum(
                    (counts[each] for each in members if each in counts), np.zeros(3, int)
                )
                if total:
                    numbers = [f"{total:,}", f"{100 * with_flipped / total:.1f}", f"{flipped / total:.2f}"]
                    rows.append([experiment.name, condition.noise, condition.epoch_loss, group, *numbers])
    head = [
        "experiment",
        "label noise",
        "epoch_loss",
        "batches",
        "how many",
        "with a wrong label, %",
        "wrong labels a batch",
    ]
    caption = (
        "Attention's batches of all epochs and seeds, by their visits in the epoch; the most repeated are those with the "
        "most visits, down to where so many of all are together. A wrong label was redrawn to another class."
    )
    return Table(head, rows, caption)


def most_repeated(batches: dict[int, int]) -> list[int]:
    """The numbers of visits of the most visited batches: from the top, until a hundredth of all are together."""
    wanted, chosen = _MOST_REPEATED_SHARE * sum(batches.values()), []
    for visits in sorted(batches, reverse=True):
        if visits > 1 and sum(batches[each] for each in chosen) < wanted:
            chosen.append(visits)
    return chosen


def runs_table(experiments: Sequence[Experiment]) -> Table:
    """What was trained, with what, and on what."""
    rows: list[list[Cell]] = []
    for experiment in experiments:
        own, data = experiment.configuration, experiment.configuration.data
        start = f"ImageNet weights{f' ({own.weights})' if own.weights else ''}" if own.pretrained else "from scratch"
        training = (
            f"{own.architecture}, {own.parameters:,} parameters, {start}; Adam {own.learning_rate:g}, batch "
            f"{own.batch_size}, {own.epochs} epochs, K {own.k:g}, max_visits {own.max_visits or 'none'}; precision "
            f"{own.precision}{', channels last' if own.channels_last else ''}"
            f"{', deterministic algorithms' if own.deterministic else ''}"
        )
        size = f"{data.train_images:,} + {data.test_images:,} images of {data.height}x{data.width}"
        unfinished = f", {experiment.unfinished} unfinished left out" if experiment.unfinished else ""
        machines = "; ".join(experiment.machines)
        rows.append([experiment.name, training, size, f"{len(experiment.epochs)}{unfinished}", machines])
    return Table(["experiment", "training", "data", "runs", "hardware and versions"], rows)
