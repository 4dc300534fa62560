"""One run: one small network, trained at one learning rate on the samples that an arm chooses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from benchmarks.selection.arms import Samples
from benchmarks.selection.kinds.data import Part, Task
from benchmarks.selection.kinds.forms import Batch, Form

_WARM_UP = 0.3


class ByteModel(nn.Module):
    """A recurrent language model over bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._embedding = nn.Embedding(256, 32)
        self._recurrent = nn.LSTM(32, 64, batch_first=True)
        self._head = nn.Linear(64, 256)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, window) bytes to (batch, window, 256) logits."""
        hidden, _ = self._recurrent(self._embedding(inputs))
        logits: Tensor = self._head(hidden)
        return logits


def make_network(name: str, task: Task, seed: int) -> nn.Module:
    """The network of a kind of data, initialised by the seed; torch's generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "text":
            return ByteModel()
        width, dropout = (64, 0.0) if name == "table" else (128, 0.5)
        inputs = task.train.inputs.shape[-1]
        first, second = nn.Linear(inputs, width), nn.Linear(width, width)
        layers = [first, nn.ReLU(), nn.Dropout(dropout), second, nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(width, task.outputs))


def one_cycle(progress: float) -> float:
    """The share of the peak learning rate at a share of training: up from 1/25 and down to 0, along cosines."""
    if progress < _WARM_UP:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / _WARM_UP)) / 2
    return (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))) / 2


def train(
    name: str, task: Task, arm: Form | Samples, batches: Iterable[Batch], seed: int, learning_rate: float
) -> dict[str, Any]:
    """Train on all that an arm has, and evaluate: what ``records.Run`` has of it.

    Args:
        name: The kind of data.
        task: Its data.
        arm: Is told the losses.
        batches: The samples of each update, and how far training is, which the schedule follows.
        seed: Of initial weights and augmentation.
        learning_rate: The peak.
    """
    network = make_network(name, task, seed)
    of_images = name in ("hidden_fine", "noisy")
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    last_losses: list[float] = []
    updates = forward_samples = 0
    begin = time.perf_counter()
    network.train()
    # Dropout draws from torch's generator, which is as before afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in batches:
            inputs = task.train.inputs[batch.indices]
            if of_images:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + updates)
                mirrors = torch.randint(0, 2, (len(inputs),), generator=generator)
                inputs = inputs[torch.arange(len(inputs)), mirrors]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * one_cycle(batch.progress)
            losses = losses_of(network(inputs), task.train.targets[batch.indices])
            loss = losses.mean() if batch.weights is None else (losses * batch.weights).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            arm.report(losses.detach())
            last_losses = [*last_losses[-49:], losses.detach().mean().item()]
            updates += 1
            forward_samples += len(inputs)
    seconds = time.perf_counter() - begin
    groups = len(task.counts)
    validation, *_ = evaluate(name, network, task.validation, groups)
    score, recalls, group_losses, predicted = evaluate(name, network, task.test, groups)
    targets = task.test.targets.flatten().numpy()
    return {
        "score": score,
        "validation": validation,
        "accuracy": 100 * float((predicted == targets).mean()),
        "macro_f1": 100 * float(f1_score(targets, predicted, average="macro")),
        "recalls": recalls,
        "group_losses": group_losses,
        "train_loss": sum(last_losses) / len(last_losses),
        "updates": updates,
        "forward_samples": forward_samples,
        "left_out": sum(arm.doses["pruned"]),
        "doses": arm.doses,
        "seconds": seconds,
    }


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(samples,): the cross-entropy of each sample, over its bytes the mean."""
    each = nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return each.view(len(targets), -1).mean(1)


def evaluate(
    name: str, network: nn.Module, part: Part, groups: int
) -> tuple[float, list[float], list[float], np.ndarray]:
    """The score, accuracy in per cent and mean loss of each group, and all that is predicted.

    The score is accuracy in per cent, or of text the mean loss over sorts, in nats and negative: more is better. There
    are as many samples of each group.
    """
    network.eval()
    losses, predicted = [], []
    with torch.inference_mode():
        for inputs, targets in zip(part.inputs.split(500), part.targets.split(500), strict=True):
            logits = network(inputs)
            losses.append(losses_of(logits, targets))
            predicted.append(logits.argmax(-1))
    found, all_losses = torch.cat(predicted), torch.cat(losses)
    right = (found == part.targets).float().view(len(found), -1).mean(1)
    of_group = [part.groups == group for group in range(groups)]
    recalls = [100 * right[where].mean().item() for where in of_group]
    group_losses = [all_losses[where].mean().item() for where in of_group]
    score = -sum(group_losses) / groups if name == "text" else 100 * right.mean().item()
    return score, recalls, group_losses, found.flatten().numpy()
