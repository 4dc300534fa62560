"""What a schedule tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence

from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary


class Recorder:
    """What a schedule tells its recorders. A subclass overrides what it wants to hear of."""

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        """A decision was made; the arguments are the fields of ``VisitRecord``."""

    def on_epoch_end(self, summary: EpochSummary) -> None:
        """An epoch, or a window, came to its end."""

    def on_epoch_abandoned(self, epoch: int) -> None:
        """The visits of the epoch in progress do not count; it begins anew."""

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        """A saved state was loaded: what comes next goes on from there.

        Args:
            epoch: The epoch in which the state was saved.
            visits: The visits of that epoch that had been recorded by then. What was recorded after them, and in later
                epochs, no longer counts.
        """

    def flush(self) -> None:
        """A state is being saved: what was recorded up to now must be safe."""
