"""One run: made, trained, evaluated after every epoch, and kept."""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.summary import EpochSummary
from benchmarks.cifar.evaluation import Evaluation, evaluate, measure_numerics
from benchmarks.cifar.images import ImageSet
from benchmarks.cifar.label_noise import redraw_labels
from benchmarks.cifar.models import ModelRecipe, make_model
from benchmarks.cifar.options import Options
from benchmarks.cifar.plan import baseline_of
from benchmarks.cifar.storage import Storage
from benchmarks.environment import describe_environment
from benchmarks.schema import Configuration, Epoch, Evaluated, Flipped, Run, RunFile, RunName, Surroundings

# A system's own work, below which a machine counts as left alone.
_OTHER_LOAD = 0.5


class Setup(NamedTuple):
    """What runs are made from.

    Attributes:
        options: What was asked for.
        configuration: What all of them have in common.
        recipe: Of the model.
        images: To train on and to evaluate on.
        storage: Where they are kept.
        device: To train on.
    """

    options: Options
    configuration: Configuration
    recipe: ModelRecipe
    images: ImageSet
    storage: Storage
    device: torch.device


class DeviceImages:
    """A data set's images on the device, shared by all runs there."""

    def __init__(self, setup: Setup) -> None:
        device, (train, test) = setup.device, (setup.images.train, setup.images.test)
        configuration = setup.configuration
        self.train = torch.from_numpy(train.images).to(device)
        self.test = torch.from_numpy(test.images).to(device)
        self.test_labels = torch.from_numpy(test.labels).to(device)
        self.numerics = measure_numerics(self.train, configuration.precision, configuration.channels_last)


