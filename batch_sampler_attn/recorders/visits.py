"""One recorded visit, and the visits of one run."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple


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


class Timeline:
    """The visits of one run in order, without those that an abandoned epoch or an older state has taken back."""

    def __init__(self) -> None:
        self.visits: list[VisitRecord] = []
        # Where the record begins: an epoch, and how many of its visits came before.
        self._begin = (0, 0)
        # Both as they were at the last visit, if some were taken back since: a state may be newer than that.
        self._at_last_visit: tuple[list[VisitRecord], tuple[int, int]] | None = None

    def add(self, record: VisitRecord) -> None:
        """Add a visit. One of an earlier epoch is the first of another run, which counts alone."""
        if self.visits and record.epoch < self.visits[-1].epoch:
            self._take_back([], (0, 0))
        self._at_last_visit = None
        self.visits.append(record)

    def abandon(self, epoch: int) -> None:
        """Take back the visits of an epoch that starts again."""
        first = bisect_left(self.visits, epoch, key=_epoch_of)
        self._take_back(self.visits[:first], min(self._begin, (epoch, 0)))

    def resume(self, epoch: int, made: int) -> bool:
        """Take back what came after ``made`` visits of ``epoch``; return whether the visits before are here."""
        visits, begin = self._at_last_visit or (self.visits, self._begin)
        first, end = (bisect_left(visits, number, key=_epoch_of) for number in (epoch, epoch + 1))
        kept = first + made - (begin[1] if epoch == begin[0] else 0)
        follows_on = visits[first - 1].epoch == epoch - 1 if first else epoch == begin[0]
        if follows_on and first <= kept <= end:
            self._take_back(visits[:kept], begin)
        elif not visits or (epoch, made) < begin:
            self._take_back([], (epoch, made))
        else:
            return False
        return True

    def _take_back(self, kept: list[VisitRecord], begin: tuple[int, int]) -> None:
        self._at_last_visit = self._at_last_visit or ([*self.visits], self._begin)
        self.visits[:], self._begin = kept, begin


def _epoch_of(record: VisitRecord) -> int:
    return record.epoch
