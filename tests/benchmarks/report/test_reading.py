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
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def drop(path, line):
    lines = path.read_text().splitlines()
    del lines[line]
    path.write_text("".join(f"{each}\n" for each in lines))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "epochs.jsonl").unlink(), "epochs.jsonl cannot be read"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, accuracy="high"), "epochs.jsonl, line 4 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, surprise=1), "line 1 .* surprise"),
        (lambda folder: edit(folder / "configuration.json", 0, schema_version=2), "schema"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "runs.jsonl", 0, configuration="other"), "two configurations"),
        (lambda folder: drop(folder / "epochs.jsonl", 0), "is missing"),
        (lambda folder: drop(folder / "epochs.jsonl", -1), "runs.jsonl says"),
        (lambda folder: drop(folder / "runs.jsonl", 0), "of which runs.jsonl does not know"),
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
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()), "line 1 begins with a byte order mark"),
        (lambda path: path.write_text("\n" + path.read_text()), "line 1 is empty. Delete the empty line"),
        (lambda path: path.write_text(path.read_text()[:-40]), "the line is cut off. Copy the file again"),
        (lambda path: path.write_text(path.read_text() + "<<<<<<< HEAD\n"), r"the line is not JSON \(.*Copy the file"),
    ],
)
def test_a_damaged_line_is_refused_with_what_is_wrong_and_what_to_do(folder, spoil, said):
    spoil(folder / "epochs.jsonl")
    with pytest.raises(SystemExit, match=rf"^error: .*epochs.jsonl, .*{said}") as stopped:
        main([str(folder)])
    assert "with this version" not in str(stopped.value)


def move_one(matrix):
    """One image that was classified rightly is not, in place of one of the same class."""
    matrix[0][0] -= 1
    matrix[0][1] += 1


def add_one(matrix):
    matrix[0][0] += 1


def exchange_wrong_predictions(matrix):
    """The accuracy stays, and macro-F1 does not."""
    matrix[0][1] -= 100
    matrix[0][2] += 100


def turn(matrix):
    """The accuracy stays, and macro-F1 too."""
    matrix[:] = [list(column) for column in zip(*matrix, strict=True)]


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (move_one, "images right, and epochs.jsonl has an accuracy of"),
        (add_one, "images, and 20,000 were tested"),
        (exchange_wrong_predictions, "macro-F1"),
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
    today = write_selection(tmp_path / "today", "images", {("noisy", "plain"): [50.0, 60.0]})
    older = tmp_path / "older"
    older.mkdir()
    sizes = {"updates": 100, "batch_size": 64, "imbalance": 50.0, "images": None}
    (older / "plan.json").write_text(json.dumps({"schema_version": 1, "data": "cifar10", "data_sha256": "0", **sizes}))
    lines = []
    for epoch in map(json.loads, (today / "epochs.jsonl").read_text().splitlines()):
        chosen = epoch["chosen"]
        line = {name: epoch[name] for name in ("arm", "seed", "setting", "train_loss", "seconds", "updates")}
        line |= {name: chosen[name] for name in ("forward_samples", "counts", "recalls")}
        line |= {
            "left_out": chosen["pruned"],
            "extra_updates": 0,
            "accuracy": 100 * epoch["accuracy"],
            "macro_f1": 50.0,
        }
        run = json.loads((today / "runs.jsonl").read_text().splitlines()[0])
        lines.append(line | {"environment": run["surroundings"][0]["environment"]})
    (older / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, other = read_records(today), read_records(older)
    assert [epochs[0].model_dump(exclude={"configuration", "finished_at"}) for epochs in one.epochs.values()] == [
        epochs[0].model_dump(exclude={"configuration", "finished_at"}) for epochs in other.epochs.values()
    ]
    assert one.runs.keys() == other.runs.keys()
    (older / "runs.jsonl").write_text(json.dumps(lines[0] | {"left_out": "many"}) + "\n")
    with pytest.raises(RecordsError, match=r"(?s)line 1 is not a finished run .*; take the line out"):
        read_records(older)
