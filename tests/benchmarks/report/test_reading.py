"""Records are read with every check that they have to pass."""

import json

import pytest

from benchmarks.errors import RecordsError
from benchmarks.reading import read_records
from benchmarks.report.__main__ import main
from benchmarks.report.results import read_experiments
from tests.benchmarks.cifar_helpers import run_benchmark


@pytest.fixture
def copied(out, tmp_path):
    """Records that may be spoiled."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in ("configuration.json", "runs.jsonl", "epochs.jsonl"):
        (folder / name).write_bytes((out / name).read_bytes())
    return folder


def edit(path, line, **changes):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **changes})
    path.write_text("\n".join(lines) + "\n")


def drop(path, line):
    lines = path.read_text().splitlines()
    del lines[line]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "epochs.jsonl").unlink(), "epochs.jsonl cannot be read"),
        (lambda folder: edit(folder / "epochs.jsonl", 4, accuracy="high"), "epochs.jsonl, line 5 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, accuracy=1.5), "line 1 .* accuracy"),
        (lambda folder: edit(folder / "epochs.jsonl", 0, surprise=1), "line 1 .* surprise"),
        (lambda folder: edit(folder / "runs.jsonl", 1, arm="magic"), "runs.jsonl, line 2 .* arm"),
        (lambda folder: edit(folder / "configuration.json", 0, schema_version=2), "schema"),
        (lambda folder: edit(folder / "epochs.jsonl", 3, configuration="other"), "two configurations"),
        (lambda folder: edit(folder / "runs.jsonl", 0, configuration="other"), "two configurations"),
        (lambda folder: drop(folder / "epochs.jsonl", 0), "is missing"),
        (lambda folder: drop(folder / "epochs.jsonl", -1), "runs.jsonl says"),
        (lambda folder: drop(folder / "runs.jsonl", 0), "of which runs.jsonl does not know"),
        (lambda folder: (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text() * 2), "two lines"),
    ],
)
def test_records_that_are_not_what_they_should_be_are_refused(copied, spoil, said):
    one_line = copied / "configuration.json"
    one_line.write_text(json.dumps(json.loads(one_line.read_text())))
    read_records(copied)
    spoil(copied)
    with pytest.raises(RecordsError, match=said):
        read_records(copied)
    with pytest.raises(SystemExit, match=r"^error: "):
        main([str(copied)])


def cut(path):
    path.write_text(path.read_text()[:-40])


@pytest.mark.parametrize("name", ["runs.jsonl", "epochs.jsonl"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()), "line 1 begins with a byte order mark"),
        (lambda path: path.write_text("\n" + path.read_text()), "line 1 is empty. Delete the empty line"),
        (lambda path: path.write_text(path.read_text() + "\n"), r"line \d+ is empty. Delete the empty line"),
        (cut, "the line is cut off. Copy the file again"),
        (lambda path: path.write_text(path.read_text() + "<<<<<<< HEAD\n"), r"the line is not JSON \(.*Copy the file"),
    ],
)
def test_a_damaged_line_is_refused_with_what_is_wrong_and_what_to_do(copied, name, spoil, said):
    spoil(copied / name)
    with pytest.raises(SystemExit, match=rf"^error: .*{name}, .*{said}") as stopped:
        main([str(copied)])
    assert "with this version" not in str(stopped.value)


def test_lines_may_end_as_windows_ends_them(copied):
    before = read_records(copied)
    for name in ("runs.jsonl", "epochs.jsonl"):
        (copied / name).write_bytes((copied / name).read_bytes().replace(b"\n", b"\r\n"))
    assert read_records(copied) == before


def move_one(matrix):
    """One image that was classified rightly is not, in place of one of the same class."""
    label = next(label for label, row in enumerate(matrix) if row[label])
    matrix[label][label] -= 1
    matrix[label][label - 1] += 1


def add_one(matrix):
    matrix[0][0] += 1


def exchange_wrong_predictions(matrix):
    """The accuracy stays, and macro-F1 does not."""
    row = next(row for row in range(len(matrix)) if any(n for column, n in enumerate(matrix[row]) if column != row))
    wrong = next(column for column, n in enumerate(matrix[row]) if n and column != row)
    other = next(column for column in range(len(matrix)) if column not in (row, wrong))
    matrix[row][wrong] -= 1
    matrix[row][other] += 1


def turn(matrix):
    """The accuracy stays, and macro-F1 too."""
    matrix[:] = [list(column) for column in zip(*matrix, strict=True)]


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (move_one, "images right, and epochs.jsonl has an accuracy of"),
        (add_one, "images, and 60 were tested"),
        (exchange_wrong_predictions, "macro-F1"),
        (turn, "other numbers of images of each class"),
        (lambda matrix: matrix.pop(), "it is not 10 by 10"),
        (lambda matrix: matrix[3].append(0), "it is not 10 by 10"),
    ],
)
def test_a_confusion_matrix_that_contradicts_the_rest_is_refused(copied, which, spoil, said):
    runs = [json.loads(line) for line in (copied / "runs.jsonl").read_text().splitlines()]
    evaluated = runs[1][which]
    spoil(evaluated["confusion"])
    edit(copied / "runs.jsonl", 1, **{which: evaluated})
    with pytest.raises(RecordsError, match=f"at its {which} epoch contradicts the rest of the records: .*{said}"):
        read_records(copied)


def test_a_confusion_matrix_of_another_epoch_is_refused(copied):
    best = json.loads((copied / "runs.jsonl").read_text().splitlines()[0])["best"]
    edit(copied / "runs.jsonl", 0, best={**best, "epoch": 3 - best["epoch"]})
    with pytest.raises(RecordsError, match=r"at its best epoch contradicts .* in epochs.jsonl that is epoch"):
        read_records(copied)


def test_the_same_run_does_not_count_twice(out, copied):
    with pytest.raises(RecordsError, match="give each run once"):
        read_experiments([out, copied])


def test_runs_of_one_configuration_from_two_folders_are_put_together(digits, out, tmp_path):
    other = run_benchmark(digits, tmp_path / "out", "--epochs", "2", "--seeds", "7")
    (experiment,) = read_experiments([out, other])
    assert len(experiment.runs) == 2 * 3 * 4 + 4


def test_runs_that_are_not_finished_are_left_out_and_counted(copied):
    lines = (copied / "runs.jsonl").read_text().splitlines()
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=line > 0)
    (experiment,) = read_experiments([copied])
    assert (len(experiment.runs), experiment.unfinished) == (len(lines) - 1, 1)
    for line in range(len(lines)):
        edit(copied / "runs.jsonl", line, is_finished=False)
    with pytest.raises(RecordsError, match="no run of small_resnet on digits is finished"):
        read_experiments([copied])
