"""Every number in the tables of a benchmark report, computed a second time from the raw records, in the obvious way."""

import collections
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sklearn.metrics import f1_score

from benchmarks.report import figures
from benchmarks.report.__main__ import main
from tests.benchmarks.report_numbers.box import ALL, numbers_in_box, ranges_over_all
from tests.benchmarks.report_numbers.folders import Folder, read_folder
from tests.benchmarks.report_numbers.measures import total
from tests.benchmarks.report_numbers.tables import TABLE_2_BEST, compute_tables, how_reduced
from tests.benchmarks.report_records import CASES, write_case

RECORDED = sorted(
    path.parent
    for path in (Path(__file__).parents[3] / "benchmarks" / "records").glob("*/epochs.jsonl")
    if (path.parent / "runs.jsonl").exists()
)


class Report(NamedTuple):
    folders: list[Folder]
    asked: str
    shown: dict[str, list[list[list[str]]]]
    paragraphs: dict[str, list[str]]
    right: dict[str, list[list[int]]]
    computed: dict[str, list[list[list]]]


@pytest.fixture(scope="module", params=[*CASES, *RECORDED], ids=lambda case: getattr(case, "name", case))
def report(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    is_made = request.param in CASES
    paths = write_case(request.param, folder) if is_made else [request.param]
    asked = CASES[request.param][1] if is_made else "first"
    with pytest.MonkeyPatch.context() as patch:
        # Figures take most of a report's time, and no number is read from them here.
        patch.setattr(figures, "draw_all", lambda *arguments: {})
        main([*map(str, paths), "--out", str(folder / "out"), "--epoch-loss", asked])
    folders = sorted(map(read_folder, paths), key=lambda each: each.name)
    text = (folder / "out" / "report.md").read_text(encoding="utf-8")
    return Report(folders, asked, *parse(text), compute_tables(folders, asked))


def parse(text: str) -> tuple[dict[str, list[list[list[str]]]], dict[str, list[str]], dict[str, list[list[int]]]]:
    """Below each title, the tables, the paragraphs, and which columns are set to the right, as they are on GitHub.

    What stands before the first title is that of "".
    """
    tables, paragraphs, right = (collections.defaultdict(list) for _ in range(3))
    title = ""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    for before, token in itertools.pairwise(tokens):
        if before.type == "heading_open" and before.tag != "h1":
            title = read_inline(token)
        elif before.type == "paragraph_open":
            paragraphs[title].append(read_inline(token))
        elif before.type == "table_open":
            tables[title].append([])
            right[title].append([])
        elif before.type == "tr_open":
            tables[title][-1].append([])
        elif before.type in ("th_open", "td_open"):
            if before.type == "th_open" and before.attrs.get("style") == "text-align:right":
                right[title][-1].append(len(tables[title][-1][-1]))
            tables[title][-1][-1].append(read_inline(token))
    return dict(tables), dict(paragraphs), dict(right)


def read_inline(token: Token) -> str:
    """What is bold is marked so; what is anything else but plain text is not hidden."""
    marks = {"strong_open": "**", "strong_close": "**"}
    parts = token.children or []
    return "".join(
        marks.get(part.type, part.content if part.type == "text" else f"<{part.type} {part.content}>") for part in parts
    )


def test_the_tables_are_those_that_are_computed_here(report):
    sizes, computed_sizes = (
        {title: [[len(row) for row in table] for table in tables] for title, tables in each.items()}
        for each in (report.shown, report.computed)
    )
    assert list(sizes.items()) == list(computed_sizes.items())


def test_every_cell_is_what_the_records_give(report):
    wrong = []
    for title, tables in report.shown.items():
        for table, expected_table in zip(tables, report.computed[title], strict=True):
            for row, expected_row in zip(table, expected_table, strict=True):
                for head, cell, expected in zip(table[0], row, expected_row, strict=True):
                    if cell not in ({expected} if isinstance(expected, str) else expected):
                        wrong.append(f"{title}: {row[:4]} {head}: {cell!r}, not {expected!r}")
    assert wrong == []


def test_columns_of_numbers_and_no_others_are_set_to_the_right(report):
    # With a deviation, or an interval and the number of runs; a dash stands for what there is not.
    number = r"[-+]?[\d,.]+"
    is_number = re.compile(rf"-|{number}( ± {number}|( \({number} to {number}\))?, n = \d+)?")
    for title, tables in report.shown.items():
        for (head, *rows), right in zip(tables, report.right[title], strict=True):
            columns = list(zip(*rows, strict=True))
            are_numbers = [all(map(is_number.fullmatch, cells)) and set(cells) != {"-"} for cells in columns]
            assert right == [place for place, each in enumerate(are_numbers) if each], (title, head)


def test_every_experiment_says_how_it_is_reduced(report):
    for folder in report.folders:
        assert report.paragraphs[f"Claims: {folder.name}"] == [how_reduced(folder)]


def test_the_numbers_in_the_box_are_those_that_are_computed_here(report):
    box = report.paragraphs[""][:5]
    for sentence, expected in itertools.zip_longest(box, numbers_in_box(report.folders, report.asked)):
        assert any(text in sentence for text in expected), (sentence, expected)


def test_the_box_names_the_condition_that_it_judges_and_gives_the_range_over_all(report):
    judging = report.paragraphs[""][1:4]
    for sentence, expected in zip(judging, ranges_over_all(report.folders, report.asked), strict=True):
        assert f'with clean labels and epoch_loss="{report.asked}"' in sentence
        assert any(text in sentence for text in expected) if expected else ALL not in sentence, (sentence, expected)


@pytest.mark.parametrize("at", ["best", "last"])
def test_confusion_gives_the_recorded_accuracy_and_macro_f1(report, at):
    for folder in report.folders:
        for name, run in folder.runs.items():
            confusion = np.array(run[at]["confusion"])
            true, predicted = (labels.ravel() for labels in np.indices(confusion.shape))
            images = confusion.ravel()
            epoch = run["epochs"][run[at]["epoch"] - 1]
            classes = {"labels": range(len(confusion)), "average": "macro", "zero_division": 0}
            f1 = f1_score(true, predicted, sample_weight=images, **classes)
            assert images.sum() == folder.configuration["data"]["test_images"]
            assert images[true == predicted].sum() / images.sum() == pytest.approx(epoch["accuracy"], rel=1e-12), name
            assert f1 == pytest.approx(epoch["macro_f1"], rel=1e-12), name


def test_the_best_epoch_is_the_first_of_the_highest_accuracy_and_the_last_is_the_last(report):
    for run in itertools.chain(*(folder.runs.values() for folder in report.folders)):
        accuracies = [epoch["accuracy"] for epoch in run["epochs"]]
        assert [epoch["epoch"] for epoch in run["epochs"]] == list(range(1, len(accuracies) + 1))
        assert run["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
        assert run["last"]["epoch"] == len(accuracies)


def test_the_updates_of_an_epoch_are_its_visits(report):
    for run in itertools.chain(*(folder.runs.values() for folder in report.folders)):
        for epoch in run["epochs"]:
            assert epoch["updates"] == epoch["batches"] + epoch["repeats"]
            if epoch["batches_by_visits"] is not None:
                counted = {int(visits): n["batches"] for visits, n in epoch["batches_by_visits"].items()}
                assert sum(counted.values()) == epoch["batches"]
                assert sum(visits * batches for visits, batches in counted.items()) == epoch["updates"]
                assert max(counted) == epoch["most_visits"]


def test_controls_make_the_visits_and_the_updates_of_their_attention_run(report):
    for folder in report.folders:
        for condition in folder.conditions():
            for longer, attention in folder.find(condition, "longer", "attention"):
                assert total(longer["epochs"], "updates") == total(attention["epochs"], "updates")
            for pair in folder.find(condition, "random", "attention"):
                random, attention = ([visit_counts(epoch) for epoch in run["epochs"]] for run in pair)
                assert random == attention


def visit_counts(epoch: dict) -> dict[str, int]:
    return {visits: numbers["batches"] for visits, numbers in epoch["batches_by_visits"].items()}


def test_the_papers_variances_are_those_of_its_counts(report):
    rows = [row for row in report.shown.get(TABLE_2_BEST, [[]])[0] if row[0].startswith("paper")]
    for row in rows:
        assert f"{np.var(list(map(int, row[4:14]))):.2f}" == row[-3]
    assert len(rows) == 2 * any(folder.configuration["data"]["name"] == "cifar10" for folder in report.folders)
