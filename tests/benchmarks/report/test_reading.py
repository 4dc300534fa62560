"""Records that are not what they should be are refused, with what to do."""

import json

import pytest

from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report.__main__ import main
from tests.benchmarks.report_records import Setting, write_records


@pytest.fixture
def folder(tmp_path):
    return write_records(tmp_path / "records", Setting(epochs=2, seeds=(0,), arms=("baseline", "attention")))


def edit(path, line, **changes):
    """Change fields of a line; without any, the line goes."""
    lines = path.read_text().splitlines()
    changed = json.dumps({**json.loads(lines.pop(line)), **changes})
    path.write_text("\n".join([*lines[:line], *([changed] if changes else []), *lines[line:], ""]))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "epochs.jsonl").unlink(), "epochs.jsonl cannot be read"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, accuracy="high"), "epochs.jsonl, line 4 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, surprise=1), "line 1 .* surprise"),
        (lambda folder: edit(folder / "configuration.json", 0, schema_version=2), "schema"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "runs.jsonl", 0, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "epochs.jsonl", 0), "is missing"),
        (lambda folder: edit(folder / "epochs.jsonl", 3), "runs.jsonl says"),
        (lambda folder: edit(folder / "runs.jsonl", 0), "of which runs.jsonl does not know"),
        (lambda folder: (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text() * 2), "two lines"),
        (lambda folder: edit(folder / "runs.jsonl", 1, best=None), "number of matrices 0, and elsewhere 1"),
    ],
)
def test_records_that_contradict_each_other_are_refused(folder, spoil, said):
    read_records(folder)
    spoil(folder)
    with pytest.raises(RecordsError, match=said):
        read_records(folder)


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: text + "<<<<<<< HEAD\n"])
def test_a_damaged_line_is_refused_with_what_is_wrong_and_what_to_do(folder, change):
    path = folder / "epochs.jsonl"
    path.write_text(change(path.read_text()))
    with pytest.raises(SystemExit, match=r"^error: .*epochs.jsonl, line .* Invalid JSON: .* Copy the file again"):
        main([str(folder)])


def add(matrix, *changes):
    for row, column, change in changes:
        matrix[row][column] += change


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda matrix: add(matrix, (0, 0, -1), (0, 1, 1)), "images right"),
        (lambda matrix: add(matrix, (0, 0, 1)), "images 20,001, and elsewhere 20,000"),
        (lambda matrix: add(matrix, (0, 1, -100), (0, 2, 100)), "macro-F1"),
        (lambda matrix: matrix.pop(), "classes 9, and elsewhere 10"),
    ],
)
def test_a_confusion_matrix_that_contradicts_the_rest_is_refused(folder, which, spoil, said):
    evaluated = json.loads((folder / "runs.jsonl").read_text().splitlines()[1])[which]
    spoil(evaluated["confusion"])
    edit(folder / "runs.jsonl", 1, **{which: evaluated})
    with pytest.raises(RecordsError, match=f"at its {which} epoch contradicts the rest of the records: .*{said}"):
        read_records(folder)


def test_a_confusion_matrix_of_another_epoch_is_refused(folder):
    best = json.loads((folder / "runs.jsonl").read_text().splitlines()[0])["best"]
    edit(folder / "runs.jsonl", 0, best={**best, "epoch": 3 - best["epoch"]})
    with pytest.raises(RecordsError, match=r"at its best epoch contradicts .* epoch [12], and elsewhere"):
        read_records(folder)
