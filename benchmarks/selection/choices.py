"""What an arm is asked for at every update."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Choice(NamedTuple):
    """One update's samples.

    Attributes:
        indices: (batch,), into the training images.
        draw: Of augmentation: the same number augments alike.
        weights: (batch,), of the losses; None for all alike.
        looks_first: Whether ``keep`` is to be asked which samples are trained on.
    """

    indices: Tensor
    draw: int
    weights: Tensor | None = None
    looks_first: bool = False


class Arm(Protocol):
    """Chooses samples.

    Attributes:
        extra_updates: Repeats, or batches of pooled samples, so far.
        left_out: Samples left out so far.
    """

    extra_updates: int
    left_out: int

    def choose(self, update: int) -> Choice:
        """The samples of an update."""

    def keep(self, losses: Tensor) -> Tensor:
        """Which of them to train on, from their losses."""

    def report(self, losses: Tensor) -> None:
        """The losses of the samples that were trained on, before the update."""
