"""Making many runs on an executor: in this process, in processes side by side, or on other machines.

``--executor`` names it; without it, one run at a time is made in this process, and more ``--at-once`` in processes:

    processes                   of this machine
    submitit                    jobs of Slurm; ``submitit:local`` for submitit's own executor on this machine
    dask:tcp://HOST:8786        the workers of an existing cluster
    PACKAGE.MODULE:CALLABLE     any other: the callable returns an object whose ``submit(function, *args)`` gives
                                futures with ``done()``, ``result()`` and ``cancel()``

``--executor-options KEY=VALUE ...`` are arguments of submitit's ``update_parameters`` (``timeout_min=600
slurm_partition=gpu``), of Dask's ``Client`` or of the callable.

Workers see the folder of records and the data at the same paths, on a file system whose locks hold across machines, and
have the root of the repository on their Python path. A Slurm job starts in the current directory, so start the command
at the root; Dask: ``PYTHONPATH=. dask worker tcp://HOST:8786 --nthreads 1``, once for each run at once.

A run whose worker is lost is handed out again and resumes from its state. Its lock keeps two workers from making it at
the same time, such as one that a killed command left behind.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.text import Text

from batch_sampler_attn.errors import BatchAttentionError
from benchmarks.errors import BenchmarkError, PlanError, RunIsBeingMade, Stopped
from benchmarks.schema import RunName
from benchmarks.storage import stop_runs
from benchmarks.training import Job, make_run

_POLL_SECONDS = 0.1
_LOCKED_RETRY_SECONDS = 5.0
_MOST_LOSSES = 3

Executor = Any  # has submit(function, *arguments)
Pending = Any  # has done(), result() and cancel()
Needs = Callable[[RunName], Sequence[RunName]]
HandedOut = list[tuple[Pending, Job]]

# A worker may have several threads, as Dask's do, and PyTorch has one set of settings and random numbers a process.
_one_run = threading.Lock()


def attempt(job: Job) -> tuple[Literal["finished", "locked", "refused", "failed"], str]:
    """Make a run on this worker. Errors are returned: not every executor hands them back as they were raised."""
    with _one_run:
        try:
            make_run(job)
        except RunIsBeingMade as error:
            return "locked", str(error)
        except (BenchmarkError, BatchAttentionError, Stopped) as error:
            return "refused", str(error)
        except Exception:
            return "failed", traceback.format_exc()
    return "finished", ""


def run_all(
    jobs: Sequence[Job],
    needs: Needs,
    executor: str | None,
    at_once: int,
    console: Console,
    executor_options: Sequence[str] = (),
) -> None:
    """Make these runs of a folder, in this order but for those that need others, which come first.

    Needed runs that are not among the jobs are finished. At Ctrl-C, TERM and HUP (then it raises SystemExit), and
    errors, the runs are told to stop, whatever the executor.
    """
    if not jobs:
        return
    folder, waiting, handed_out = jobs[0].folder, list(jobs), HandedOut()
    not_before: dict[RunName, float] = {}
    losses: Counter[tuple[RunName, int]] = Counter()
    with ExitStack() as stack:
        stack.enter_context(_exit_at_signals())
        opened = _open(executor, _parse(executor_options), at_once, folder, stack)
        stack.enter_context(_progress(jobs, waiting, handed_out, console))
        try:
            while waiting or handed_out:
                unfinished = {job.run for job in waiting} | {job.run for _, job in handed_out}
                now = time.monotonic()
                ready = [j for j in waiting if unfinished.isdisjoint(needs(j.run)) and not_before.get(j.run, 0) <= now]
                for job in ready[: at_once - len(handed_out)]:
                    handed_out.append((opened.submit(attempt, job), job))
                    waiting.remove(job)
                for pending, job in [(pending, job) for pending, job in handed_out if pending.done()]:
                    end = _end_of(pending, job, losses)
                    handed_out.remove((pending, job))
                    if end != "finished":
                        waiting.insert(0, job)
                    elif not console.is_terminal:
                        console.print(_describe(job), highlight=False)
                    if end == "locked":
                        console.print(f"another process makes {job.run}; waiting for it", highlight=False)
                        not_before[job.run] = time.monotonic() + _LOCKED_RETRY_SECONDS
                time.sleep(_POLL_SECONDS)
        except BaseException as error:
            with suppress(BenchmarkError):
                stop_runs(folder, type(error).__name__)
            for pending, _ in handed_out:
                pending.cancel()
            raise


def _end_of(pending: Pending, job: Job, losses: Counter[tuple[RunName, int]]) -> Literal["finished", "locked", "lost"]:
    try:
        end, message = pending.result()
    except (Exception, CancelledError) as error:
        # A job may be preempted any number of times, as long as it makes progress in between.
        stage = job.run, len(_recorded(job))
        # Dask reports a killed worker only after it has tried several.
        losses[stage] += _MOST_LOSSES if type(error).__name__ == "KilledWorker" else 1
        if losses[stage] < _MOST_LOSSES:
            return "lost"
        raise BenchmarkError(
            f"the worker of {job.run} was lost {_MOST_LOSSES} times in a row, as it is when memory runs out; give the "
            f"same command again to resume, with a smaller --at-once. Last error: {type(error).__name__}: {error}"
        ) from error
    if end == "failed":
        raise RuntimeError(f"{job.run} failed on its worker:\n{message}")
    if end == "refused":
        raise BenchmarkError(message)
    return "locked" if end == "locked" else "finished"


@contextmanager
def _exit_at_signals() -> Iterator[None]:
    """TERM, and HUP of a closed terminal, end the command as Ctrl-C does; a second one changes nothing."""

    def leave(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    # One that the command was started to ignore, as HUP is under nohup, stays ignored.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _parse(options: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in options:
        key, equals, values[key] = option.partition("=")
        if not equals:
            raise PlanError(f"--executor-options has {option!r}; each is KEY=VALUE, such as timeout_min=600")
        with suppress(ValueError):
            values[key] = json.loads(values[key])
    return values


def _open(name: str | None, options: dict[str, Any], at_once: int, folder: Path, stack: ExitStack) -> Executor:
    kind, _, where = (name or ("processes" if at_once > 1 else "here")).partition(":")
    try:
        if kind == "here":
            return SimpleNamespace(submit=_call_later)
        if kind == "processes":
            return stack.enter_context(closing(_Processes(**options)))
        if kind == "submitit":
            executor = importlib.import_module("submitit").AutoExecutor(folder / "submitit", cluster=where or "slurm")
            # Submitit's own limit is a few minutes.
            executor.update_parameters(**{"name": "benchmarks", "timeout_min": 24 * 60} | options)
            return executor
        if kind == "dask":
            client = stack.enter_context(importlib.import_module("distributed").Client(where or None, **options))
            # Dask makes a pure call with the same arguments once, and a run may be handed out again.
            return SimpleNamespace(submit=partial(client.submit, pure=False))
        executor = getattr(importlib.import_module(kind), where)(**options)
        return stack.enter_context(executor) if hasattr(executor, "__enter__") else executor
    except Exception as error:
        raise PlanError(
            f"--executor {name} does not work: {type(error).__name__}: {error}. Give processes, submitit, dask:tcp://"
            "HOST:PORT or PACKAGE.MODULE:CALLABLE; pip install -e '.[submitit,dask]' brings what these need"
        ) from error


def _call_later(function: Callable[..., Any], *arguments: Any) -> Pending:
    """A call that this process makes when its result is asked for."""
    return SimpleNamespace(done=lambda: True, result=partial(function, *arguments), cancel=lambda: None)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the parent ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


class _Processes:
    """A new process for each run: one that dies takes no other with it."""

    def __init__(self) -> None:
        self._others = set(multiprocessing.active_children())
        self._context = multiprocessing.get_context("forkserver")
        # Importing PyTorch takes each process that begins without it some seconds.
        self._context.set_forkserver_preload(["benchmarks.cifar", "benchmarks.selection.training"])

    def close(self) -> None:
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with_one = ProcessPoolExecutor(1, self._context, _begin_worker)
        future = with_one.submit(function, *arguments)
        with_one.shutdown(wait=False)
        return future


def _progress(jobs: Sequence[Job], waiting: list[Job], handed_out: HandedOut, console: Console) -> Live:
    """A line on a terminal for each run that is handed out, and one for all."""
    start = time.monotonic()

    def lines() -> Text:
        running = [_describe(job) for _, job in list(handed_out)]
        finished, elapsed = len(jobs) - len(waiting) - len(running), timedelta(seconds=int(time.monotonic() - start))
        return Text("\n".join([*running, f"{finished} of {len(jobs)} runs, {elapsed}"]))

    return Live(get_renderable=lines, console=console, refresh_per_second=1, transient=True)


def _recorded(job: Job) -> list[dict[str, Any]]:
    """The epochs that a run has recorded up to now."""
    with suppress(OSError, ValueError):
        return list(json.loads((job.folder / f"work/{job.run}/record.json").read_bytes())["epochs"])
    return []


def _describe(job: Job) -> str:
    epochs = _recorded(job)
    last = f", {epochs[-1]['accuracy']:.1%} accuracy, {epochs[-1]['repeats']} repeats" if epochs else ""
    return f"{job.run}: {len(epochs)} epochs{last}"
