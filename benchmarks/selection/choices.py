"""What an arm yields, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor


class Batch(NamedTuple):
    """What an update trains on."""

    indices: Tensor  # (batch,), into the training data
    draw: int  # seeds the augmentation
    progress: float  # share of the updates before this one
    weights: Tensor | None = None  # (batch,), of the losses; None for equal weights
    keep: Callable[[Tensor], Tensor] | None = None  # which samples to train on, from their losses; None for all


# An arm yields the batch of each update, and is sent the losses of the samples that were trained on.
Batches: TypeAlias = Generator[Batch, Tensor, None]
# Of Selective Backprop: whether update i of n selects, and which of the losses it keeps.
Rule: TypeAlias = tuple[Callable[[int, int], bool], Callable[[Tensor], Tensor]]


@dataclass
class Counts:
    """What an arm has done: repeats or pooled batches, and how many samples each pass pruned (``doses["pruned"]``)."""

    repeats: int = 0
    doses: dict[str, Any] = field(default_factory=lambda: {"pruned": []})
