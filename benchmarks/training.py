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
from torch import Tensor, nn

from benchmarks.environment import describe_environment
from benchmarks.errors import BenchmarkError, Stopped
from benchmarks.evaluation import TF32, tf32
from benchmarks.schema import ConfusionMatrix, Epoch, Evaluated, Run, RunFile, RunName, Surroundings
from benchmarks.storage import Storage, is_stopped

# Load of a machine's own, below which it counts as idle.
_OTHER_LOAD = 0.5
_SECONDS_BETWEEN_CHECKS = 1.0


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
    """A run's training, from its start or from the state that it has loaded."""

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
    """Make a run, from its start or from the state that was kept last; return when it is finished.

    Any process on any machine that sees ``job.folder`` may call this. A finished run is left as it is.

    Raises:
        RunIsBeingMade: If another process makes the run.
        Stopped: If the command told its runs to stop.
        BenchmarkError: If the run cannot be made; what was saved before is intact.
    """
    storage = Storage(job.folder)
    with storage.locked(job.run), _settings(job, storage):
        record = storage.read_run(job.run)
        if record is not None and record.run.is_finished:
            return
        try:
            _Run(job, storage, importlib.import_module(job.plan).build(job)).make()
        except torch.OutOfMemoryError as error:
            raise BenchmarkError(
                f"the memory of {job.device} does not suffice: {str(error).splitlines()[0]} Give the same command "
                "again to resume, with a smaller --at-once"
            ) from error


def losses_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """(samples,): the cross-entropy of each sample; its mean where a sample has many targets, as a text has bytes."""
    each = nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(targets), -1).mean(1)


def step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Make one update, by the mean loss times ``weights``, and return the detached loss of each sample before it."""
    losses = losses_of(network(inputs), targets)
    loss = losses.mean() if weights is None else (losses * weights).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return losses.detach()


class _Run:
    """Trains a run and records it."""

    def __init__(self, job: Job, storage: Storage, training: Training) -> None:
        self._job, self._storage, self._training = job, storage, training
        self._identity = {"configuration": storage.configuration.digest(), **job.run._asdict()}
        self._epochs: list[Epoch] = []
        self._visits: list[list[int]] = []
        self._surroundings: list[Surroundings] = []
        self._best: Evaluated | None = None
        self._last: Evaluated | None = None
        self._resume()
        self._note_surroundings()
        self._kept = self._checked = time.monotonic()

    def make(self) -> None:
        training = self._training
        while not training.is_finished:
            self._check(at_once=True)
            start = time.monotonic()
            trained = training.train_epoch(self._check)
            middle = time.monotonic()
            tested = training.evaluate()
            self._add(trained, tested, middle - start, time.monotonic() - middle)
            if training.is_finished:
                break
            if time.monotonic() - self._kept >= self._job.checkpoint_seconds:
                self._save()
            else:
                self._storage.write_record(self._record())
        if self._job.keeps_state:
            self._save()
        else:
            self._storage.write_record(self._record())
            self._storage.forget_state(self._job.run)

    def _check(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._checked >= _SECONDS_BETWEEN_CHECKS:
            self._checked = now
            if is_stopped(self._job.folder):
                raise Stopped(f"{self._job.run} was told to stop")

    def _save(self) -> None:
        self._storage.save(self._record(), self._training.state_dict())
        self._kept = time.monotonic()

    def _resume(self) -> None:
        kept = self._storage.load(self._job.run)
        if kept is None and self._job.starts_as is not None:
            kept = self._storage.load(self._job.starts_as)
        if kept is None:
            return
        record, state = kept
        self._training.load_state_dict(state)
        self._epochs = [epoch.model_copy(update=self._identity) for epoch in record.epochs]
        self._visits = record.visits
        run = record.run
        self._surroundings, self._best, self._last = run.surroundings, run.best, run.last

    def _add(self, trained: Trained, tested: Tested, seconds: float, evaluation_seconds: float) -> None:
        epoch = Epoch(
            **self._identity,
            **trained.fields,
            **tested.fields,
            epoch=len(self._epochs) + 1,
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            shared_device=self._job.at_once > 1 or self._is_busy_otherwise(),
        )
        if tested.confusion is not None:
            self._last = Evaluated(epoch=epoch.epoch, confusion=tested.confusion)
            if epoch.accuracy > max((earlier.accuracy for earlier in self._epochs), default=-1.0):
                self._best = self._last
        self._epochs.append(epoch)
        if trained.visits is not None:
            self._visits.append(trained.visits)

    def _record(self) -> RunFile:
        run = Run(
            **self._identity,
            **self._training.describe(),
            is_finished=self._training.is_finished,
            surroundings=self._surroundings,
            best=self._best,
            last=self._last,
        )
        return RunFile(run=run, epochs=self._epochs, visits=self._visits)

    def _note_surroundings(self) -> None:
        job = self._job
        here = Surroundings(
            from_epoch=len(self._epochs) + 1,
            device=job.device,
            threads=job.threads,
            at_once=job.at_once,
            environment=describe_environment(job.device),
        )
        if not self._surroundings or _where(self._surroundings[-1]) != _where(here):
            self._surroundings = [*self._surroundings, here]

    def _is_busy_otherwise(self) -> bool:
        """Whether the CPU that a run is on had more to do in the last minute than the run."""
        return self._job.device == "cpu" and os.getloadavg()[0] > self._job.threads + _OTHER_LOAD


def _where(surroundings: Surroundings) -> dict[str, Any]:
    """What says whether two surroundings are the same."""
    environment = {name: value for name, value in surroundings.environment.items() if name != "date"}
    return surroundings.model_dump(exclude={"from_epoch", "environment"}) | environment


@contextmanager
def _settings(job: Job, storage: Storage) -> Iterator[None]:
    """PyTorch's settings of a whole process, as the run needs them; as before afterwards."""
    # Only cuBLAS reads this, and only when it is set up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic
    threads, fills = torch.get_num_threads(), deterministic.fill_uninitialized_memory
    was_deterministic = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.set_num_threads(job.threads)
    torch.use_deterministic_algorithms(getattr(storage.configuration, "deterministic", False), warn_only=True)
    # No memory is read here before it is written, and filling it costs a kernel for each tensor.
    deterministic.fill_uninitialized_memory = False
    try:
        with tf32(TF32.get(getattr(storage.configuration, "precision", "default"))):
            yield
    finally:
        torch.set_num_threads(threads)
        deterministic.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(was_deterministic[0], warn_only=was_deterministic[1])
