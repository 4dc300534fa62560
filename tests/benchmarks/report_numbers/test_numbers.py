"""The numbers of the reports on the recorded runs, computed a second time from the raw lines, in the obvious way."""

import collections
import html
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.report.__main__ import make_report
from tests.benchmarks.report_records import Setting, write_records

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"
CIFAR = sorted(path.parent for path in RECORDS.glob("*/configuration.json") if (path.parent / "visits.jsonl").exists())
CIFAR.append(RECORDS / "2026-11-23-cifar10-small")
# One with label noise, and one with many classes.
QUICK = ("2026-11-28-cifar10-resnet34-noise", "2026-11-25-cifar100-lite0")
FOLDERS = [pytest.param(path, marks=[] if path.name in QUICK else pytest.mark.slow, id=path.name) for path in CIFAR]
MADE_UP = Setting(noises=(0, 3), readings=("first", "all"), seeds=(0, 1, 2, 9), is_shared=False, slower=1.2)
READINGS, OTHERS = ("first", "last", "all"), ("baseline", "random", "longer")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tables_of(text):
    """Rows of cells by the titles above them: of sections, and of what is folded."""
    tables, title = collections.defaultdict(list), ""
    for line in html.unescape(text.replace("\\", "")).splitlines():
        if line.startswith(("## ", "<details>")):
            title = line.removeprefix("## ").removeprefix("<details><summary>").removesuffix("</summary>")
        elif line.startswith("| ") and not line.startswith("| ---"):
            tables[title].append(line.strip("| ").split(" | "))
    return tables


def interval(values):
    reach = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - reach, statistics.fmean(values) + reach


def shown(values, digits=2):
    text = f"{statistics.fmean(values):+.{digits}f}"
    if len(values) > 1:
        low, high = interval(values)
        text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return text


def spread(values, digits):
    is_spread = len(values) > 1 and not any(map(math.isnan, values))
    return f"{statistics.fmean(values):.{digits}f}" + (f" ± {statistics.stdev(values):.{digits}f}" if is_spread else "")


def p_value(values):
    if len(set(values)) == 1:
        return 1.0 if values[0] == 0 else 0.0
    return stats.ttest_1samp(values, 0).pvalue


def with_holm(families):
    """Cells with intervals and the p-values of all of these, adjusted by Holm's method."""
    order = sorted((p_value(values), place) for place, values in enumerate(families) if len(values) > 1)
    words, least = {}, 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        words[place] = ", p < 0.001" if least < 0.001 else f", p = {least:.3f}"
    return [shown(values) + words.get(place, "") for place, values in enumerate(families)]


class Folder:
    """Finished runs with their epochs, by arm, reading, label noise and seed."""

    def __init__(self, path):
        self.configuration = json.loads((path / "configuration.json").read_text())
        self.runs = {}
        for run in read_lines(path / "runs.jsonl"):
            self.runs[run["arm"], run["epoch_loss"], run["label_noise"], run["seed"]] = run | {"epochs": []}
        for epoch in read_lines(path / "epochs.jsonl"):
            self.runs[epoch["arm"], epoch["epoch_loss"], epoch["label_noise"], epoch["seed"]]["epochs"].append(epoch)

    def conditions(self):
        return [
            (noise, reading)
            for noise, reading in itertools.product(sorted({key[2] for key in self.runs}), READINGS)
            if any(key[:3] == ("attention", reading, noise) for key in self.runs)
        ]

    def of(self, arm, noise, reading):
        """Runs by seed."""
        wanted = (arm, None if arm == "baseline" else reading, noise)
        return {key[3]: run for key, run in sorted(self.runs.items(), key=lambda item: item[0][3]) if key[:3] == wanted}

    def pairs(self, other, noise, reading):
        ours, theirs = self.of("attention", noise, reading), self.of(other, noise, reading)
        return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def measure(run, field, at):
    values = [math.nan if epoch[field] is None else epoch[field] for epoch in run["epochs"]]
    best = min if field == "test_loss" else max
    value = values[-1] if at == "last" else best((each for each in values if each == each), default=math.nan)
    return value if field == "test_loss" else 100 * value


def wrong(run, at):
    matrix = run[at]["confusion"]
    return [
        sum(matrix[true][predicted] for true in range(len(matrix)) if true != predicted)
        for predicted in range(len(matrix))
    ]


def total(run, field):
    return sum(epoch[field] for epoch in run["epochs"])


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("made up") / "records", MADE_UP)


@pytest.fixture(scope="module", params=["made up", *FOLDERS])
def both(request):
    """A folder as it is read here, and the tables of its report."""
    path = request.getfixturevalue("made_up") if request.param == "made up" else request.param
    return Folder(path), tables_of(make_report([path]).markdown)


