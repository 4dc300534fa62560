"""Records that are not what they should be are refused, with what to do."""

import json

import pytest

from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report.__main__ import main
from tests.benchmarks.report_records import Setting, write_records, write_selection


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
        (lambda folder: edit(folder / "runs.jsonl", 1, best=None), "has no confusion matrix"),
    ],
)
def test_records_that_contradict_each_other_are_refused(folder, spoil, said):
    read_records(folder)
    spoil(folder)
    with pytest.raises(RecordsError, match=said):
        read_records(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-40], "the line is cut off. Copy the file again"),
        (lambda text: text + "<<<<<<< HEAD\n", r"the line is not JSON \(.*Copy the file"),
    ],
)
def test_a_damaged_line_is_refused_with_what_is_wrong_and_what_to_do(folder, change, said):
    path = folder / "epochs.jsonl"
    path.write_text(change(path.read_text()))
    with pytest.raises(SystemExit, match=rf"^error: .*epochs.jsonl, .*{said}") as stopped:
        main([str(folder)])
    assert "with this version" not in str(stopped.value)


def add(matrix, *changes):
    for row, column, change in changes:
        matrix[row][column] += change


def turn(matrix):
    """The accuracy stays, and macro-F1 too."""
    matrix[:] = [list(column) for column in zip(*matrix, strict=True)]


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda matrix: add(matrix, (0, 0, -1), (0, 1, 1)), "images right, and epochs.jsonl has an accuracy of"),
        (lambda matrix: add(matrix, (0, 0, 1)), "images, and 20,000 were tested"),
        (lambda matrix: add(matrix, (0, 1, -100), (0, 2, 100)), "macro-F1"),
        (turn, "other numbers of images of each class"),
        (lambda matrix: matrix.pop(), "it is not 10 by 10"),
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
    with pytest.raises(RecordsError, match=r"at its best epoch contradicts .* in epochs.jsonl that is epoch"):
        read_records(folder)


def test_older_records_of_selection_are_read_as_those_of_today(tmp_path):
    today = read_records(write_selection(tmp_path / "today", "images", {("noisy", "plain"): [50.0, 60.0]}))
    sizes = {"updates": 100, "batch_size": 64, "imbalance": 50.0, "images": None}
    lines = []
    for name, (epoch,) in today.epochs.items():
        line = epoch.model_dump(include={"arm", "seed", "setting", "train_loss", "seconds", "updates"})
        line |= epoch.chosen.model_dump(include={"forward_samples", "counts", "recalls"})
        line |= {"left_out": epoch.chosen.pruned, "extra_updates": 0, "macro_f1": 50.0}
        line |= {"accuracy": 100 * epoch.accuracy, "environment": today.runs[name].surroundings[0].environment}
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "plan.json").write_text(
        json.dumps({"schema_version": 1, "data": "cifar10", "data_sha256": "0", **sizes})
    )
    (tmp_path / "runs.jsonl").write_text("".join(lines))
    older, unequal = read_records(tmp_path), {"configuration", "finished_at"}
    assert older.epochs.keys() == today.epochs.keys() == older.runs.keys()
    for name, (epoch,) in today.epochs.items():
        assert older.epochs[name][0].model_dump(exclude=unequal) == epoch.model_dump(exclude=unequal)
    (tmp_path / "runs.jsonl").write_text(lines[0].replace('"left_out": 1600', '"left_out": "many"'))
    with pytest.raises(RecordsError, match=r"(?s)line 1 is not a finished run .*; take the line out"):
        read_records(tmp_path)
