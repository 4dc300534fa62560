"""A run: one small network, trained on the samples that an arm chooses, and evaluated after the last update."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor

from benchmarks.images import load_images
from benchmarks.schema import Chosen, SelectionConfiguration
from benchmarks.selection.arms import LONGER, SOURCES, make_arm, random_order
from benchmarks.selection.choices import Counts
from benchmarks.selection.data import ImageSizes, Part, Sizes, Source, Task, collect_text, make_task
from benchmarks.selection.networks import PEAK_LEARNING_RATE, augment, convolutional, mirror, of_kind
from benchmarks.storage import Storage, write_whole
from benchmarks.training import Job, Tested, Trained, losses_of, step

_WARM_UP = 0.3
_EVALUATED_AT_ONCE = 500


def build(job: Job) -> SelectionTraining:
    """The training of a run, at its start."""
    return SelectionTraining(job)


def one_cycle(progress: float) -> float:
    """The share of the peak learning rate at a share of training: up from 1/25 and down to 0, along cosines."""
    if progress < _WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2


@lru_cache(maxsize=4)
def load_source(data: str, data_dir: Path) -> tuple[Source, str | None]:
    """Images, ``text``, or None for data that is made up; and the digest."""
    if not data:
        return None, None
    if data != "text":
        images = load_images(data, data_dir)
        return images, images.describe().sha256
    # Kept, since packages may be installed while the study runs. Latin-1 has a character for every byte.
    kept = data_dir / "text.json"
    if not kept.exists():
        found = {sort: [text.decode("latin-1") for text in texts] for sort, texts in collect_text().items()}
        write_whole(kept, lambda file: file.write(json.dumps(found).encode()))
    written = kept.read_bytes()
    corpus = {sort: [text.encode("latin-1") for text in texts] for sort, texts in json.loads(written).items()}
    return corpus, hashlib.sha256(written).hexdigest()


@lru_cache(maxsize=1)
def _load_task(
    setting: str, seed: int, sizes: Sizes | ImageSizes, data: str, data_dir: Path
) -> tuple[Task, str | None]:
    """The data of a run, which arms of a seed share, and the digest of its source."""
    source, digest = load_source(data, data_dir)
    return make_task(source, setting, seed, sizes), digest


def _read_sizes(settings: Mapping[str, float | None]) -> Sizes | ImageSizes:
    """Sizes from a configuration, where all numbers are real."""
    values: dict[str, Any] = {
        name: int(value) if value and value % 1 == 0 else value for name, value in settings.items()
    }
    return Sizes(**values) if "epochs" in values else ImageSizes(**values)


class SelectionTraining:
    """Trains a run: all of its updates are one epoch (see ``benchmarks.training.Training``)."""

    def __init__(self, job: Job) -> None:
        storage, self._run = Storage(job.folder), job.run
        setting, arm, seed = self._run.setting or "", self._run.arm, self._run.seed
        assert isinstance(storage.configuration, SelectionConfiguration)
        sizes = _read_sizes(storage.configuration.settings[setting])
        self._task, self._digest = _load_task(setting, seed, sizes, job.data, job.data_dir)
        labels = self._task.train.targets
        self._counts = Counts()
        self._forward_samples = 0
        self._schedule: torch.optim.lr_scheduler.OneCycleLR | None = None
        self.is_finished = False
        if isinstance(sizes, ImageSizes):
            updates = round(sizes.updates * LONGER.get(arm, 1.0))
            self._network, self._peak = convolutional(self._task.outputs, seed), PEAK_LEARNING_RATE
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self._network.parameters(), self._peak, momentum=0.9, weight_decay=5e-4, nesterov=True
            )
            self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, self._peak, total_steps=updates)
            self._arm = make_arm(arm, labels, sizes.batch_size, updates, seed, self._counts)
            return
        source = storage.read_run(self._run._replace(arm=SOURCES[arm])) if arm in SOURCES else None
        updates = source.epochs[-1].updates if source else sizes.epochs * -(-len(labels) // sizes.batch_size)
        doses = source.run.doses if source and arm == "left_out_random" else None
        self._network = of_kind(setting, self._task.train.inputs.shape[-1], self._task.outputs, seed)
        self._peak = (self._run.rate or 1.0) * sizes.learning_rate
        self._optimizer = torch.optim.AdamW(self._network.parameters(), self._peak, weight_decay=0.01)
        sampler = random_order(len(labels), seed)
        self._arm = make_arm(arm, labels, sizes.batch_size, updates, seed, self._counts, sampler=sampler, doses=doses)

    def train_epoch(self, check: Callable[[], None]) -> Trained:
        """Train; ``check`` is called before every update."""
        part, losses = self._task.train, list[float]()
        self._network.train()
        # Dropout draws from torch's generator, which is restored afterwards.
        with torch.random.fork_rng(devices=[]), suppress(StopIteration):
            torch.manual_seed(self._run.seed)
            batch = next(self._arm)
            while True:
                check()
                self._set_rate(batch.progress)
                inputs, targets = self._prepare(part.inputs[batch.indices], batch.draw), part.targets[batch.indices]
                self._forward_samples += len(inputs)
                if batch.keep is not None:
                    with torch.no_grad():
                        kept = batch.keep(losses_of(self._network(inputs), targets))
                    inputs, targets = inputs[kept], targets[kept]
                    self._forward_samples += len(inputs)
                of_samples = step(self._network, self._optimizer, inputs, targets, batch.weights)
                losses.append(of_samples.mean().item())
                batch = self._arm.send(of_samples)
        self.is_finished = True
        updates, repeats, last = len(losses), self._counts.repeats, losses[-50:]
        train_loss = sum(last) / len(last)
        return Trained({"batches": updates - repeats, "updates": updates, "repeats": repeats, "train_loss": train_loss})

    def _set_rate(self, progress: float) -> None:
        if self._schedule is None:
            self._optimizer.param_groups[0]["lr"] = self._peak * one_cycle(progress)
        elif progress > 0:
            self._schedule.step()

    def _prepare(self, inputs: Tensor, draw: int) -> Tensor:
        """Augment images; choose between the features of an image and those of its mirror image."""
        if self._schedule is not None:
            return augment(inputs, self._run.seed, draw)
        return mirror(inputs, self._run.seed, draw) if inputs.ndim == 3 else inputs

    def evaluate(self) -> Tested:
        """Evaluate on test data, and on validation data where there is some."""
        self._network.eval()
        task, validation = self._task, self._task.validation
        score, recalls, group_losses, predicted = self._evaluate(task.test)
        targets = task.test.targets.flatten().numpy()
        chosen = Chosen(
            forward_samples=self._forward_samples,
            pruned=sum(self._counts.doses["pruned"]),
            counts=task.counts,
            recalls=recalls,
            learning_rate=self._peak,
            score=score,
            validation=None if validation is None else self._evaluate(validation)[0],
            group_losses=group_losses,
            data_sha256=self._digest if self._run.rate else None,
        )
        accuracy, macro_f1 = (predicted == targets).mean(), f1_score(targets, predicted, average="macro")
        return Tested({"accuracy": float(accuracy), "macro_f1": float(macro_f1), "chosen": chosen})

    def _evaluate(self, part: Part) -> tuple[float, list[float], list[float], NDArray[np.int64]]:
        """The score, recall in per cent and mean loss of each group, and all that is predicted.

        The score is accuracy in per cent, or of text minus the mean loss over sorts: more is better.
        """
        with torch.inference_mode():
            outputs = torch.cat([self._network(inputs) for inputs in part.inputs.split(_EVALUATED_AT_ONCE)])
            losses, predicted = losses_of(outputs, part.targets), outputs.argmax(-1)
        right = (predicted == part.targets).float().view(len(predicted), -1).mean(1)
        of_group = [part.groups == group for group in range(len(self._task.counts))]
        recalls = [100 * right[where].mean().item() for where in of_group]
        group_losses = [losses[where].mean().item() for where in of_group]
        is_text = part.targets.ndim > 1
        score = -sum(group_losses) / len(group_losses) if is_text else 100 * right.mean().item()
        return score, recalls, group_losses, predicted.flatten().numpy()

    def describe(self) -> dict[str, Any]:
        """What a random twin is made from, in ``kinds``."""
        return {"doses": self._counts.doses} if self._run.rate else {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a run takes a minute, and starts again where it was stopped."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
