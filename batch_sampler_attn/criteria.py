"""What a loss is compared with, and what an epoch's end makes of it.

A criterion is asked once for each visit, and once as an epoch ends. Another one than the paper's stands here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Protocol

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.options import Options
from batch_sampler_attn.state import State


class Criterion(Protocol):
    """Says which batches want another visit."""

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether the batch that is out wants another visit at once.

        Args:
            state: As it was before this visit; nothing but ``strictness`` is to be changed.
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
        k: In units of that mean, less the floor.
        warmup_epochs: Epochs without a threshold, at the start.
        floor: The lowest loss that can be; 0 in the paper.
    """

    def __init__(self, k: float, warmup_epochs: int, floor: float = 0.0) -> None:
        self._k = k
        self._warmup_epochs = warmup_epochs
        self._floor = floor

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether the loss is above the threshold, if there is one. NaN is above nothing."""
        del batch
        return state.threshold is not None and loss > state.threshold

    def next_threshold(self, state: State, mean_loss: float | None) -> float | None:
        """K times (E / N), both less the floor."""
        if state.epoch + 1 < self._warmup_epochs or mean_loss is None:
            return None
        threshold = self._floor + self._k * (mean_loss - self._floor)
        # Nothing is above a product too large for a double.
        return threshold if math.isfinite(threshold) else None


class BudgetedThreshold(LossThreshold):
    """The paper's threshold, raised as far as it takes to keep repeats within a share of the base batches.

    Every visit above the threshold raises it, and every other one lowers it, by factors that are in balance where there
    are ``budget`` repeats a batch; it is never below the paper's. Where a budget is not used up,
    as many repeats as ten batches have of it pass before the threshold rises. So the budget goes to the worst batches,
    rather than to the first. And a repeat that would exceed the budget there and then is not made.

    Args:
        k: As for ``LossThreshold``.
        warmup_epochs: Likewise.
        floor: Likewise.
        budget: The most repeats, over base batches begun, at any point of an epoch.
    """

    def __init__(self, k: float, warmup_epochs: int, floor: float, budget: float) -> None:
        super().__init__(k, warmup_epochs, floor)
        self._budget = budget
        self._up, self._down, self._least = strictness_steps(budget)

    def wants_repeat(self, state: State, loss: float, batch: int) -> bool:
        """Whether the loss is above the raised threshold, and the budget allows for it."""
        del batch
        if state.threshold is None:
            return False
        is_above = loss > self._floor + max(1.0, state.strictness) * (state.threshold - self._floor)
        state.strictness = max(self._least, state.strictness * (self._up if is_above else self._down))
        return is_above and state.repeats + 1 <= self._budget * (state.batches + 1)


def threshold_of(options: Options) -> LossThreshold:
    """The criterion that a schedule's options come to."""
    if options.budget is None:
        return LossThreshold(options.k, options.warmup_epochs, options.floor)
    return BudgetedThreshold(options.k, options.warmup_epochs, options.floor, options.budget)


def strictness_steps(budget: float) -> tuple[float, float, float]:
    """How strictness moves: the factor for a visit above the raised threshold, that for one below, and its least."""
    # A tenth: large enough to follow within some dozens of batches, small enough to be steady among single losses.
    return math.exp(0.1), math.exp(-0.1 * budget), math.exp(-budget)


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