def test_gains_are_the_paired_differences_with_their_intervals_and_adjusted_p_values(both):
    folder, tables = both
    groups = [(c, other) for c in folder.conditions() for other in OTHERS if folder.pairs(other, *c)]
    gains = {
        (field, at): [
            [measure(ours, field, at) - measure(theirs, field, at) for ours, theirs in folder.pairs(other, *c)]
            for c, other in groups
        ]
        for field, at in itertools.product(("accuracy", "macro_f1"), ("best", "last"))
    }
    assert [row[-1] for row in tables["The gains as a table"][1:]] == with_holm(gains.pop(("accuracy", "last")))
    columns = zip(gains["accuracy", "best"], gains["macro_f1", "last"], gains["macro_f1", "best"], strict=True)
    expected = with_holm([values for row in columns for values in row])
    assert [cell for row in tables["The gains at the best epoch, and of macro-F1"][1:] for cell in row[-3:]] == expected


def test_the_papers_tables_have_means_and_deviations_over_seeds(both):
    folder, tables = both
    conditions = [(noise, "first", "baseline") for noise in sorted({key[2] for key in folder.runs})]
    conditions += [(*c, arm) for c in folder.conditions() for arm in ("attention", "random", "longer")]
    groups = [[*folder.of(arm, noise, reading).values()] for noise, reading, arm in sorted(conditions, key=in_order)]
    groups = [runs for runs in groups if runs]
    one, two = [], {"best": [], "last": []}
    for runs in groups:
        row = [str(len(runs))]
        for at, field in itertools.product(two, ("test_loss", "macro_f1", "accuracy")):
            row.append(spread([measure(run, field, at) for run in runs], 3 if field == "test_loss" else 2))
        one.append(row)
        for at, rows in two.items():
            counts = zip(*(wrong(run, at) for run in runs), strict=True)
            variances = [float(statistics.pvariance(wrong(run, at))) for run in runs]
            rows.append([*(f"{statistics.fmean(column):.1f}" for column in counts), spread(variances, 0)])
    assert [row[3:] for row in tables["All arms"][1:]] == one
    if len(folder.configuration["data"]["classes"]) <= 20:
        for at, rows in two.items():
            found = [row for row in tables[f"At the {at} epoch"][1:] if not row[0].startswith("paper")]
            assert [row[4 : 4 + len(rows[0])] for row in found] == rows


def in_order(condition):
    """Baselines come first, for they have no reading."""
    return condition[0], condition[2] != "baseline"


def test_the_overhead_is_repeats_in_per_cent_of_batches_and_seconds_where_they_can_be_compared(both):
    folder, tables = both
    table = tables["Extra updates and seconds"]
    for row, c in zip(table[1:], folder.conditions(), strict=True):
        updates = [total(run, "repeats") / total(run, "batches") for run in folder.of("attention", *c).values()]
        seconds = [
            total(ours, "seconds") / total(theirs, "seconds") - 1 for ours, theirs in folder.pairs("baseline", *c)
        ]
        for place, shares in [(3, updates), *([(4, seconds)] if "extra seconds, %" in table[0] else [])]:
            text = shown([100 * share for share in shares], 1).replace("+", "")
            assert row[place] == f"{text}, n = {len(shares)}"


@pytest.mark.parametrize("study", ["selection", "selection-kinds"])
def test_gains_of_selection_are_paired_with_plain_training(study):
    (path,) = RECORDS.glob(f"????-??-??-{study}")
    lines = read_lines(path / "epochs.jsonl")
    runs = {
        (line["setting"], line["arm"], line["seed"], line.get("rate")): line["chosen"].get("score", 100 * line["accuracy"])
        for line in lines
    }
    rates = {line.get("rate") for line in lines}
    expected = collections.Counter()
    for setting, arm in {key[:2] for key in runs}:
        for own, plain, part in itertools.product(rates, rates, (range(8), range(8, 99))):
            keys = [((setting, arm, seed, own), (setting, "plain", seed, plain)) for seed in part]
            gains = [runs[ours] - runs[theirs] for ours, theirs in keys if ours in runs and theirs in runs]
            expected[shown(gains, 4 if setting == "text" else 2) if gains else ""] += 1
    tables = tables_of(make_report([path]).markdown)
    rows = [row for title, table in tables.items() if not title.startswith("Secondary") for row in table[1:]]
    gains = [row[4 if study == "selection-kinds" else 3] for row in rows if row[0] != "plain"]
    assert len(gains) == {"selection": 58, "selection-kinds": 40}[study]
    assert [gain for gain in gains if gain.partition(", p")[0] not in expected] == []
