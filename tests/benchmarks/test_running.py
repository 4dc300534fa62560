"""Runs on executors: in this process, in others, on a Dask cluster and submitit, where workers die or are stopped."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from rich.console import Console

from benchmarks import running
from benchmarks.errors import BenchmarkError, PlanError, RunIsBeingMade
from benchmarks.storage import Storage, is_stopped
from tests.benchmarks.cifar_helpers import records_without_times
from tests.benchmarks.tiny_plan import EPOCHS, Late, make, name

LATE, THREADS = "tests.benchmarks.tiny_plan:Late", "concurrent.futures:ThreadPoolExecutor"


def read_log(folder):
    """(seed, epoch, what, process) of each line."""
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [(int(seed), int(epoch), *others) for seed, epoch, *others in map(str.split, lines)]


def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    yield
    thread.join()


def are_in(folder, *lines):
    """Whether all of these lines, of a seed, an epoch and what, are in the log."""
    return {*lines} <= {line[:3] for line in read_log(folder)}


def is_free(folder, number):
    """Whether nobody makes a run."""
    with contextlib.suppress(RunIsBeingMade), Storage(folder).locked(name(number)):
        return True
    return False


def signalled(number, condition):
    """This process is signalled when a condition is true."""

    def send():
        wait_for(condition)
        os.kill(os.getpid(), number)

    return in_thread(send)


def check_made_once(folder, count):
    """Every epoch of every run was trained to its end once, and all are equal to those of one process."""
    ends = Counter((seed, epoch) for seed, epoch, what, _ in read_log(folder) if what == "ends")
    assert ends == Counter((seed, epoch) for seed in range(count) for epoch in range(1, EPOCHS + 1))
    make(folder.parent / "whole", count)
    assert records_without_times(folder) == records_without_times(folder.parent / "whole")


@pytest.fixture(scope="module")
def dask():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield f"dask:{cluster.scheduler_address}"


@pytest.fixture(
    params=["processes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dask", "submitit:local"))]
)
def elsewhere(request):
    return request.getfixturevalue("dask") if request.param == "dask" else request.param


def test_a_run_waits_for_those_it_needs_and_no_more_than_at_once_are_handed_out(tmp_path):
    needs = {name(0): [name(4)], name(1): [name(0), name(99)]}  # 99 was finished long ago
    make(tmp_path / "runs", 5, 2, executor=LATE, needs=lambda run: needs.get(run, []))
    assert [line[0] for line in read_log(tmp_path / "runs") if line[1:3] == (EPOCHS, "ends")] == [2, 3, 4, 0, 1]
    assert Late.most == 2
    check_made_once(tmp_path / "runs", 5)


@pytest.mark.parametrize("executor", [None, THREADS])
@pytest.mark.parametrize(
    ("behaviour", "error", "said"),
    [
        ("refuse", BenchmarkError, "^there is no such thing; give another$"),
        ("fail", RuntimeError, "seed1.*ZeroDivision"),
    ],
)
def test_an_error_of_a_run_ends_the_command_and_tells_the_others_to_stop(tmp_path, behaviour, error, said, executor):
    with pytest.raises(error, match=re.compile(said, re.DOTALL)):
        make(tmp_path / "runs", 3, behaviours=["", behaviour, ""], executor=executor)
    assert is_stopped(tmp_path / "runs")
    make(tmp_path / "runs", 3)
    check_made_once(tmp_path / "runs", 3)


def test_a_run_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_LOCKED_RETRY_SECONDS", 0.2)
    folder, console, is_held = tmp_path / "runs", Console(file=io.StringIO(), width=200), threading.Event()
    make(folder, 0)

    def hold():
        with Storage(folder).locked(name(0)):
            is_held.set()
            wait_for(lambda: "another process makes tiny-plain-seed0; waiting" in console.file.getvalue())
            wait_for(lambda: len(read_log(folder)) == 2 * EPOCHS)

    with in_thread(hold):
        is_held.wait()
        make(folder, 2, console=console)
    check_made_once(folder, 2)


@pytest.mark.parametrize("how", ["once", "each"])
def test_a_lost_run_resumes_as_often_as_it_makes_progress(tmp_path, how):
    make(tmp_path / "runs", 2, behaviours=[f"lose {how}"], executor=LATE)
    check_made_once(tmp_path / "runs", 2)


def test_a_run_that_is_lost_three_times_at_the_same_epoch_is_given_up(tmp_path):
    with pytest.raises(BenchmarkError, match=r"seed0 was lost 3 times .* smaller --at-once.* OSError: connection lost"):
        make(tmp_path / "runs", 1, behaviours=["lose always"], executor=LATE)
    assert [epoch for _, epoch, what, _ in read_log(tmp_path / "runs") if what == "begins"] == [1, 2, 3, 3, 3]


def test_an_executor_takes_options_and_its_threads_make_one_run_at_a_time(tmp_path):
    options = ["max_workers=2", "thread_name_prefix=maker"]
    make(tmp_path / "runs", 2, 2, behaviours=["pause"], executor=THREADS, options=options)
    seeds = [seed for seed, *_ in read_log(tmp_path / "runs")]
    assert seeds == sorted(seeds)
    check_made_once(tmp_path / "runs", 2)


@pytest.mark.parametrize(
    ("executor", "options", "said"),
    [
        ("proceses", [], "--executor proceses does not work: .* Give processes, submitit"),
        ("json:nothing", [], "has no attribute 'nothing'"),
        ("processes", ["timeout_min=3"], "unexpected keyword argument 'timeout_min'"),
        ("submitit:local", ["timeout_min"], "'timeout_min'; each is KEY=VALUE"),
    ],
)
def test_an_executor_that_does_not_work_is_refused(tmp_path, executor, options, said):
    with pytest.raises(PlanError, match=said):
        make(tmp_path / "runs", 1, executor=executor, options=options)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown(tmp_path, is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    make(tmp_path / "runs", 2, behaviours=["pause", ""], console=console)
    shown = (
        "2 epochs, .*% accuracy, 0 repeats.*0 of 2 runs" if is_terminal else "seed0: 4 epochs, .*\n.*seed1: 4 epochs"
    )
    assert re.search(shown, console.file.getvalue(), re.DOTALL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("executor", [None, THREADS])
def test_a_signal_ends_the_command_and_the_same_command_resumes(tmp_path, number, executor):
    ends = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
    with pytest.raises(ends) as ended, signalled(number, lambda: are_in(tmp_path / "runs", (0, 3, "begins"))):
        make(tmp_path / "runs", 2, behaviours=["wait"], executor=executor)
    assert number == signal.SIGINT or ended.value.code == 128 + number
    assert is_stopped(tmp_path / "runs")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    make(tmp_path / "runs", 2)
    check_made_once(tmp_path / "runs", 2)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    """As HUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        make(tmp_path / "runs", 1, needs=lambda run: signal.raise_signal(signal.SIGHUP) or [])
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore:Exception ignored in.*Popen")  # submitit's, of a job that is cancelled
def test_a_killed_worker_and_a_terminated_command_leave_runs_as_those_of_one_process(tmp_path, elsewhere):
    folder, behaviours = tmp_path / "runs", ["", "", "die once", "", "", "", "", "wait"]
    with pytest.raises(SystemExit), signalled(signal.SIGTERM, lambda: are_in(folder, (7, 3, "begins"), (6, 4, "ends"))):
        make(folder, 8, 2, behaviours=behaviours, executor=elsewhere)
    wait_for(lambda: is_free(folder, 7))
    if elsewhere == "processes":  # no other died with it
        processes = Counter(number for number, _ in {(number, process) for number, *_, process in read_log(folder)})
        assert processes == {**dict.fromkeys(range(8), 1), 2: 2}
    make(folder, 8)
    check_made_once(folder, 8)


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_given_up(tmp_path, elsewhere):
    with pytest.raises(BenchmarkError, match="seed0 was lost 3 times"):
        make(tmp_path / "runs", 1, behaviours=["die always"], executor=elsewhere)


@pytest.mark.slow
def test_after_a_killed_command_the_next_one_makes_nothing_twice(tmp_path, elsewhere):
    """Processes end with their parent; other workers make their runs, and the next command waits for them."""
    folder, console = tmp_path / "runs", Console(file=io.StringIO(), width=200)
    command = [sys.executable, "-m", "tests.benchmarks.tiny_plan", str(folder), "wait", elsewhere]
    with subprocess.Popen(command) as process:
        wait_for(lambda: are_in(folder, (0, 3, "begins"), (1, 3, "begins")))
        process.kill()

    def let_go():
        wait_for(lambda: "waiting for it" in console.file.getvalue())
        (folder / "go").touch()

    if elsewhere == "processes":
        wait_for(lambda: is_free(folder, 0))
    with in_thread(let_go) if elsewhere != "processes" else contextlib.nullcontext():
        make(folder, 3, console=console)
    check_made_once(folder, 3)
