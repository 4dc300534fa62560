"""Making many runs: by turns on one GPU, or in processes side by side on a CPU."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch

from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.summary import EpochSummary
from benchmarks.cifar.evaluation import tf32_of
from benchmarks.cifar.plan import Queue, baseline_of, needs
from benchmarks.cifar.training import DeviceImages, Setup, Trainer
from benchmarks.errors import BenchmarkError
from benchmarks.precision import tf32
from benchmarks.schema import RunName

# Enough to keep the device busy while other runs have their turn, few enough to keep turns short.
_UPDATES_A_TURN = 64


class Step(NamedTuple):
    """How far a run is.

    Attributes:
        run: Which one.
        epoch: Epochs done.
        accuracy: On the test set after the last of them; None before the first.
        repeats: In the last of them.
        is_finished: Whether it was the run's last.
    """

    run: RunName
    epoch: int
    accuracy: float | None
    repeats: int
    is_finished: bool


Report = Callable[[Step], None]


def make_runs(setup: Setup, waiting: Queue, report: Report) -> None:
    """Make all runs that are waiting; ``report`` is told of every epoch.

    Raises:
        BenchmarkError: If one of them cannot be made. The epochs of all of them up to the states kept last are safe.
    """
    prepare_process(setup)
    if setup.device.type == "cpu" and setup.options.at_once > 1:
        _make_in_processes(setup, waiting, report)
        return
    try:
        make_by_turns(setup, waiting, report, lambda run: _finish(run, setup, waiting))
    except torch.OutOfMemoryError as error:
        raise BenchmarkError(
            f"the device's memory does not suffice: {str(error).splitlines()[0]} Give the same command again to go on, "
            "with a smaller --at-once"
        ) from error


def prepare_process(setup: Setup) -> None:
    """Settings that PyTorch keeps for a whole process."""
    torch.set_num_threads(setup.options.threads)
    # Only cuBLAS reads this, and only when it is set up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(setup.configuration.deterministic, warn_only=True)
    # Memory is never read here before it is written, and filling it costs a kernel for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_by_turns(setup: Setup, waiting: Queue, report: Report, finish: Callable[[RunName], None]) -> None:
    """Make runs in this process, as many at once as is asked for; ``finish`` is told of those that are recorded."""
    images = DeviceImages(setup)
    trainers: dict[DeviceLoop, Trainer] = {}
    loops: list[DeviceLoop] = []

    def fill() -> None:
        while len(loops) < setup.options.at_once and (run := waiting.take()) is not None:
            trainer = Trainer(run, setup, images)
            if not settle(trainer):
                trainers[trainer.loop] = trainer
                loops.append(trainer.loop)

    def settle(trainer: Trainer) -> bool:
        trainer.end_short_epoch()
        if trainer.is_finished:
            trainer.finish()
            finish(trainer.run)
        report(_step(trainer))
        return trainer.is_finished

    with tf32(tf32_of(setup.configuration.precision)):
        fill()
        for loop, summary in _by_turns(loops):
            trainer = trainers[loop]
            trainer.end_epoch(summary)
            is_finished = settle(trainer)
            if is_finished:
                loops.remove(loop)
                del trainers[loop]
            # Nothing may hold on to a loop that is done when the next one needs its memory.
            del loop, trainer
            if is_finished:
                gc.collect()
                fill()


def _by_turns(loops: list[DeviceLoop]) -> Iterator[tuple[DeviceLoop, EpochSummary]]:
    """Train loops by turns, and yield each epoch as it ends; the caller takes loops out and puts others in."""
    while loops:
        # All of them have work before one is waited for.
        due = [loop for loop in loops if loop.enqueue(_UPDATES_A_TURN) < _UPDATES_A_TURN]
        ended = deque((loop, summary) for loop in due if (summary := loop.synchronize()) is not None)
        due.clear()
        while ended:
            yield ended.popleft()


def _finish(run: RunName, setup: Setup, waiting: Queue) -> None:
    """A run is recorded; let go of the states that nothing goes on from any more."""
    waiting.finish(run)
    for each in {run, baseline_of(run), *needs(run)}:
        if not waiting.wants(each):
            setup.storage.forget_state(each)


def _step(trainer: Trainer) -> Step:
    last = trainer.epochs[-1] if trainer.epochs else None
    return Step(
        trainer.run,
        len(trainer.epochs),
        None if last is None else last.accuracy,
        0 if last is None else last.repeats,
        trainer.is_finished,
    )


# In processes ----------------------------------------------------------------------------------------------


def _make_in_processes(setup: Setup, waiting: Queue, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    steps: multiprocessing.SimpleQueue[Step] = context.SimpleQueue()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(setup.options.at_once, context, _begin_worker, (setup, steps))
    running: dict[Future[None], RunName] = {}
    try:
        while True:
            while len(running) < setup.options.at_once and (run := waiting.take()) is not None:
                running[pool.submit(_make_one, run)] = run
            if not running:
                return
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            while not steps.empty():
                report(steps.get())
            for future in done:
                future.result()
                _finish(running.pop(future), setup, waiting)
    except BrokenProcessPool as error:
        raise BenchmarkError(
            "a process that was training ended without a word, as it does when memory runs out. Give the same command "
            "again to go on, with a smaller --at-once"
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _begin_worker(setup: Setup, steps: multiprocessing.SimpleQueue[Step]) -> None:
    # An interrupt is the parent's to handle, and without a parent there is no one to make runs for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # By this signal the parent ends it, also where the command was started to ignore it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process(setup)
    _worker.update(setup=setup, steps=steps)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _make_one(run: RunName) -> None:
    waiting = Queue([run], finished=needs(run))
    make_by_turns(_worker["setup"], waiting, _worker["steps"].put, waiting.finish)
