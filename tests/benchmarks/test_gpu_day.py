"""The command for the day that there is a GPU, run on the CPU: it goes on, keeps to its time, says how it went."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.errors import StorageError
from benchmarks.gpu_day import results, steps
from benchmarks.gpu_day.measuring import append_rows, missing, read_rows
from benchmarks.gpu_day.plan import DRY, FULL, Item
from benchmarks.gpu_day.results import MOST_FILES, claim, hand_over, take_up, write_table
from benchmarks.gpu_day.steps import Day, Ended


def command(*options):
    return [sys.executable, "-m", "benchmarks.gpu_day", *map(str, options)]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder of a dry run, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu_day")
    options = ("--out", folder / "out", "--work", folder / "work", "--dry-run")
    done = subprocess.run(command(*options), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_a_dry_run_does_all_of_it_and_prints_the_table_last(dry):
    folder, printed = dry
    table = (folder / "out" / "table.txt").read_text()
    assert printed.strip().endswith(table.strip())
    assert "skipped" in table
    assert "exit status 0" in table
    for words in (
        "eager, loss.item()",
        "captured against eager",
        "2 at once",
        "attention",
        "baseline",
        "random",
        "longer",
    ):
        assert words in table
    assert "still to be made" not in table


def test_results_are_files_that_travel(dry):
    files = list((dry[0] / "out").iterdir())
    assert len(files) <= MOST_FILES
    assert {path.name for path in files} >= {"tests.txt", "rows.jsonl", "runs.jsonl", "epochs.jsonl", "table.txt"}
    runs = [json.loads(line) for line in (dry[0] / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == 4
    assert all(run["is_finished"] for run in runs)


def test_no_more_files_are_handed_over_than_travel():
    assert len({*results.FILES.values(), results.TABLE}) <= MOST_FILES


def test_measurements_and_tests_that_are_made_are_not_made_again(dry, tmp_path):
    """From the results alone, as on another machine."""
    folder, _ = dry
    take_up(folder / "out", tmp_path / "work")
    day = Day(DRY, tmp_path / "work", 600, is_dry=True)
    commands = []
    (tmp_path / "work" / "records.log").write_text("")
    day.run = lambda command, log, **options: commands.append(command) or Ended(0, "")
    day.test()
    day.measure()
    assert commands == []
    day.make_records("nothing", tmp_path)
    ((name, *options),) = commands
    assert name == "benchmarks.cifar"
    assert options[:2] == ["--device", "cpu"]
    assert options[-2:] == ["--out", str(tmp_path / "work" / "records")]
    assert (tmp_path / "work" / "records" / "runs.jsonl").read_bytes() == (folder / "out" / "runs.jsonl").read_bytes()


def test_what_is_there_is_not_replaced_by_earlier_results(dry, tmp_path):
    (tmp_path / "tests.txt").write_text("2 passed\n\nexit status 0\n")
    take_up(dry[0] / "out", tmp_path)
    assert (tmp_path / "tests.txt").read_text().startswith("2 passed")


def test_a_measurement_that_breaks_its_process_is_recorded_and_the_others_are_made(tmp_path):
    day, first = Day(FULL, tmp_path, 600, is_dry=False), next(FULL.items())

    def run(command, log, **options):
        record = tmp_path / "rows.jsonl"
        for item in missing(FULL.items(), read_rows(record)):
            if item == first:
                return Ended(1, "Traceback\nRuntimeError: CUDA error: an illegal memory access\n")
            append_rows(record, item, [{"kind": "together", "model": item.model, "runs": 1, "milliseconds": []}], {})
        return Ended(0, "")

    day.run = run
    day.measure()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["why"] for row in rows if row["kind"] == "failed"] == [
        "RuntimeError: CUDA error: an illegal memory access"
    ]
    assert not missing(FULL.items(), rows)
    assert f"{first.key} failed: RuntimeError" in write_table(FULL, tmp_path, tmp_path, []).replace("\n", " ")


def test_a_command_is_ended_in_order_when_the_time_is_over(tmp_path, monkeypatch):
    script = (
        "import signal,sys,time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('recorded')))\ntime.sleep(60)"
    )
    (tmp_path / "slow_one.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(steps, "GRACE_SECONDS", 5.0)
    day, begun = Day(DRY, tmp_path / "work", 8, is_dry=True), time.monotonic()
    ended = day.run(("slow_one",), tmp_path / "log")
    assert ended.status is None
    assert "recorded" in ended.output
    assert time.monotonic() - begun < 20


def test_nothing_is_begun_when_there_is_no_time_left(tmp_path):
    day = Day(DRY, tmp_path / "work", steps.GRACE_SECONDS, is_dry=True)
    day.run = lambda command, log, **options: pytest.fail("something was begun")
    day.test()
    day.measure()
    day.make_records("nothing", tmp_path)
    text = write_table(DRY, tmp_path / "work", tmp_path, [])
    assert "have not come to their end yet" in text
    assert "3 measurements are still to be made" in text
    assert "no epoch" in text


def test_tests_whose_time_was_over_are_run_again(tmp_path):
    day = Day(DRY, tmp_path, 600, is_dry=True)
    day.run = lambda command, log, **options: Ended(None, "half")
    day.test()
    assert not (tmp_path / "tests.txt").exists()
    day.run = lambda command, log, **options: Ended(1, "1 failed, 2 passed\n")
    day.test()
    assert "1 failed, 2 passed, exit status 1" in write_table(DRY, tmp_path, tmp_path, [])


def test_a_file_that_is_too_large_to_travel_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST_BYTES", 10)
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    (work / "tests.txt").write_text("12 passed\n\nexit status 0\n")
    too_large = hand_over(work, out)
    assert too_large == ["tests.txt"]
    assert not (out / "tests.txt").exists()
    assert "tests.txt is larger than" in write_table(DRY, work, out, too_large)


def test_the_most_telling_measurement_comes_first_and_each_has_a_key_of_its_own():
    items = list(FULL.items())
    assert items[0].setting == {"tf32": True, "channels_last": True}
    assert items[-1].kind == "equality"
    assert len({item.key for item in items}) == len(items) == 9


def test_a_line_that_was_cut_off_is_none(tmp_path):
    record, item = tmp_path / "rows.jsonl", Item("equality", "resnet34", 20)
    append_rows(record, item, [{"kind": "equality"}], {})
    with record.open("a") as file:
        file.write('{"item": "toge')
    assert [row["item"] for row in read_rows(record)] == [item.key]


# What hangs, breaks, or is killed ------------------------------------------------------------------------------------


def write_module(folder, name, text, monkeypatch):
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.slow
def test_a_measurement_that_hangs_is_recorded_and_the_others_are_made(tmp_path, monkeypatch):
    """Of its own time: that of all together is longer."""
    hanging = list(FULL.items())[5].key
    text = f"""
