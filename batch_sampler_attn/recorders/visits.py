"""A recorded visit, and what recorded visits add up to."""

from __future__ import annotations

from typing import NamedTuple


class VisitRecord(NamedTuple):
    """One visit.

    Attributes:
        epoch: From 0.
        batch: Position of the batch in its epoch, from 0; in its pass over the loader, where a
            ``BatchAttentionSampler`` serves windows that are longer than a pass.
        visit: 1 for the first visit.
        loss: The loss that was reported.
        decision: "repeat" or "advance".
        indices: The batch's dataset indices, where a ``BatchAttentionSampler`` knows them: plain numbers and strings.
    """

    epoch: int
    batch: int
    visit: int
    loss: float
    decision: str
    indices: tuple[int, ...] | None = None


class RepeatedBatch(NamedTuple):
    """How often one batch was repeated over the run.

    Attributes:
        repeats: Visits beyond the first in each epoch, added up.
        batch: Its position in the epoch.
        epochs: The epochs in which it was repeated.
        indices: Its dataset indices, where they were recorded.
    """

    repeats: int
    batch: int
    epochs: tuple[int, ...]
    indices: tuple[int, ...] | None


class RepeatedSample(NamedTuple):
    """How often the batches that a sample was in were repeated.

    Attributes:
        repeats: Visits beyond the first of its batches, added up over the run.
        sample: Its dataset index.
    """

    repeats: int
    sample: int
