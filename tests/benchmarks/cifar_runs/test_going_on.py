"""Commands that are given again, or later, for what is there already."""

import json
import shutil

import pytest
import torch

from benchmarks.cifar import storage
from benchmarks.cifar.storage import Storage
from benchmarks.errors import StorageError
from benchmarks.reading import read_configuration, read_records
from benchmarks.schema import ARMS, RunName
from tests.benchmarks.cifar_helpers import SMALL, WHOLE, read_lines, run_benchmark, run_once


def leave_only_records(out, moved, *, arms):
    """The files of the records, with runs of some arms, and without ``work``."""
    moved.mkdir()
    for name in ("configuration.json", "visits.jsonl"):
        (moved / name).write_bytes((out / name).read_bytes())
    for name in ("runs.jsonl", "epochs.jsonl"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (moved / name).write_text("".join(line for line in lines if json.loads(line)["arm"] in arms))
    return moved


def test_a_finished_command_makes_nothing_again(digits, out):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    run_benchmark(digits, out, *WHOLE)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == before
    assert not list(out.rglob("state.pt"))


def test_records_without_their_work_count_as_finished_and_stay(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=ARMS)
    (moved / "visits.jsonl").unlink()
    run_benchmark(digits, moved, "--seeds", "0", "1", "2", "--arms", "baseline")
    for name, epochs in read_records(out).epochs.items():
        assert read_records(moved).epochs[name] == epochs
    assert len(read_records(moved).runs) == len(read_records(out).runs) + 1


def test_a_control_whose_attention_run_is_recorded_without_its_visits_is_refused(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention", "longer"))
    (moved / "visits.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"has the visits of attention-first-noise0-seed0.*another --out"):
        run_benchmark(digits, moved, *SMALL)
    assert len(read_records(moved).runs) == 20


def test_a_control_is_made_later_from_the_visits_that_were_recorded(digits, out, records, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention", "longer"))
    run_benchmark(digits, moved, *SMALL, "--arms", "random")
    name = RunName("random", "first", 0, 0)
    again = read_records(moved)
    assert [epoch.test_loss for epoch in again.epochs[name]] == [epoch.test_loss for epoch in records.epochs[name]]
    assert (moved / "visits.jsonl").read_bytes() == (out / "visits.jsonl").read_bytes()


def test_visits_of_another_time_than_the_epochs_are_refused(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention"))
    lines = read_lines(moved / "visits.jsonl")
    for line in lines:
        line["visits"][2][0] += 1
    (moved / "visits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit, match=r"visits of attention-first-noise0-seed0 in visits.jsonl are not those"):
        run_benchmark(digits, moved, *SMALL, "--arms", "random")


def test_damaged_visits_are_refused_before_anything_is_trained(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=("baseline", "attention"))
    text = (moved / "visits.jsonl").read_text()
    for damaged, said in (
        (text[:-30], "does not fit"),
        (text.replace('"configuration":"', '"configuration":"0'), "line"),
    ):
        (moved / "visits.jsonl").write_text(damaged)
        with pytest.raises(SystemExit, match=f"visits.jsonl.*{said}"):
            run_benchmark(digits, moved, "--seeds", "7", "--arms", "baseline")
        assert not list(moved.glob("work/*/record.json"))


def test_a_folder_of_another_configuration_is_refused_and_keeps_its_records(digits, out):
    before = (out / "epochs.jsonl").read_bytes()
    with pytest.raises(SystemExit, match=r"records of another configuration: k \(0.7 there, 1.2 now\)"):
        run_benchmark(digits, out, "--k", "1.2")
    assert (out / "epochs.jsonl").read_bytes() == before


def test_runs_that_could_not_agree_bit_for_bit_are_not_added(digits, out):
    with pytest.raises(SystemExit, match="with 1 CPU threads, and this command is for cpu with 2"):
        run_benchmark(digits, out, "--seeds", "7", "--threads", "2")


def test_a_state_or_record_of_another_configuration_is_refused(digits, out, tmp_path):
    other = run_benchmark(digits, tmp_path / "out", "--seeds", "0", "--arms", "baseline", "--epochs", "1")
    work = other / "work" / "baseline-noise0-seed1"
    work.mkdir()
    foreign = (out / "work" / "baseline-noise0-seed1" / "record.json").read_text()
    again = ["--seeds", "1", "--arms", "baseline", "--epochs", "1"]
    torch.save({"record": foreign, "loop": {}}, work / "state.pt")
    with pytest.raises(SystemExit, match=r"state.pt has a line of baseline-noise0-seed1 from configuration"):
        run_benchmark(digits, other, *again)
    (work / "state.pt").write_bytes(b"cut off")
    with pytest.raises(SystemExit, match=r"state.pt cannot be read: \w.* begins anew"):
        run_benchmark(digits, other, *again)
    (work / "state.pt").unlink()
    (work / "record.json").write_text(foreign)
    with pytest.raises(SystemExit, match=r"record.json has a line of baseline-noise0-seed1 from configuration"):
        run_benchmark(digits, other, *again)
    (work / "record.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"record.json, line 1 does not fit schema version 1"):
        run_benchmark(digits, other, *again)
    (work / "record.json").unlink()
    run_benchmark(digits, other, *again)
    assert len(read_records(other).runs) == 2


def test_a_folder_that_only_a_refused_command_has_seen_takes_another_configuration(digits, tmp_path):
    stored = Storage(tmp_path / "out", read_configuration(run_once(digits, tmp_path / "one")))
    with stored.opened():
        pass
    run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline", "--epochs", "2")
    assert read_configuration(tmp_path / "out").epochs == 2


def test_what_a_killed_command_left_half_written_is_cleared(digits, tmp_path):
    out = run_once(digits, tmp_path / "out")
    work = out / "work" / "baseline-noise0-seed0"
    (work / ".state.pt.123").write_bytes(b"half")
    (work / "state.pt").write_bytes(b"left after the run was recorded")
    (out / "runs.jsonl").unlink()
    run_once(digits, out)
    assert [path.name for path in work.iterdir()] == ["record.json"]
    assert len(read_records(out).runs) == 1


def test_two_commands_in_one_folder_keep_out_of_each_others_way(digits, out):
    stored = Storage(out, read_configuration(out))
    lock = stored.opened(wait_seconds=0.1)
    with stored.opened(), pytest.raises(StorageError, match="another command is at work"):
        lock.__enter__()


def test_a_file_in_the_place_of_the_folder_is_refused(digits, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SystemExit, match="cannot be written"):
        run_benchmark(digits, tmp_path / "out", *SMALL)


def test_a_run_that_was_stopped_after_every_epoch_has_the_visits_of_all_of_them(digits, out, tmp_path, monkeypatch):
    folder, options, save = tmp_path / "out", [*SMALL, "--arms", "attention"], Storage.save

    def save_and_stop(self, record, loop_state):
        save(self, record, loop_state)
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(Storage, "save", save_and_stop)
            with pytest.raises(SystemExit, match="stopped"):
                run_benchmark(digits, folder, *options)
    run_benchmark(digits, folder, *options)
    (line,) = read_lines(folder / "visits.jsonl")
    undisturbed = [each for each in read_lines(out / "visits.jsonl") if (each["seed"], each["label_noise"]) == (0, 0)]
    assert line["visits"] == next(each["visits"] for each in undisturbed if each["epoch_loss"] == "first")
    assert [(len(visits), sum(visits)) for visits in line["visits"]] == [
        (epoch.batches, epoch.updates) for epochs in read_records(folder).epochs.values() for epoch in epochs
    ]


@pytest.mark.parametrize("name", ["visits.jsonl", "epochs.jsonl", "runs.jsonl"])
def test_a_disk_that_fills_up_between_two_files_of_the_records_costs_none_of_them(
    digits, out, tmp_path, monkeypatch, name
):
    """Also where the folders of earlier runs are gone, and nothing but the records has them."""
    moved = leave_only_records(out, tmp_path / "moved", arms=ARMS)
    options = ["--seeds", "7", "--arms", "attention"]
    put = storage.write_whole

    def put_until_it_is_full(path, write):
        if path.name == name:
            raise StorageError("no space is left")
        put(path, write)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_whole", put_until_it_is_full)
        with pytest.raises(SystemExit, match="no space is left"):
            run_benchmark(digits, moved, *options)
    run_benchmark(digits, moved, *options)
    again, before = read_records(moved), read_records(out)
    assert set(again.runs) - set(before.runs) == {RunName("attention", "first", 0, 7)}
    assert all(again.epochs[run] == epochs for run, epochs in before.epochs.items())


def copied(out, folder):
    shutil.copytree(out, folder)
    return folder


def cut_last_line(path):
    path.write_bytes(path.read_bytes()[:-40])


def drop_last_line(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut_last_line, drop_last_line, empty])
@pytest.mark.parametrize("name", ["epochs.jsonl", "runs.jsonl", "visits.jsonl"])
def test_damaged_records_are_made_anew_of_the_runs_own_folders(digits, out, tmp_path, name, damage):
    folder = copied(out, tmp_path / "copy")
    damage(folder / name)
    run_benchmark(digits, folder, *WHOLE)
    for file in ("epochs.jsonl", "runs.jsonl", "visits.jsonl"):
        assert (folder / file).read_bytes() == (out / file).read_bytes()


@pytest.mark.parametrize("damage", [cut_last_line, empty])
def test_a_run_s_damaged_record_is_made_good_from_the_common_ones(digits, out, tmp_path, damage):
    folder = copied(out, tmp_path / "copy")
    damage(folder / "work" / "attention-first-noise0-seed0" / "record.json")
    run_benchmark(digits, folder, *WHOLE)
    assert (folder / "epochs.jsonl").read_bytes() == (out / "epochs.jsonl").read_bytes()


def test_what_is_damaged_everywhere_is_said_with_what_to_delete(digits, out, tmp_path):
    folder = copied(out, tmp_path / "copy")
    empty(folder / "work" / "attention-first-noise0-seed0" / "record.json")
    for name in ("runs.jsonl", "epochs.jsonl", "visits.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if json.loads(line)["arm"] != "attention"))
    with pytest.raises(SystemExit, match=r"record.json.*Or delete .*attention-first-noise0-seed0, and this run begins"):
        run_benchmark(digits, folder, *WHOLE)


def test_epochs_that_are_missing_are_said_where_no_folder_of_the_run_has_them(digits, out, tmp_path):
    moved = leave_only_records(out, tmp_path / "moved", arms=ARMS)
    drop_last_line(moved / "epochs.jsonl")
    with pytest.raises(SystemExit, match=r"epochs in epochs.jsonl, and runs.jsonl says \d+; take its line out"):
        run_benchmark(digits, moved, *WHOLE)


# Files of other programs -------------------------------------------------------------------------------------


def put_others(folder):
    """Files that belong to nobody here, some under names that look like ours."""
    for name in (".env", ".netrc", ".gitignore", ".record.json", ".state.pt.12x", "state.pt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} of another program")
    return folder


def read_all(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["work/project/.env", "work", "runs.jsonl", "epochs.jsonl", "visits.jsonl"])
def test_a_folder_of_another_program_is_refused_and_left_as_it_is(digits, tmp_path, name):
    folder = tmp_path / "home"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("secret")
    with pytest.raises(SystemExit, match=f"has {name.partition('/')[0]} but no configuration.json .* another --out"):
        run_benchmark(digits, folder, *SMALL)
    assert read_all(folder) == {folder / name: b"secret"}


@pytest.mark.parametrize("text", ["{}", "", '{"schema_version": 1, "theme": "dark"}'])
def test_a_configuration_of_another_program_is_refused_and_left_as_it_is(digits, tmp_path, text):
    folder = tmp_path / "home"
    put_others(folder / "work" / "project")
    (folder / "configuration.json").write_text(text)
    before = read_all(folder)
    with pytest.raises(SystemExit, match=r"is not a folder of records: .*configuration.json.* another --out"):
        run_benchmark(digits, folder, *SMALL)
    assert read_all(folder) == before


def test_only_half_written_files_of_runs_are_cleared_and_none_behind_a_link(digits, tmp_path):
    out, elsewhere = run_once(digits, tmp_path / "out"), tmp_path / "elsewhere"
    for name in ("project", "baseline-noise0-seed0.old", "baseline-noise0-seed1/deeper"):
        put_others(out / "work" / name)
    put_others(elsewhere)
    (elsewhere / ".state.pt.123").write_text("of another program")
    for name in ("project/link", "attention-first-noise0-seed3", "linked"):
        (out / "work" / name).symlink_to(elsewhere)
    run = out / "work" / "baseline-noise0-seed0"
    (run / ".record.json.7").symlink_to(elsewhere / ".env")
    before = read_all(tmp_path)
    (run / ".state.pt.123").write_bytes(b"half")
    run_once(digits, out)
    after = read_all(tmp_path)
    assert {path for path in before if path not in after} == set()
    assert run / ".state.pt.123" not in after
    assert all(after[path] == text for path, text in before.items() if elsewhere in path.parents)


def test_nothing_is_cleared_where_all_runs_are_behind_a_link(digits, tmp_path):
    out = run_once(digits, tmp_path / "out")
    (out / "work").rename(tmp_path / "elsewhere")
    (out / "work").symlink_to(tmp_path / "elsewhere")
    left = [tmp_path / "elsewhere" / "baseline-noise0-seed0" / name for name in (".state.pt.1", "state.pt")]
    for path in left:
        path.write_text("of another program")
    run_once(digits, out)
    assert all(path.exists() for path in left)
