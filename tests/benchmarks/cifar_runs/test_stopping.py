"""Commands that end before they are done, by a signal or for want of room."""

import multiprocessing
import os
import random
import re
import signal
import time

import pytest

from benchmarks.cifar import storage
from benchmarks.cifar.stopping import Terminated, term_raises
from benchmarks.cifar.storage import Storage
from benchmarks.reading import read_configuration, read_records
from tests.benchmarks.cifar_helpers import SMALL, read_lines, records_without_times, run_benchmark, run_once
from tests.benchmarks.cifar_runs.processes import FORK_SERVER, run, run_in_group, run_with_small_files


def _wait_for_records(folder, count):
    deadline = time.monotonic() + 120
    while len(list(folder.glob("work/*/record.json"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)


# Enough epochs that a quick machine is not done before the signal comes.
TWELVE = ["--epochs", "8", "--seeds", *map(str, range(12)), "--arms", "baseline"]


def _end_early(process, folder, end, number, *, records):
    """Start the command, and signal it or its group as soon as there are so many records."""
    process.start()
    _wait_for_records(folder, records)
    end(process.pid, number)
    process.join(60)
    assert process.exitcode == 143
    there = read_records(folder)
    assert len(there.runs) < 12
    assert any(run.is_finished for run in there.runs.values())
    return there


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_records_what_is_finished_and_goes_on(digits, tmp_path, number):
    folder = tmp_path / "out"
    process = FORK_SERVER.Process(target=run, args=(digits, folder, TWELVE))
    there = _end_early(process, folder, os.kill, number, records=3)
    with Storage(folder, there.configuration).opened():
        pass
    run_benchmark(digits, folder, *TWELVE)
    assert len(read_records(folder).runs) == 12


def test_a_terminated_command_takes_its_processes_with_it_and_goes_on_with_others(digits, tmp_path):
    """And these may all be terminated at once, as by a service manager, which signals the whole group."""
    folder = tmp_path / "out"
    options = [*TWELVE, "--at-once", "2"]
    process = FORK_SERVER.Process(target=run, args=(digits, folder, options))
    there = _end_early(process, folder, os.kill, signal.SIGTERM, records=3)
    with Storage(folder, there.configuration).opened():  # no process is left that holds it
        pass
    process = FORK_SERVER.Process(target=run_in_group, args=(digits, folder, options))
    again = _end_early(process, folder, os.killpg, signal.SIGTERM, records=len(there.runs) + 1)
    assert set(there.runs) < set(again.runs)
    run_benchmark(digits, folder, *TWELVE)
    assert len(read_records(folder).runs) == 12


def test_what_term_did_before_it_does_again():
    def end():
        with term_raises():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_so():
    """As HUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with term_raises():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_term_waits_until_the_records_are_written(digits, tmp_path, monkeypatch):
    out = run_once(digits, tmp_path / "out")
    stored = Storage(out, read_configuration(out))
    for name in ("runs.jsonl", "epochs.jsonl"):
        (out / name).unlink()
    put = storage.write_whole

    def put_and_be_terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)
        put(*arguments)

    monkeypatch.setattr(storage, "write_whole", put_and_be_terminated)
    with pytest.raises(Terminated), term_raises():
        stored.write_records()
    assert len(read_records(out).runs) == 1


def _wait_for_a_write(folder, process):
    def newest():
        return max((path.stat().st_mtime_ns for path in folder.glob("work/*/*.*")), default=0)

    before = newest()
    while process.is_alive() and newest() == before:
        time.sleep(0.002)


def test_killed_ten_times_the_records_are_those_of_an_undisturbed_run(digits, tmp_path):
    # A kill comes within an epoch of a write, so that ten of them leave most of these 72 epochs and more to be made.
    options = ["--seeds", "0", "1", "--epochs", "12", "--label-noise", "3"]
    run_benchmark(digits, tmp_path / "whole", *options)
    epochs = read_lines(tmp_path / "whole" / "epochs.jsonl")
    an_epoch = sorted(epoch["seconds"] + epoch["evaluation_seconds"] for epoch in epochs)[len(epochs) // 2]
    rng = random.Random(0)
    for _ in range(10):
        process = FORK_SERVER.Process(target=run, args=(digits, tmp_path / "killed", options))
        process.start()
        # Only then is it surely at work.
        _wait_for_a_write(tmp_path / "killed", process)
        time.sleep(rng.uniform(0, an_epoch))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    run_benchmark(digits, tmp_path / "killed", *options)
    assert records_without_times(tmp_path / "killed") == records_without_times(tmp_path / "whole")


def test_a_file_that_cannot_be_written_is_said_and_no_epoch_that_was_kept_is_lost(digits, tmp_path):
    """The kernel refuses to let a file grow, as on a full disk: a record still fits in, a state does not."""
    out = run_benchmark(digits, tmp_path / "out", *SMALL, "--arms", "baseline")
    finished = (out / "epochs.jsonl").read_bytes()
    receiver, said = multiprocessing.Pipe(duplex=False)
    options = [*SMALL, "--arms", "attention"]
    process = FORK_SERVER.Process(target=run_with_small_files, args=(digits, out, options, 100_000, said))
    process.start()
    process.join()
    assert re.search(r"attention.*state.pt cannot be written: .* the same command again", receiver.recv())
    assert (out / "epochs.jsonl").read_bytes() == finished
    run_benchmark(digits, out, *options)
    assert [len(epochs) for epochs in read_records(out).epochs.values()] == [3, 3]
    assert not list(out.rglob(".*"))
