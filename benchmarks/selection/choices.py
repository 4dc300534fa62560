"""What an arm yields, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor


class Batch(NamedTuple):
    """What an update trains on.

    Attributes:
        indices: (batch,), into the training data.
        draw: Seeds the augmentation.
        progress: Share of the updates before this one.
        weights: (batch,), of the losses; None for equal weights.
        keep: Returns which samples to train on, from their losses; None to train on all.
    """

    indices: Tensor
    draw: int
    progress: float
    weights: Tensor | None = None
    keep: Callable[[Tensor], Tensor] | None = None


# An arm yields the batch of each update, and is sent the losses of the samples that were trained on.
Batches: TypeAlias = Generator[Batch, Tensor, None]
# Of Selective Backprop: whether update i of n selects, and which of the losses it keeps.
Rule: TypeAlias = tuple[Callable[[int, int], bool], Callable[[Tensor], Tensor]]


@dataclass
class Counts:
    """What an arm has done: repeats or pooled batches, and how many samples each pass pruned (``doses["pruned"]``)."""

    repeats: int = 0
    doses: dict[str, Any] = field(default_factory=lambda: {"pruned": []})
