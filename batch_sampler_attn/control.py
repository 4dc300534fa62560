"""The control at equal compute: as many updates as Batch-attention made, on batches drawn at random."""

from __future__ import annotations

import json
import operator
import sys
import zlib
from collections.abc import Sequence

from batch_sampler_attn.errors import OptionError, short_repr
from batch_sampler_attn.ranks import RanksOption
from batch_sampler_attn.rule import RandomVisits
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of


class EqualComputeControl(BatchAttentionSchedule):
    """Repeats random batches: as many, and as often, as a Batch-attention run did.

    Batch-attention's gain over this control comes from *which* batches it repeats; the control's gain over plain
    training comes from more training. Use it like a schedule: losses are averaged for the summary and decide nothing.

    Args:
        visit_counts: For each epoch, the visits to each batch: ``visit_counts(recorder.visits)``, or the
            ``DeviceLoop.visit_counts`` of each epoch.
        seed: Seed of the random order; the same seed gives the same visits in every run.
        ranks: ``MeanOverRanks()`` averages the losses of the summary over ranks, which draw the same visits anyway.

    Raises:
        OptionError: If a count is below 1 or an epoch has none.
    """

    def __init__(self, visit_counts: Sequence[Sequence[int]], *, seed: int = 0, ranks: RanksOption = None) -> None:
        super().__init__(warmup_epochs=sys.maxsize, max_visits=None, ranks=ranks)
        counts = [_checked_counts(epoch, epoch_counts) for epoch, epoch_counts in enumerate(visit_counts)]
        passes = passes_of(self)
        passes.criterion = RandomVisits(counts, seed)
        fingerprint = zlib.crc32(json.dumps(counts).encode())
        passes.saved_options = {**passes.saved_options, "seed": seed, "visit_counts_crc32": fingerprint}
        self._name = f"{type(self).__name__}({len(counts)} epochs, seed={seed})"


def _checked_counts(epoch: int, counts: Sequence[int]) -> list[int]:
    try:
        checked = [operator.index(count) for count in counts]
    except TypeError:  # not a sequence, or not of whole numbers
        checked = []
    if not checked or min(checked) < 1:
        raise OptionError(
            f"visit_counts[{epoch}] is {short_repr(counts)}; every epoch needs a whole number of at least 1 for each "
            "batch"
        )
    return checked
