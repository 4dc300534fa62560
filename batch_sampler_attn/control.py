"""The control at equal compute: as many updates as Batch-attention made, on batches drawn at random."""

from __future__ import annotations

import json
import operator
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from batch_sampler_attn.ranks import RanksOption
from batch_sampler_attn.criteria import DealtVisits
from batch_sampler_attn.errors import OptionError, StateError, shown
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary


class EqualComputeControl(BatchAttentionSchedule):
    """Repeats just as many batches just as often as a Batch-attention run did, but at random.

    Each epoch's visit counts are dealt to its batches in random order. What Batch-attention gains over this
    is gained by *which* batches it repeats; what this gains over plain training is gained by training more.
    It is used like a schedule; the losses given to ``decide`` are averaged for the summary and decide nothing.

    Args:
        visit_counts: For each epoch, the visits to each batch: ``visit_counts(recorder.visits)``, or the
            ``DeviceLoop.visit_counts`` of each epoch.
        seed: Of the dealing. Batches of an epoch are dealt alike for the same seed.
        ranks: With ranks, ``MeanOverRanks()`` averages the losses of the summary over them. They are dealt alike
            without it, too.

    Raises:
        OptionError: If a count is below 1 or an epoch has none.
    """

    def __init__(self, visit_counts: Sequence[Sequence[int]], *, seed: int = 0, ranks: RanksOption = None) -> None:
        super().__init__(warmup_epochs=sys.maxsize, max_visits=None, ranks=ranks)
        self._visit_counts = [_check_counts(epoch, counts) for epoch, counts in enumerate(visit_counts)]
        self._seed = seed
        self.epochs.criterion = DealtVisits(self._visit_counts, seed)

    def __repr__(self) -> str:
        epochs = len(self._visit_counts)
        return f"<{type(self).__name__}({epochs} epochs, seed={self._seed}), {self.whereabouts()}>"

    def unpack(self, state_dict: object) -> tuple[State, EpochSummary | None]:
        """As the schedule's, for the counts that are here."""
        state, last_summary = super().unpack(state_dict)
        epochs = self._visit_counts
        batches = len(epochs[state.epoch]) if state.epoch < len(epochs) else 0
        if state.epoch > len(epochs) or state.batches > batches:
            raise StateError(
                f"the state is in epoch {state.epoch}, after {state.batches} batches, and visit_counts has "
                f"{len(epochs)} epochs, with {batches} batches in that one; it was changed after it was saved"
            )
        return state, last_summary

    def options_to_save(self) -> dict[str, Any]:
        """The schedule's, and what tells these counts from others."""
        counts = json.dumps(self._visit_counts).encode()
        return {**super().options_to_save(), "seed": self._seed, "visit_counts_crc32": zlib.crc32(counts)}


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
