"""Visits and summaries in memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from batch_sampler_attn.checkpoint import plain_index
from batch_sampler_attn.passes import Recorder
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary


class VisitRecord(NamedTuple):
    """One visit to a batch.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Position in the epoch, from 0; it restarts with each pass over a loader shorter than ``epoch_length``.
        visit: Number of the visit to the batch, from 1.
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


class Timeline:
    """The visits of one run in order, without those of abandoned epochs and those undone by loading an older state."""

    def __init__(self) -> None:
        self.visits: list[VisitRecord] = []
        # Where the record begins: an epoch, and the number of its visits made before.
        self._begin = (0, 0)
        # Both as of the last visit, if visits were undone since: the next state to be loaded may be newer.
        self._at_last_visit: tuple[list[VisitRecord], tuple[int, int]] | None = None

    def add(self, record: VisitRecord) -> None:
        """Add a visit. A visit of an earlier epoch starts another run, which replaces the one before."""
        if self.visits and record.epoch < self.visits[-1].epoch:
            self._undo([], (0, 0))
        self._at_last_visit = None
        self.visits.append(record)

    def resume(self, epoch: int, made: int) -> bool:
        """Undo what came after ``made`` visits of ``epoch``; return whether the earlier visits are here."""
        visits, begin = self._at_last_visit or (self.visits, self._begin)
        first, end = (bisect_left(visits, number, key=attrgetter("epoch")) for number in (epoch, epoch + 1))
        kept = first + made - (begin[1] if epoch == begin[0] else 0)
        follows_on = visits[first - 1].epoch == epoch - 1 if first else epoch == begin[0]
        if follows_on and first <= kept <= end:
            self._undo(visits[:kept], begin)
        elif not visits or (epoch, made) < begin:
            self._undo([], (epoch, made))
        else:
            return False
        return True

    def _undo(self, kept: list[VisitRecord], begin: tuple[int, int]) -> None:
        self._at_last_visit = self._at_last_visit or ([*self.visits], self._begin)
        self.visits[:], self._begin = kept, begin


class MemoryRecorder(Recorder):
    """Keeps visits and epoch summaries in two lists. Loading an older state removes what came after it from both.

    Attributes:
        visits: One ``VisitRecord`` for each visit.
        summaries: The ``EpochSummary`` of each epoch.
    """

    def __init__(self) -> None:
        self._timeline = Timeline()
        self.visits: list[VisitRecord] = self._timeline.visits
        self.summaries: list[EpochSummary] = []

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        known = None if indices is None else tuple(map(plain_index, indices))
        self._timeline.add(VisitRecord(epoch, batch, visit, loss, decision.value, known))

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._drop_summaries(summary.epoch)
        self.summaries.append(summary)

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._timeline.resume(epoch, 0)

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        self._timeline.resume(epoch, visits)
        self._drop_summaries(epoch)

    def _drop_summaries(self, epoch: int) -> None:
        while self.summaries and self.summaries[-1].epoch >= epoch:
            self.summaries.pop()
