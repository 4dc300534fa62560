"""The control at equal compute: as many updates as Batch-attention made, on batches drawn at random."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence

from batch_sampler_attn.errors import OptionError, ProtocolError
from batch_sampler_attn.rule import Decision, visit
from batch_sampler_attn.schedule import BatchAttentionSchedule


class EqualComputeControl(BatchAttentionSchedule):
    """Repeats just as many batches just as often as a Batch-attention run did, but at random.

    Each epoch's visit counts are dealt to its batches in random order. What Batch-attention gains over this
    is gained by *which* batches it repeats; what this gains over plain training is gained by training more.
    It is used like a schedule; the losses given to ``decide`` are averaged for the summary and decide nothing.

    Args:
        visit_counts: For each epoch, the visits to each batch: ``visit_counts(recorder.visits)``.
        seed: Of the dealing. Batches of an epoch are dealt alike for the same seed.

    Raises:
        OptionError: If a count is below 1 or an epoch has none.
    """

    def __init__(self, visit_counts: Sequence[Sequence[int]], *, seed: int = 0) -> None:
        super().__init__(warmup_epochs=sys.maxsize, max_visits=None)
        for epoch, counts in enumerate(visit_counts):
            if not counts or min(counts) < 1:
                raise OptionError(
                    f"visit_counts[{epoch}] is {list(counts)!r}; every epoch needs a count of at least 1 for each batch"
                )
        self._visit_counts = [list(counts) for counts in visit_counts]
        self._seed = seed
        self._dealt_epoch: int | None = None
        self._dealt: list[int] = []

    def _visit(self, loss: float) -> Decision:
        state = self._state
        planned_visits = self._planned_visits(state.epoch, self._position)
        # Every finite loss is above minus infinity, and none is above no threshold.
        state.threshold = -math.inf if state.visits + 1 < planned_visits else None
        try:
            return visit(self._options, state, loss)
        finally:
            state.threshold = None

    def _planned_visits(self, epoch: int, batch: int) -> int:
        if epoch != self._dealt_epoch:
            if epoch >= len(self._visit_counts):
                raise ProtocolError(f"epoch {epoch} was begun, but visit_counts has {len(self._visit_counts)} epochs")
            self._dealt = self._visit_counts[epoch].copy()
            # A string seeds the same on every platform and Python version.
            random.Random(f"{self._seed}/{epoch}").shuffle(self._dealt)
            self._dealt_epoch = epoch
        if batch >= len(self._dealt):
            raise ProtocolError(f"epoch {epoch} has more batches than the {len(self._dealt)} of visit_counts[{epoch}]")
        return self._dealt[batch]
