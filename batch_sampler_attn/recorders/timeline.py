"""Visits of one run, put together from what several told that went on from each other."""

from __future__ import annotations

from bisect import bisect_left

from batch_sampler_attn.recorders.visits import VisitRecord


class Timeline:
    """The visits of one run: what was rolled back, abandoned or started again is left out.

    Attributes:
        visits: In the order in which they were made, so that epochs never go down.
    """

    def __init__(self) -> None:
        self.visits: list[VisitRecord] = []
        # Where the record begins: in which epoch, after how many of its visits.
        self._begin = (0, 0)
        # Where each visit of the last epoch stands, as far as a second one like it means that it was made again.
        self._places: dict[tuple[int, int], int] = {}
        # What the last step back removed from the end, and where the record began until then.
        self._dropped: list[VisitRecord] = []
        self._dropped_at = 0
        self._dropped_begin = (0, 0)

    def add(self, record: VisitRecord) -> None:
        """A visit; one that was there before was rolled back, with all that came after it."""
        visits = self.visits
        if visits and record.epoch != visits[-1].epoch:
            begin, end = self._bounds(record.epoch)
            self._drop(end)
            self._places = {visits[index][1:3]: index for index in range(begin, end)}
        first = self._places.get(record[1:3])
        if first is not None:
            self._drop(first)
            self._places = {place: index for place, index in self._places.items() if index < first}
        if not visits and record.epoch != self._begin[0]:
            # Nobody said how many visits there were before; without repeats, it is these.
            self._begin = record.epoch, record.batch + record.visit - 1
        self._places[record[1:3]] = len(visits)
        visits.append(record)

    def has_in_last_epoch(self, record: VisitRecord) -> bool:
        """Whether the epoch in progress has such a visit already, in this pass over the loader."""
        return bool(self.visits) and record.epoch == self.visits[-1].epoch and record[1:3] in self._places

    def begin_pass(self) -> None:
        """Positions begin anew, within an epoch."""
        self._places.clear()

    def abandon(self, epoch: int) -> None:
        """The epoch begins anew."""
        self._drop(self._bounds(epoch)[0])
        self._begin = min(self._begin, (epoch, 0))
        self._places.clear()

    def go_on(self, epoch: int, made: int) -> bool:
        """The run goes on from a state with ``made`` visits in its epoch; tell whether what it goes on from is here."""
        self._places.clear()
        end = self._end_of(epoch, made)
        if end is None and self._dropped:
            # The state may be older than the last step back, such as one that was saved before its epoch was abandoned.
            here, here_begin = self.visits[self._dropped_at :], self._begin
            self.visits[self._dropped_at :], self._begin = self._dropped, self._dropped_begin
            end = self._end_of(epoch, made)
            if end is None:
                self.visits[self._dropped_at :], self._begin = here, here_begin
        if end is not None:
            self._drop(end)
        elif not self.visits or (epoch, made) < self._begin:
            self._drop(0)
            self._begin = epoch, made
        else:
            return False
        return True

    def _end_of(self, epoch: int, made: int) -> int | None:
        """How many visits there are up to the one that was the ``made``-th of its epoch; None if it is not here."""
        first, end = self._bounds(epoch)
        kept = made - self._begin[1] if epoch == self._begin[0] else made
        is_joined = self.visits[first - 1].epoch == epoch - 1 if first else epoch == self._begin[0]
        return first + kept if is_joined and 0 <= kept <= end - first else None

    def _bounds(self, epoch: int) -> tuple[int, int]:
        """Where the visits of an epoch begin and end."""

        def epoch_of(record: VisitRecord) -> int:
            return record.epoch

        return bisect_left(self.visits, epoch, key=epoch_of), bisect_left(self.visits, epoch + 1, key=epoch_of)

    def _drop(self, begin: int) -> None:
        if begin < len(self.visits):
            # Until the next step back, what is in front of these stays as it is.
            self._dropped_at, self._dropped, self._dropped_begin = begin, self.visits[begin:], self._begin
            del self.visits[begin:]
