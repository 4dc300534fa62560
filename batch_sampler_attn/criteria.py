"""What a loss is compared with, and what an epoch's end makes of it.

A criterion is asked once for each visit, and once as an epoch ends. Another one than the paper's stands here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Protocol

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.state import State


class Criterion(Protocol):
    """Says which batches want another visit."""

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether the batch that is out wants another visit at once.

        Args:
            state: As it was before this visit; not to be changed.
            loss: Of this visit; NaN for every loss that does not count.
            batch: Which one of the epoch's batches it is: the position that it is done with at.

        Raises:
            ProtocolError: If there is no such batch. Nothing has changed then.
        """

    def next_threshold(self, state: State, mean_loss: float | None) -> float | None:
        """The threshold that comes into force as an epoch ends.

        Args:
            state: At the end of the epoch; not to be changed.
            mean_loss: Of the epoch; None if no loss counted.

        Raises:
            ProtocolError: If the epoch cannot end here. Nothing has changed then.
        """


class LossThreshold:
    """The paper's criterion: a loss above K times the mean loss of the epoch before (section 3, steps 2 to 4).

    Args:
        k: In units of that mean.
        warmup_epochs: Epochs without a threshold, at the start.
    """

    def __init__(self, k: float, warmup_epochs: int) -> None:
        self._k = k
        self._warmup_epochs = warmup_epochs

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether the loss is above the threshold, if there is one. NaN is above nothing."""
        del batch
        return state.threshold is not None and loss > state.threshold

    def next_threshold(self, state: State, mean_loss: float | None) -> float | None:
        """K times (E / N)."""
        if state.epoch + 1 < self._warmup_epochs or mean_loss is None:
            return None
        threshold = self._k * mean_loss
        # Nothing is above a product too large for a double.
        return threshold if math.isfinite(threshold) else None


class DealtVisits:
    """The criterion of the control at equal compute: each batch is visited as often as was dealt to it.

    Args:
        visit_counts: For each epoch, the visits to each batch, dealt to the epoch's batches in random order.
        seed: Of the dealing.
    """

    def __init__(self, visit_counts: Sequence[Sequence[int]], seed: int) -> None:
        self._visit_counts = visit_counts
        self._seed = seed
        self._dealt_epoch: int | None = None
        self._dealt: list[int] = []

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether visits are left, whatever the loss is."""
        del loss
        dealt = self.deal(state.epoch)
        if batch >= len(dealt):
            raise ProtocolError(
                f"epoch {state.epoch} has more batches than the {len(dealt)} of visit_counts[{state.epoch}]"
            )
        return state.visits + 1 < dealt[batch]

    def next_threshold(self, state: State, mean_loss: float | None) -> None:
        """None: there is no threshold."""
        del mean_loss
        batches = len(self.deal(state.epoch))
        if state.position < batches:
            raise ProtocolError(
                f"epoch {state.epoch} ended after {state.batches} batches, but visit_counts[{state.epoch}] has "
                f"{batches}; use the data and the batch size of the run that the counts are of"
            )

    def deal(self, epoch: int) -> list[int]:
        """The visits to each batch of an epoch, as they are dealt.

        Raises:
            ProtocolError: If there are none for this epoch.
        """
        if epoch != self._dealt_epoch:
            if epoch >= len(self._visit_counts):
                raise ProtocolError(f"epoch {epoch} was begun, but visit_counts has {len(self._visit_counts)} epochs")
            self._dealt = [*self._visit_counts[epoch]]
            # A string seeds the same on every platform and Python version.
            random.Random(f"{self._seed}/{epoch}").shuffle(self._dealt)
            self._dealt_epoch = epoch
        return self._dealt
