"""The protocol between a schedule and its recorders, and the record of one visit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary


class VisitRecord(NamedTuple):
    """One visit.

    Attributes:
        epoch: From 0.
        batch: Position of the batch in its epoch, from 0. It counts from 0 again with each pass over a loader that is
            shorter than ``epoch_length``.
        visit: 1 for the first visit.
        loss: The loss that was reported.
        decision: "repeat" or "advance".
        indices: The batch's dataset indices, as numbers or strings; None without a ``BatchAttentionSampler``.
    """

    epoch: int
    batch: int
    visit: int
    loss: float
    decision: str
    indices: tuple[int, ...] | None = None


class Recorder:
    """Base of all recorders. A subclass overrides the methods that it needs; each does nothing here."""

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        """Called after each decision, with the fields of a ``VisitRecord``."""

    def on_epoch_end(self, summary: EpochSummary) -> None:
        """Called after each epoch."""

    def on_epoch_abandoned(self, epoch: int) -> None:
        """Called when the epoch in progress starts again. Its visits no longer count."""

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        """Called after a saved state is loaded. Visits recorded after that state was saved no longer count.

        Args:
            epoch: The epoch in which the state was saved.
            visits: The number of visits in that epoch before the state was saved.
        """

    def flush(self) -> None:
        """Called when a state is saved: store safely what was recorded so far."""
