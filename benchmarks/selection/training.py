"""A run: one small network, trained on the samples that an arm chooses, and evaluated after the last update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from benchmarks.images import ImageSet, load_images
from benchmarks.schema import Chosen, SelectionConfiguration
from benchmarks.selection.arms import LONGER, SOURCES, Passes, make_arm
from benchmarks.selection.data import ImageSizes, Part, Sizes, Task, make_task
from benchmarks.selection.networks import PEAK_LEARNING_RATE, augment, convolutional, mirror, of_kind
from benchmarks.storage import Storage
from benchmarks.training import Job, Tested, Trained

_WARM_UP = 0.3
_EVALUATED_AT_ONCE = 500


def one_cycle(progress: float) -> float:
    """The share of the peak learning rate at a share of training: up from 1/25 and down to 0, along cosines."""
    if progress < _WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2


@lru_cache(maxsize=4)
def load_source(data: str, data_dir: Path) -> tuple[ImageSet | None, str | None]:
    """Images, or None for data that is made up; and the digest."""
    if not data:
        return None, None
    images = load_images(data, data_dir)
    return images, images.describe().sha256


@lru_cache(maxsize=1)
def _load_task(job_data: tuple[str, Path], setting: str, seed: int, sizes: Sizes | ImageSizes) -> Task:
    """The data of a run, which the arms of a seed share."""
    return make_task(load_source(*job_data)[0], setting, seed, sizes)


def step(network: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """Make one update, by the mean loss times ``weights``, and return the detached loss of each sample before it."""
    losses = nn.functional.cross_entropy(network(inputs), targets, reduction="none")
    loss = losses.mean() if weights is None else (losses * weights).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return losses.detach()


class SelectionTraining:
    """Trains a run: all of its updates are one epoch of a minute (see ``benchmarks.training.Training``)."""

    def __init__(self, job: Job) -> None:
        storage, self._run, self._data = Storage(job.folder), job.run, (job.data, job.data_dir)
        setting, arm, seed = self._run.setting or "", self._run.arm, self._run.seed
        assert isinstance(storage.configuration, SelectionConfiguration)
        sizes_type = TypeAdapter(Sizes if storage.configuration.study == "kinds" else ImageSizes)
        sizes = sizes_type.validate_python(storage.configuration.settings[setting])
        self._task = _load_task(self._data, setting, seed, sizes)
        inputs, labels = self._task.train.inputs, self._task.train.targets
        self._optimizer: Optimizer
        self._schedule: LRScheduler
        self._prepare: Callable[[Tensor, int, int], Tensor]
        options: dict[str, Any] = {}
        if isinstance(sizes, ImageSizes):
            updates, self._peak = round(sizes.updates * LONGER.get(arm, 1.0)), PEAK_LEARNING_RATE
            self._network, self._prepare = convolutional(self._task.outputs, seed), augment
            weights = self._network.parameters()
            self._optimizer = SGD(weights, self._peak, momentum=0.9, weight_decay=5e-4, nesterov=True)
            self._schedule = OneCycleLR(self._optimizer, self._peak, total_steps=updates)
        else:
            updates = sizes.epochs * -(-len(labels) // sizes.batch_size)
            self._peak = (self._run.rate or 1.0) * sizes.learning_rate
            self._network, self._prepare = of_kind(setting, inputs.shape[-1], self._task.outputs, seed), mirror
            self._optimizer = AdamW(self._network.parameters(), self._peak, weight_decay=0.01)
            self._schedule = LambdaLR(self._optimizer, lambda update: one_cycle(update / updates))
            options["sampler"] = Passes(len(labels), seed)
            if source := storage.read_run(self._run._replace(arm=SOURCES[arm])) if arm in SOURCES else None:
                options["select"] = source.run.doses
        self._arm = make_arm(arm, labels, sizes.batch_size, updates, seed, **options)
        self.is_finished, self._forward_samples = False, 0
        self._doses: Mapping[str, Any] = {}

    def train_epoch(self, check: Callable[[], None]) -> Trained:
        """Train; ``check`` is called before every update."""
        part, losses, repeats = self._task.train, list[float](), 0
        self._network.train()
        # Dropout draws from torch's generator, which is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._run.seed)
            batch = next(self._arm)
            while not self.is_finished:
                check()
                inputs = self._prepare(part.inputs[batch.indices], self._run.seed, batch.draw)
                targets = part.targets[batch.indices]
                self._forward_samples += len(inputs)
                of_samples = step(self._network, self._optimizer, inputs, targets, batch.weights)
                self._schedule.step()
                losses.append(of_samples.mean().item())
                try:
                    batch = self._arm.send(of_samples)
                except StopIteration as end:
                    self.is_finished, (repeats, self._doses) = True, end.value
        updates, last = len(losses), losses[-50:]
        fields = {"batches": updates - repeats, "updates": updates, "repeats": repeats}
        return Trained({**fields, "train_loss": sum(last) / len(last)})

    def evaluate(self) -> Tested:
        """Evaluate on test data, and on validation data where there is some."""
        from sklearn.metrics import f1_score  # takes a second

        self._network.eval()
        task = self._task
        on_test, predicted = self._evaluate(task.test)
        targets = task.test.targets.numpy()
        chosen = Chosen(
            **on_test,
            forward_samples=self._forward_samples,
            pruned=sum(self._doses["pruned"]),
            counts=task.counts,
            learning_rate=self._peak,
            validation=None if task.validation is None else self._evaluate(task.validation)[0]["score"],
            data_sha256=load_source(*self._data)[1],
        )
        accuracy, macro_f1 = (predicted == targets).mean(), f1_score(targets, predicted, average="macro")
        return Tested({"accuracy": float(accuracy), "macro_f1": float(macro_f1), "chosen": chosen})

    def _evaluate(self, part: Part) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """Fields of ``Chosen``, and all that is predicted."""
        with torch.inference_mode():
            outputs = torch.cat([self._network(inputs) for inputs in part.inputs.split(_EVALUATED_AT_ONCE)])
            losses = nn.functional.cross_entropy(outputs, part.targets, reduction="none")
        predicted = outputs.argmax(1)
        right = (predicted == part.targets).float()
        of_group = [part.groups == group for group in range(len(self._task.counts))]
        recalls = [100 * right[where].mean().item() for where in of_group]
        group_losses = [losses[where].mean().item() for where in of_group]
        score = 100 * right.mean().item()
        return {"score": score, "recalls": recalls, "group_losses": group_losses}, predicted.numpy()

    def describe(self) -> dict[str, Any]:
        """What a random twin is made from."""
        return {"doses": self._doses or None}


build = SelectionTraining
