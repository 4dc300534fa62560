"""Folders of records: whose they are, what they take, and what is left where a disk is full."""

import shutil

import pytest

from benchmarks import storage
from benchmarks.errors import RecordsError, StorageError
from benchmarks.reading import read_configuration, read_records
from benchmarks.schema import ARMS, RunName
from benchmarks.storage import Storage, is_stopped, stop_runs
from tests.benchmarks.cifar_helpers import WHOLE, read_lines, run_benchmark, write_lines

ONE = ["--seeds", "1", "--label-noise", "3", "--arms", "baseline", "--epochs", "1"]


@pytest.fixture
def moved(out, tmp_path):
    """Copies the records of some arms, without their ``work``."""

    def copy(*arms):
        folder = tmp_path / "moved"
        folder.mkdir()
        shutil.copy(out / "configuration.json", folder)
        for name in ("runs.jsonl", "epochs.jsonl", "visits.jsonl"):
            write_lines(folder / name, [line for line in read_lines(out / name) if line["arm"] in (arms or ARMS)])
        return folder

    return copy


def test_a_finished_command_makes_nothing_again(digits, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    run_benchmark(digits, out, *WHOLE)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == before
    assert not list(out.rglob("*state.pt*"))


def test_records_without_their_work_count_as_finished_and_stay(digits, moved, records):
    folder = moved()
    (folder / "visits.jsonl").unlink()
    run_benchmark(digits, folder, "--seeds", "0", "1", "2", "--label-noise", "3", "--arms", "baseline")
    again = read_records(folder)
    assert all(again.epochs[name] == epochs for name, epochs in records.epochs.items())
    assert set(again.runs) - set(records.runs) == {RunName("baseline", None, 3, 2)}
    with pytest.raises(RecordsError, match=r"no visits of attention-first-noise3-seed0.*another --out"):
        Storage(folder).read_visits(RunName("attention", "first", 3, 0))


def test_controls_are_made_later_from_the_visits_that_were_recorded(digits, out, moved, records):
    """The baseline's state, which saves time, is gone by then: ``longer`` makes the same updates again."""
    folder = moved("baseline", "attention")
    run_benchmark(digits, folder, "--seeds", "0", "--label-noise", "3")
    again = read_records(folder)
    for arm in ("random", "longer"):
        name = RunName(arm, "first", 3, 0)
        losses = [[epoch.test_loss for epoch in each.epochs[name]] for each in (again, records)]
        assert losses[0] == losses[1]
    assert (folder / "visits.jsonl").read_bytes() == (out / "visits.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--k", "1.2"], r"records of another configuration: k \(0.7 there\)"),
        (["--seeds", "7", "--threads", "2"], "with 1 CPU threads, and this command is for cpu with 2"),
    ],
)
def test_runs_of_another_configuration_or_number_of_threads_are_not_added(digits, out, options, said):
    before = (out / "epochs.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=said):
        run_benchmark(digits, out, *options)
    with pytest.raises(RecordsError, match=r"made on cpu .* this command is for cuda"):
        Storage(out).check_place("cuda:1", 1)
    assert (out / "epochs.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["state.pt", "record.json"])
def test_a_state_or_record_of_another_configuration_is_refused(out, tmp_path, name):
    run = RunName("baseline", None, 3, 1)
    storage = Storage(tmp_path, read_configuration(out).model_copy(update={"epochs": 1}))
    storage.save(Storage(out).read_run(run), {} if name == "state.pt" else None)
    with pytest.raises(RecordsError, match=f"{name} has a line of {run} from configuration"):
        storage.load(run) if name == "state.pt" else storage.collect()


def test_a_folder_that_has_no_runs_yet_takes_another_configuration(digits, out, tmp_path):
    with Storage(tmp_path / "out", read_configuration(out)).opened():
        pass
    run_benchmark(digits, tmp_path / "out", *ONE)
    assert read_configuration(tmp_path / "out").epochs == 1


def test_two_commands_in_one_folder_keep_out_of_each_others_way(out):
    stored = Storage(out)
    stop_runs(out, "an earlier command was stopped")
    assert is_stopped(out)
    with stored.opened():
        assert not is_stopped(out)
        with pytest.raises(StorageError, match="another command is at work"):
            stored.opened(wait_seconds=0.1).__enter__()


@pytest.mark.parametrize("name", ["work/project/.env", "epochs.jsonl"])
def test_a_folder_of_another_program_is_refused_and_left_as_it_is(out, tmp_path, name):
    path = tmp_path / "home" / name
    path.parent.mkdir(parents=True)
    path.write_text("secret")
    with pytest.raises(RecordsError, match=r"configuration.json cannot be read"):
        Storage(tmp_path / "home", read_configuration(out)).opened().__enter__()
    assert {file.name for file in (tmp_path / "home").rglob("*") if file.is_file()} - {"lock"} == {path.name}


def test_a_disk_that_fills_up_between_two_files_of_the_records_costs_none_of_them(digits, moved, records, monkeypatch):
    folder, write = moved(), storage.write_whole
    for name in ("visits.jsonl", "epochs.jsonl", "runs.jsonl"):

        def write_until_it_is_full(path, content, name=name):
            if path.name == name:
                raise StorageError("no space is left")
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_whole", write_until_it_is_full)
            with pytest.raises(SystemExit, match="no space is left"):
                run_benchmark(digits, folder, "--seeds", "7", "--arms", "attention")
    Storage(folder).write_records()
    again = read_records(folder)
    assert set(again.runs) - set(records.runs) == {RunName("attention", "first", 0, 7)}
    assert all(again.epochs[run] == epochs for run, epochs in records.epochs.items())


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"
    storage.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"file cannot be written: No space left.*the same command again to resume"):
        storage.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
