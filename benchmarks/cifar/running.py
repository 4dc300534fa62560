"""Making many runs: by turns on one GPU, or in processes side by side on a CPU."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch

from batch_sampler_attn.device import DeviceLoop, take_turns
from benchmarks.cifar.plan import Queue, needs
from benchmarks.cifar.training import DeviceImages, Experiment, Trainer
from benchmarks.errors import BenchmarkError
from benchmarks.schema import RunName


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


def make_runs(experiment: Experiment, waiting: Queue, report: Report) -> None:
    """Make all runs that are waiting; ``report`` is told of every epoch.

    Raises:
        BenchmarkError: If one of them cannot be made. The epochs of all of them up to then are kept.
    """
    prepare_process(experiment)
    if experiment.device.type == "cpu" and experiment.at_once > 1:
        _make_in_processes(experiment, waiting, report)
    else:
        make_by_turns(experiment, waiting, report)


def prepare_process(experiment: Experiment) -> None:
    """Settings that PyTorch keeps for a whole process."""
    torch.set_num_threads(experiment.threads)
    if experiment.configuration.deterministic:
        # Only cuBLAS reads this, and only when it is set up.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def make_by_turns(experiment: Experiment, waiting: Queue, report: Report) -> None:
    """Make runs in this process, as many at once as is asked for."""
    images = DeviceImages(experiment)
    trainers: dict[DeviceLoop, Trainer] = {}
    loops: list[DeviceLoop] = []

    def fill() -> None:
        while len(loops) < experiment.at_once and (run := waiting.take()) is not None:
            trainer = Trainer(run, experiment, images)
            if not finish(trainer):
                trainers[trainer.loop] = trainer
                loops.append(trainer.loop)

    def finish(trainer: Trainer) -> bool:
        trainer.end_short_epoch()
        if trainer.is_finished:
            trainer.finish()
            waiting.finish(trainer.run)
        report(_step(trainer))
        return trainer.is_finished

    fill()
    for loop, summary in take_turns(loops):
        trainer = trainers[loop]
        trainer.end_epoch(summary)
        if finish(trainer):
            loops.remove(loop)
            del trainers[loop]
            fill()


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


def _make_in_processes(experiment: Experiment, waiting: Queue, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        steps: queue.Queue[Step] = manager.Queue()
        pool = ProcessPoolExecutor(experiment.at_once, context, _begin_worker, (experiment, steps))
        running: dict[Future[None], RunName] = {}
        try:
            while True:
                while len(running) < experiment.at_once and (run := waiting.take()) is not None:
                    running[pool.submit(_make_one, run)] = run
                if not running:
                    return
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                _report_all(steps, report)
                for future in done:
                    future.result()
                    waiting.finish(running.pop(future))
        except BrokenProcessPool as error:
            raise BenchmarkError(
                "a process that was training ended without a word, as when memory runs out. Give the same command "
                "again to go on, with a smaller --at-once"
            ) from error
        finally:
            _report_all(steps, report)
            for process in multiprocessing.active_children():
                if process.pid != manager._process.pid:  # type: ignore[attr-defined]
                    process.terminate()
            pool.shutdown(cancel_futures=True)


def _report_all(steps: queue.Queue[Step], report: Report) -> None:
    while True:
        try:
            report(steps.get_nowait())
        except queue.Empty:
            return


_worker: dict[str, Any] = {}


def _begin_worker(experiment: Experiment, steps: queue.Queue[Step]) -> None:
    # An interrupt is the parent's to handle, and without a parent there is no one to make runs for.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process(experiment)
    _worker.update(experiment=experiment, steps=steps)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _make_one(run: RunName) -> None:
    make_by_turns(_worker["experiment"], Queue([run], finished=needs(run)), _worker["steps"].put)
