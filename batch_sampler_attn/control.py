"""The control at equal compute: as many updates as Batch-attention made, on batches drawn at random."""

from __future__ import annotations

import json
import math
import operator
import random
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from batch_sampler_attn.errors import OptionError, ProtocolError, StateError, shown
from batch_sampler_attn.rule import Decision, EpochSummary, State, visit
from batch_sampler_attn.schedule import BatchAttentionSchedule


class EqualComputeControl(BatchAttentionSchedule):
    """Repeats just as many batches just as often as a Batch-attention run did, but at random.

    Each epoch's visit counts are dealt to its batches in random order. What Batch-attention gains over this
    is gained by *which* batches it repeats; what this gains over plain training is gained by training more.
    It is used like a schedule; the losses given to ``decide`` are averaged for the summary and decide nothing.

    Args:
        visit_counts: For each epoch, the visits to each batch: ``visit_counts(recorder.visits)``, or the
            ``DeviceLoop.visit_counts`` of each epoch.
        seed: Of the dealing. Batches of an epoch are dealt alike for the same seed.

    Raises:
        OptionError: If a count is below 1 or an epoch has none.
    """

    def __init__(self, visit_counts: Sequence[Sequence[int]], *, seed: int = 0) -> None:
        super().__init__(warmup_epochs=sys.maxsize, max_visits=None)
        self._visit_counts = [_check_counts(epoch, counts) for epoch, counts in enumerate(visit_counts)]
        self._seed = seed
        self._dealt_epoch: int | None = None
        self._dealt: list[int] = []

    def _visit(self, loss: float) -> Decision:
        state = self._state
        is_last = state.visits + 1 >= self._planned_visits(state.epoch, self._dealt_position)
        if not is_last and not math.isfinite(loss):
            # The rule would advance; the control repeats as often as planned whatever the loss is.
            state.nonfinite_losses += 1
            state.visits += 1
            state.repeats += 1
            return Decision.REPEAT
        # Every finite loss is above minus infinity, and none is above no threshold.
        state.threshold = None if is_last else -math.inf
        try:
            return visit(self._options, state, loss)
        finally:
            state.threshold = None

    def _end_epoch(self, host_reads: int | None = None) -> EpochSummary:
        state = self._state
        if state.batches and state.position < len(self._dealt):
            raise ProtocolError(
                f"epoch {state.epoch} ended after {state.batches} batches, but visit_counts[{state.epoch}] has "
                f"{len(self._dealt)}; use the data and the batch size of the run that the counts are of"
            )
        return super()._end_epoch(host_reads)

    @property
    def _dealt_position(self) -> int:
        """Which of the epoch's counts the batch that is out has.

        A skipped batch takes none away; with deferred repeats, where batches are not done with in order, its own.
        """
        is_deferred = self._sampler is not None and self._sampler.repeats == "deferred"
        return self._position if is_deferred else self._state.batches

    def __repr__(self) -> str:
        epochs = len(self._visit_counts)
        return f"<{type(self).__name__}({epochs} epochs, seed={self._seed}), {self._whereabouts()}>"

    def _unpack(self, state_dict: object) -> tuple[State, EpochSummary | None]:
        state, last_summary = super()._unpack(state_dict)
        epochs = self._visit_counts
        batches = len(epochs[state.epoch]) if state.epoch < len(epochs) else 0
        if state.epoch > len(epochs) or state.batches > batches:
            raise StateError(
                f"the state is in epoch {state.epoch}, after {state.batches} batches, and visit_counts has "
                f"{len(epochs)} epochs, with {batches} batches in that one; it was changed after it was saved"
            )
        return state, last_summary

    def _options_to_save(self) -> dict[str, Any]:
        counts = json.dumps(self._visit_counts).encode()
        return {**super()._options_to_save(), "seed": self._seed, "visit_counts_crc32": zlib.crc32(counts)}

    def _planned_visits(self, epoch: int, batch: int) -> int:
        dealt = self._deal(epoch)
        if batch >= len(dealt):
            raise ProtocolError(f"epoch {epoch} has more batches than the {len(dealt)} of visit_counts[{epoch}]")
        return dealt[batch]

    def _deal(self, epoch: int) -> list[int]:
        """The visits to each batch of an epoch, as they are dealt."""
        if epoch != self._dealt_epoch:
            if epoch >= len(self._visit_counts):
                raise ProtocolError(f"epoch {epoch} was begun, but visit_counts has {len(self._visit_counts)} epochs")
            self._dealt = self._visit_counts[epoch].copy()
            # A string seeds the same on every platform and Python version.
            random.Random(f"{self._seed}/{epoch}").shuffle(self._dealt)
            self._dealt_epoch = epoch
        return self._dealt


def _check_counts(epoch: int, counts: Sequence[int]) -> list[int]:
    try:
        checked = [operator.index(count) for count in counts]
    except TypeError:  # not a sequence, or not of whole numbers
        checked = []
    if not checked or min(checked) < 1:
        raise OptionError(
            f"visit_counts[{epoch}] is {shown(counts)}; every epoch needs a whole number of at least 1 for each batch"
        )
    return checked