class Trainer:
    """Trains one run, from its begin or from where it was stopped.

    Args:
        run: Which one.
        setup: What it is made from.
        images: On the device.

    Attributes:
        run: Which one.
        loop: Trains; ``end_epoch`` is to be called with the summary of each epoch that it ends.
        epochs: Recorded up to now.
    """

    def __init__(self, run: RunName, setup: Setup, images: DeviceImages) -> None:
        self.run = run
        self._setup = setup
        self._images = images
        self._configuration = setup.configuration
        self._storage = setup.storage
        classes = self._configuration.data.classes
        true_labels = setup.images.train.labels
        labels = redraw_labels(true_labels, len(classes), run.label_noise, run.seed)
        self._is_flipped: NDArray[np.bool_] = labels != true_labels
        self.loop = self._make_loop(labels, len(classes))
        self.epochs: list[Epoch] = []
        self._visits: list[list[int]] = []
        self._surroundings: list[Surroundings] = []
        self._best: Evaluated | None = None
        self._last: Evaluated | None = None
        self._updates_wanted = self._count_updates()
        self._resume()
        self._note_surroundings()
        self._begun = self._kept = time.monotonic()

    @property
    def is_finished(self) -> bool:
        """Whether every update has been made."""
        if self._updates_wanted is None:
            return len(self.epochs) == self._configuration.epochs
        return self.loop.updates >= self._updates_wanted

    def end_epoch(self, summary: EpochSummary) -> None:
        """Evaluate, record and keep an epoch that the loop has ended.

        Raises:
            StorageError: If it cannot be kept.
        """
        trained = time.monotonic()
        visits = self.loop.visit_counts if self.run.arm in ("attention", "random") else None
        classes = len(self._configuration.data.classes)
        images = self._images
        evaluation = evaluate(self.loop.model, images.test, images.test_labels, classes, images.numerics)
        self._record(summary, visits, evaluation, trained - self._begun, time.monotonic() - trained)
        if not self.is_finished and time.monotonic() - self._kept >= self._setup.options.checkpoint_seconds:
            self._keep()
        self._begun = time.monotonic()

    def end_short_epoch(self) -> None:
        """Where fewer updates are wanted than an epoch has, make those: the end of ``longer``."""
        wanted = 0 if self._updates_wanted is None else self._updates_wanted - self.loop.updates
        if 0 < wanted < self.loop.batches:
            self.loop.run_updates(wanted)
            self.end_epoch(self.loop.schedule.summary)

    def finish(self) -> None:
        """Record a run that is finished, with its state if it is a baseline, which ``longer`` goes on from.

        Raises:
            StorageError: If it cannot be recorded.
        """
        if self.run.arm == "baseline":
            self._keep()
        else:
            self._storage.write_record(self._record_of_run())

    def _keep(self) -> None:
        # On a CPU, dropout draws from PyTorch's own generator, which the loop does not save.
        state = {"loop": self.loop.state_dict(), "random": torch.get_rng_state()}
        self._storage.save(self._record_of_run(), state)
        self._kept = time.monotonic()

    # How the run is made --------------------------------------------------------------------------------

    def _make_loop(self, labels: NDArray[np.int64], classes: int) -> DeviceLoop:
        configuration, device = self._configuration, self._setup.device
        seed, numerics = self.run.seed, self._images.numerics
        is_cuda = device.type == "cuda"
        model = make_model(self._setup.recipe, classes, seed).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=configuration.learning_rate, fused=True, capturable=is_cuda)
        targets = torch.from_numpy(labels).to(device)
        if configuration.channels_last:
            model.to(memory_format=torch.channels_last)
        # Of dropout and its like: other numbers than those of initial weights and orders.
        torch.manual_seed(seed + 2)
        if is_cuda:
            torch.cuda.manual_seed(seed + 3)
        return DeviceLoop(
            model,
            optimizer,
            nn.functional.cross_entropy,
            self._images.train,
            targets,
            configuration.batch_size,
            schedule=self._make_schedule(),
            generator=torch.Generator().manual_seed(seed),
            prepare=numerics.prepare,
            autocast=numerics.autocast,
            scaler=torch.amp.GradScaler(device.type) if configuration.precision == "fp16" else None,
        )

    def _make_schedule(self) -> BatchAttentionSchedule | None:
        run, configuration = self.run, self._configuration
        if run.arm == "attention":
            assert run.epoch_loss is not None
            return BatchAttentionSchedule(
                configuration.k, epoch_loss=run.epoch_loss, max_visits=configuration.max_visits
            )
        if run.arm == "random":
            return EqualComputeControl(self._storage.read_visits(run._replace(arm="attention")), seed=run.seed)
        return None

    def _count_updates(self) -> int | None:
        """The updates of the whole run; None where the epochs say when it ends."""
        if self.run.arm == "longer":
            return sum(map(sum, self._storage.read_visits(self.run._replace(arm="attention"))))
        return None

    def _resume(self) -> None:
        kept = self._storage.load(self.run)
        if kept is None and self.run.arm == "longer":
            # The same computation up to here: weights, order and labels depend on the seed alone.
            kept = self._storage.load(baseline_of(self.run))
        if kept is None:
            return
        record, state = kept
        self.loop.load_state_dict(state["loop"])
        torch.set_rng_state(state["random"])
        self.epochs = [self._rename(epoch) for epoch in record.epochs]
        self._visits = record.visits
        run = record.run
        self._surroundings, self._best, self._last = run.surroundings, run.best, run.last

    def _rename(self, epoch: Epoch) -> Epoch:
        return epoch.model_copy(update={"arm": self.run.arm, "epoch_loss": self.run.epoch_loss})

    # What is recorded -----------------------------------------------------------------------------------

    def _record(
        self,
        summary: EpochSummary,
        visits: list[int] | None,
        evaluation: Evaluation,
        seconds: float,
        evaluation_seconds: float,
    ) -> None:
        epoch = Epoch(
            **self._identity(),
            epoch=len(self.epochs) + 1,
            batches=summary.batches,
            updates=summary.visits,
            repeats=summary.repeats,
            threshold=summary.threshold,
            train_loss=summary.mean_loss,
            test_loss=evaluation.loss,
            accuracy=evaluation.accuracy,
            macro_f1=evaluation.macro_f1,
            seconds=seconds,
            evaluation_seconds=evaluation_seconds,
            finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            shared_device=self._setup.options.at_once > 1 or _is_busy_otherwise(self._setup),
            precision=self._configuration.precision,
            capped_batches=summary.capped_batches,
            nonfinite_losses=summary.nonfinite_losses,
            most_visits=summary.most_visits,
            host_reads=summary.host_reads,
            batches_by_visits=None if visits is None else self._count_by_visits(visits),
        )
        self._last = Evaluated(epoch=epoch.epoch, confusion=evaluation.confusion.tolist())
        if epoch.accuracy > max((earlier.accuracy for earlier in self.epochs), default=-1.0):
            self._best = self._last
        self.epochs.append(epoch)
        if visits is not None:
            self._visits.append(visits)

    def _count_by_visits(self, visits: list[int]) -> dict[int, Flipped]:
        batch_starts = np.arange(0, len(self._is_flipped), self._configuration.batch_size)
        is_flipped = self._is_flipped[self.loop.order.cpu().numpy()]
        flipped = np.add.reduceat(is_flipped.astype(np.int64), batch_starts)
        of_batch = np.asarray(visits)
        counted: dict[int, Flipped] = {}
        for count in np.unique(of_batch).tolist():
            chosen = flipped[of_batch == count]
            counted[count] = Flipped(
                batches=len(chosen), with_flipped=int((chosen > 0).sum()), flipped=int(chosen.sum())
            )
        return counted

    def _record_of_run(self) -> RunFile:
        assert self._best is not None
        assert self._last is not None
        run = Run(
            **self._identity(),
            is_finished=self.is_finished,
            flipped_labels=int(self._is_flipped.sum()),
            surroundings=self._surroundings,
            best=self._best,
            last=self._last,
        )
        return RunFile(run=run, epochs=self.epochs, visits=self._visits)

    def _identity(self) -> dict[str, Any]:
        return {"configuration": self._configuration.digest(), **self.run._asdict()}

    def _note_surroundings(self) -> None:
        setup = self._setup
        here = Surroundings(
            from_epoch=len(self.epochs) + 1,
            device=str(setup.device),
            threads=setup.options.threads,
            at_once=setup.options.at_once,
            environment=describe_environment(str(setup.device)),
        )
        if not self._surroundings or _where(self._surroundings[-1]) != _where(here):
            self._surroundings = [*self._surroundings, here]


def _is_busy_otherwise(setup: Setup) -> bool:
    """Whether the CPU that a run is on has had more to do in the last minute than the run."""
    return setup.device.type == "cpu" and os.getloadavg()[0] > setup.options.threads + _OTHER_LOAD


def _where(surroundings: Surroundings) -> dict[str, Any]:
    """What says whether two surroundings are the same."""
    environment = {name: value for name, value in surroundings.environment.items() if name != "date"}
    return surroundings.model_dump(exclude={"from_epoch", "environment"}) | environment