import json, sys, time
path = sys.argv[sys.argv.index("--record") + 1]
try:
    made = {{json.loads(line)["item"] for line in open(path)}}
except FileNotFoundError:
    made = set()
for key in {[item.key for item in FULL.items()]}:
    if key not in made:
        time.sleep(1000 if key == {hanging!r} else 0.5)
        row = {{"item": key, "kind": "together", "model": "resnet34", "runs": 1, "milliseconds": []}}
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\\n")
"""
    write_module(tmp_path, "one_that_hangs", text, monkeypatch)
    day = Day(FULL, tmp_path / "work", 600, is_dry=False)
    monkeypatch.setattr(day, "_step_seconds", 15.0)
    run = day.run
    monkeypatch.setattr(
        day, "run", lambda command, log, **options: run(("one_that_hangs", *command[1:]), log, **options)
    )
    day.measure()
    rows = read_rows(tmp_path / "work" / "rows.jsonl")
    assert [(row["item"], row["why"]) for row in rows if row["kind"] == "failed"] == [
        (hanging, "no end in its time, after 15 s")
    ]
    assert not missing(FULL.items(), rows)


@pytest.mark.slow
def test_tests_that_hang_are_told_of_and_leave_the_rest_its_time(tmp_path, monkeypatch):
    path = tmp_path / "test_hanging.py"
    path.write_text("import time\n\n\ndef test_first():\n    print('began')\n    time.sleep(1000)\n")
    day = Day(dataclasses.replace(DRY, tests=(str(path),)), tmp_path / "work", 600, is_dry=True)
    monkeypatch.setattr(day, "_step_seconds", 12.0)
    day.test()
    result = (tmp_path / "work" / "tests.txt").read_text()
    assert result.endswith("no end in its time\n")
    assert day.seconds_left > 400
    assert "no end in its time" in write_table(DRY, tmp_path / "work", tmp_path, [])


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_so):
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes as Linux shows them")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_killed_has_handed_over_what_was_there_and_leaves_nothing_running(tmp_path, number):
    out, work, tests = (str(tmp_path / name) for name in ("out", "work", "test_slow.py"))
    script = (
        "import dataclasses\nfrom pathlib import Path\nfrom benchmarks.gpu_day import __main__ as command, steps\n"
        f"steps.SAVE_SECONDS = 0.5\ncommand.DRY = dataclasses.replace(command.DRY, tests=({tests!r},))\n"
        f"command.run(Path({out!r}), dry_run=True, work=Path({work!r}))\n"
    )
    (tmp_path / "test_slow.py").write_text(
        f"import os, time\n\n\ndef test_slow():\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(1000)\n"
    )
    (tmp_path / "work").mkdir()
    append_rows(tmp_path / "work" / "rows.jsonl", next(DRY.items()), [{"kind": "failed", "why": "for a test"}], {})
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
            child = int((tmp_path / "pid").read_text())
            wait_until((tmp_path / "out" / "table.txt").exists)
            process.send_signal(number)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "for a test" in table
    assert (tmp_path / "out" / "rows.jsonl").exists()
    if number == signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert printed.strip().endswith(table.strip())
    wait_until(lambda: not is_running(child))


def test_a_step_that_raises_does_not_take_the_others_along(tmp_path, monkeypatch, capsys):
    from benchmarks.gpu_day import __main__ as command

    made = []

    def broken(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(Day, "test", broken)
    monkeypatch.setattr(Day, "measure", broken)
    monkeypatch.setattr(Day, "make_records", lambda *args: made.append(args))
    before = signal.getsignal(signal.SIGTERM)
    try:
        command.run(tmp_path / "out", dry_run=True, work=tmp_path / "work")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(made) == 1
    said = capsys.readouterr()
    assert said.err.count("\nOSError: no space left on device") == 2
    assert said.out.strip().endswith((tmp_path / "out" / "table.txt").read_text().strip())


def test_records_that_fail_are_told_of(tmp_path):
    day = Day(DRY, tmp_path / "work", 600, is_dry=True)

    def run(command, log, **options):
        log.write_text("Traceback\nerror: no data in data/cifar10\n")
        return Ended(1, "")

    day.run = run
    day.make_records("nothing", tmp_path)
    table = write_table(DRY, tmp_path / "work", tmp_path, [])
    assert "records of ResNet34: error: no data in data/cifar10, exit status 1" in table
    day.run = lambda command, log, **options: log.write_text("all done\n") and Ended(0, "")
    day.make_records("nothing", tmp_path)
    assert "records of ResNet34" not in write_table(DRY, tmp_path / "work", tmp_path, [])


def test_a_line_that_was_cut_off_takes_no_other_along_and_the_table_is_made(tmp_path):
    record, items = tmp_path / "rows.jsonl", list(FULL.items())
    lines = [
        {"kind": "update", "model": "resnet34", "row": row, "setting": items[0].setting, "milliseconds": [1.0]}
        for row in ("eager, loss.item()", "captured, read")
    ]
    record.write_text('{"item": "toge')
    append_rows(record, items[0], lines, {})
    assert len(read_rows(record)) == 2
    record.write_text("\n".join(record.read_text().splitlines()[2:]) + "\n")
    (tmp_path / "tests.txt").write_text("1 passed")
    table = write_table(FULL, tmp_path, tmp_path, [])
    assert "captured, read" in table
    assert "GPU tests: 1 passed" in table


@pytest.mark.parametrize("name", ["table.txt", "tests.txt", "configuration.json", "runs.jsonl"])
def test_a_folder_of_another_program_gets_no_results(tmp_path, name):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    (out / name).write_text("of another program")
    with pytest.raises(StorageError, match=f"has {name} but no table.txt of this command.*another --out"):
        claim(out, work)
    assert [path.read_text() for path in out.iterdir()] == ["of another program"]
    assert not work.exists()


def test_a_folder_of_another_program_is_not_worked_in(tmp_path):
    (tmp_path / "tests.log").write_text("of another program")
    with pytest.raises(StorageError, match=r"has tests.log .*another --work"):
        claim(tmp_path / "out", tmp_path)


def test_the_folders_of_a_day_are_known_again(dry):
    claim(dry[0] / "out", dry[0] / "work")


def test_without_a_gpu_the_command_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(command("--out", tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--dry-run" in done.stderr
