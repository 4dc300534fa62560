"""The training loop of every run: an epoch of training, its evaluation, its record, its state; then the next."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from benchmarks.environment import describe_environment
from benchmarks.errors import Stopped
from benchmarks.evaluation import TF32, tf32
from benchmarks.schema import ConfusionMatrix, Epoch, Evaluated, Run, RunFile, RunName, Surroundings
from benchmarks.storage import Storage, is_stopped

# Load of a machine's own, below which it counts as idle.
_OTHER_LOAD = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to make: small and picklable. All else is in ``folder / "configuration.json"``."""

    folder: Path  # of the records, absolute
    run: RunName
    data: str  # as ``images.load_images`` takes it, a folder absolute; empty where a plan needs none
    data_dir: Path  # downloaded data, absolute
    device: str = "cpu"
    threads: int = 1  # of the CPU
    at_once: int = 1  # runs at the same time
    checkpoint_seconds: float = 0.0  # least time between states kept, at the end of an epoch
    plan: str = "benchmarks.cifar"  # the module whose ``build(job)`` returns the run's training, at its start
    starts_as: RunName | None = None  # the run whose state this one starts from, where that is kept
    keeps_state: bool = False  # whether another run starts from the end of this one


class Trained(NamedTuple):
    """An epoch of training."""

    fields: dict[str, Any]  # those of ``schema.Epoch`` that training knows: batches, updates, repeats and others
    visits: list[int] | None = None  # to each batch, where controls are made from them


class Tested(NamedTuple):
    """An evaluation."""

    fields: dict[str, Any]  # those of ``schema.Epoch`` that evaluation knows: accuracy, macro_f1 and others
    confusion: ConfusionMatrix | None = None  # None where runs do not record it


class Training(Protocol):
    """A run's training, from its start or from the state that it has loaded; a run of one epoch needs no state."""

    @property
    def is_finished(self) -> bool:
        """Whether every update has been made."""

    def train_epoch(self, check: Callable[[], None]) -> Trained:
        """Train for an epoch. ``check()`` often: it raises ``Stopped`` if the command told its runs to stop."""

    def evaluate(self) -> Tested:
        """Evaluate on test data."""

    def describe(self) -> dict[str, Any]:
        """The fields of ``schema.Run`` that depend on the plan: flipped_labels, doses."""

    def state_dict(self) -> dict[str, Any]:
        """What to resume from after an epoch, as ``torch.load(weights_only=True)`` takes it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume."""


def make_run(job: Job) -> None:
    """Make a run, from its start or from the state that was kept last; a finished run is left as it is.

    Any process on any machine that sees ``job.folder`` may call this. It raises ``RunIsBeingMade`` if another one makes
    the run, ``Stopped`` if the command told its runs to stop, and other ``BenchmarkError`` otherwise.
    """
    storage = Storage(job.folder)
    with storage.locked(job.run), _settings(job, storage):
        record = storage.read_run(job.run)
        if record is not None and record.run.is_finished:
            return
        _Run(job, storage, importlib.import_module(job.plan).build(job)).make()


class _Run:
    """Trains a run and records it."""

    def __init__(self, job: Job, storage: Storage, training: Training) -> None:
        self._job, self._storage, self._training = job, storage, training
        self._identity = {"configuration": storage.configuration.digest(), **job.run._asdict()}
        self._run = Run(**self._identity, is_finished=False, surroundings=[])
        self._epochs: list[Epoch] = []
        self._visits: list[list[int]] = []
        kept = storage.load(job.run)
        if kept is None and job.starts_as is not None:
            kept = storage.load(job.starts_as)
        if kept is not None:
            training.load_state_dict(kept[1])
            self._run, self._visits = kept[0].run, kept[0].visits
            self._epochs = [epoch.model_copy(update=self._identity) for epoch in kept[0].epochs]
        self._run = self._run.model_copy(update={**self._identity, "surroundings": self._note_surroundings()})
        self._kept = time.monotonic()

    def make(self) -> None:
        while not self._training.is_finished:
            self._check()
            start = time.monotonic()
            trained = self._training.train_epoch(self._check)
            middle = time.monotonic()
            tested = self._training.evaluate()
            end = time.monotonic()
            self._add(trained, tested, middle - start, end - middle)
            if self._training.is_finished:
                break
            is_due = end - self._kept >= self._job.checkpoint_seconds
            self._write(keeps_state=is_due)
            if is_due:
                self._kept = end
        self._write(keeps_state=self._job.keeps_state)
        if not self._job.keeps_state:
            self._storage.forget_state(self._job.run)

    def _check(self) -> None:
        if is_stopped(self._job.folder):
            raise Stopped(f"{self._job.run} was told to stop")

    def _add(self, trained: Trained, tested: Tested, seconds: float, evaluation_seconds: float) -> None:
        job = self._job
        # The CPU that a run is on may have had more to do in the last minute than the run.
        is_busy = job.device == "cpu" and os.getloadavg()[0] > job.threads + _OTHER_LOAD
        epoch = Epoch(
            **self._identity,
            **trained.fields,
            **tested.fields,
            epoch=len(self._epochs) + 1,
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            shared_device=job.at_once > 1 or is_busy,
        )
        if tested.confusion is not None:
            last = Evaluated(epoch=epoch.epoch, confusion=tested.confusion)
            is_best = epoch.accuracy > max((earlier.accuracy for earlier in self._epochs), default=-1.0)
            best = last if is_best else self._run.best
            self._run = self._run.model_copy(update={"best": best, "last": last})
        self._epochs.append(epoch)
        if trained.visits is not None:
            self._visits.append(trained.visits)

    def _write(self, *, keeps_state: bool) -> None:
        fields = {**self._training.describe(), "is_finished": self._training.is_finished}
        file = RunFile(run=self._run.model_copy(update=fields), epochs=self._epochs, visits=self._visits)
        self._storage.save(file, self._training.state_dict() if keeps_state else None)

    def _note_surroundings(self) -> list[Surroundings]:
        job, before = self._job, self._run.surroundings
        here = Surroundings(
            from_epoch=len(self._epochs) + 1,
            device=job.device,
            threads=job.threads,
            at_once=job.at_once,
            environment=describe_environment(job.device),
        )
        places = [place.model_dump(exclude={"from_epoch": True, "environment": {"date"}}) for place in (*before, here)]
        return before if places[-2:-1] == places[-1:] else [*before, here]


@contextmanager
def _settings(job: Job, storage: Storage) -> Iterator[None]:
    """PyTorch's settings of a whole process, as the run needs them; as before afterwards."""
    # Only cuBLAS reads this, and only when it is set up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # No memory is read here before it is written, and filling it costs a kernel for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(job.threads)
    # As ``use_deterministic_algorithms(..., warn_only=True)``, which imports torch's compiler, for seconds.
    torch.set_deterministic_debug_mode("warn" if getattr(storage.configuration, "deterministic", False) else "default")
    try:
        with tf32(TF32.get(getattr(storage.configuration, "precision", "default"))):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)
