"""The numbers of the reports on the recorded runs, computed a second time from the raw lines, in the obvious way."""

import collections
import html
import itertools
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.report.__main__ import make_report
from tests.benchmarks.report_records import Setting, write_records

RECORDS = Path(__file__).parents[3] / "benchmarks" / "records"
CIFAR = [path.parent for path in sorted(RECORDS.glob("*cifar*/configuration.json"))]
QUICK = "2026-11-28-cifar10-resnet34-noise"
FOLDERS = [pytest.param(path, marks=[] if path.name == QUICK else pytest.mark.slow, id=path.name) for path in CIFAR]
MADE_UP = Setting(noises=(0, 3), readings=("first", "all"), seeds=(0, 1, 2, 9), is_shared=False, slower=1.2)
READINGS, ARMS = ("first", "last", "all"), ("baseline", "attention", "random", "longer")
RUN = ["label_noise", "epoch_loss", "arm", "seed"]


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


def shown(values, digits=2):
    text = f"{statistics.fmean(values):+.{digits}f}"
    if len(values) > 1:
        reach = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        low, high = statistics.fmean(values) - reach, statistics.fmean(values) + reach
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


def read_runs(path):
    """A row a run, in the order of tables, with what it measured at its best and at its last epoch."""
    runs = {tuple(line[name] or 0 for name in RUN): line | {"epochs": []} for line in read_lines(path / "runs.jsonl")}
    for epoch in read_lines(path / "epochs.jsonl"):
        runs[tuple(epoch[name] or 0 for name in RUN)]["epochs"].append(epoch)
    for run in runs.values():
        epochs = pd.DataFrame(run["epochs"])
        for at, field in itertools.product(("best", "last"), ("test_loss", "macro_f1", "accuracy")):
            values = epochs[field] if field == "test_loss" else 100 * epochs[field]
            best = values.min() if field == "test_loss" else values.max()
            run[f"{at} {field}"] = values.iloc[-1] if at == "last" else best
        for at in ("best", "last"):
            confusion = np.array(run[at]["confusion"])
            run[f"{at} wrong"] = (confusion * (1 - np.eye(len(confusion)))).sum(axis=0)
        run |= dict(epochs[["repeats", "batches", "seconds"]].sum())
    place = {name: place for place, name in enumerate((None, *READINGS, *ARMS))}
    return pd.DataFrame(sorted(runs.values(), key=lambda run: [place.get(run[name], run[name]) for name in RUN]))


def make_pairs(runs):
    """Attention and each other arm, by condition and other arm."""
    attention, others = runs[runs["arm"] == "attention"], runs[runs["arm"] != "attention"]
    pairs = attention.merge(others, on=["label_noise", "seed"], suffixes=("", "_other"))
    pairs = pairs[pairs["epoch_loss_other"].isna() | (pairs["epoch_loss_other"] == pairs["epoch_loss"])]
    return [group for _, group in pairs.groupby(["label_noise", "epoch_loss", "arm_other"], sort=False)]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("made up") / "records", MADE_UP)


@pytest.fixture(scope="module", params=["made up", *FOLDERS])
def both(request):
    """The runs of a folder as they are read here, and the tables of its report."""
    path = request.getfixturevalue("made_up") if request.param == "made up" else request.param
    return read_runs(path), tables_of(make_report([path]).markdown)


def test_gains_are_the_paired_differences_with_their_intervals_and_adjusted_p_values(both):
    runs, tables = both
    gains = [
        [[*(pairs[field] - pairs[f"{field}_other"])] for field in ("best accuracy", "last macro_f1", "best macro_f1")]
        for pairs in make_pairs(runs)
    ]
    primary = [[*(pairs["last accuracy"] - pairs["last accuracy_other"])] for pairs in make_pairs(runs)]
    assert [row[-1] for row in tables["The gains as a table"][1:]] == with_holm(primary)
    expected = with_holm([values for row in gains for values in row])
    assert [cell for row in tables["The gains at the best epoch, and of macro-F1"][1:] for cell in row[-3:]] == expected


def test_the_papers_tables_have_means_and_deviations_over_seeds(both):
    runs, tables = both
    one, two = [], {"best": [], "last": []}
    for _, group in runs.groupby(RUN[:3], sort=False, dropna=False):
        row = [str(len(group))]
        for at, field in itertools.product(two, ("test_loss", "macro_f1", "accuracy")):
            row.append(spread([*group[f"{at} {field}"]], 3 if field == "test_loss" else 2))
        one.append(row)
        for at, rows in two.items():
            counts = np.array([*group[f"{at} wrong"]])
            rows.append([*(f"{mean:.1f}" for mean in counts.mean(axis=0)), spread([*counts.var(axis=1)], 0)])
    assert [row[3:] for row in tables["All arms"][1:]] == one
    if len(two["best"][0]) <= 21:
        for at, rows in two.items():
            found = [row for row in tables[f"At the {at} epoch"][1:] if not row[0].startswith("paper")]
            assert [row[4 : 4 + len(rows[0])] for row in found] == rows


def test_the_overhead_is_repeats_in_per_cent_of_batches_and_seconds_where_they_can_be_compared(both):
    runs, tables = both
    table = tables["Extra updates and seconds"]
    updates = runs[runs["arm"] == "attention"].groupby(RUN[:2], sort=False)
    seconds = [pairs for pairs in make_pairs(runs) if (pairs["arm_other"] == "baseline").all()]
    for row, (_, group), pairs in zip(table[1:], updates, seconds, strict=True):
        columns = {3: 100 * group["repeats"] / group["batches"]}
        if "extra seconds, %" in table[0]:
            columns[4] = 100 * (pairs["seconds"] / pairs["seconds_other"] - 1)
        for place, shares in columns.items():
            text = shown([*shares], 1).replace("+", "")
            assert row[place] == f"{text}, n = {len(shares)}"


@pytest.mark.parametrize("study", ["selection", pytest.param("selection-kinds", marks=pytest.mark.slow)])
def test_gains_of_selection_are_paired_with_plain_training(study):
    (path,) = RECORDS.glob(f"????-??-??-{study}")
    runs = {}
    for line in read_lines(path / "epochs.jsonl"):
        score = line["chosen"].get("score", 100 * line["accuracy"])
        runs[line["setting"], line["arm"], line["seed"], line.get("rate")] = score
    rates, expected = {key[3] for key in runs}, set()
    for setting, arm in {key[:2] for key in runs}:
        for own, plain, part in itertools.product(rates, rates, (range(8), range(8, 99))):
            keys = [((setting, arm, seed, own), (setting, "plain", seed, plain)) for seed in part]
            gains = [runs[ours] - runs[theirs] for ours, theirs in keys if ours in runs and theirs in runs]
            expected.add(shown(gains, 4 if setting == "text" else 2) if gains else "")
    tables = tables_of(make_report([path]).markdown)
    rows = [row for title, table in tables.items() if not title.startswith("Secondary") for row in table[1:]]
    gains = [row[4 if study == "selection-kinds" else 3] for row in rows if row[0] != "plain"]
    assert len(gains) == {"selection": 58, "selection-kinds": 40}[study]
    assert {gain.partition(", p")[0] for gain in gains} <= expected
