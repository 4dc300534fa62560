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
