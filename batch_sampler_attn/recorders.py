"""What may be switched on to watch a schedule: a record of visits, and TensorBoard curves.

A recorder of your own is a subclass of ``Recorder``.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch_sampler_attn.errors import StateError
from batch_sampler_attn.line_file import LineFile
from batch_sampler_attn.rule import Decision, EpochSummary
from batch_sampler_attn.tickets import plain_indices
from batch_sampler_attn.timeline import Timeline
from batch_sampler_attn.visit_log import (
    RepeatedBatch,
    RepeatedSample,
    VisitRecord,
    most_repeated,
    most_repeated_samples,
    read_visits,
    visit_counts,
)

__all__ = [
    "JsonLinesRecorder",
    "MemoryRecorder",
    "Recorder",
    "RepeatedBatch",
    "RepeatedSample",
    "TensorBoardRecorder",
    "VisitRecord",
    "most_repeated",
    "most_repeated_samples",
    "read_visits",
    "visit_counts",
]


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


class MemoryRecorder(Recorder):
    """Keeps every visit and every summary in lists.

    After an older state was loaded, they hold what came before it and what comes then.

    Attributes:
        visits: One ``VisitRecord`` a visit.
        summaries: One ``EpochSummary`` an epoch.
    """

    def __init__(self) -> None:
        self._timeline = Timeline()
        self.visits: list[VisitRecord] = self._timeline.visits
        self.summaries: list[EpochSummary] = []

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        record = VisitRecord(epoch, batch, visit, loss, decision.value, _as_recorded(indices))
        if self._timeline.has_in_last_epoch(record):
            self._timeline.begin_pass()
        self._timeline.add(record)

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._forget_summaries(summary.epoch)
        self.summaries.append(summary)

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._timeline.abandon(epoch)

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        self._timeline.go_on(epoch, visits)
        self._forget_summaries(epoch)

    def _forget_summaries(self, epoch: int) -> None:
        while self.summaries and self.summaries[-1].epoch >= epoch:
            self.summaries.pop()


class JsonLinesRecorder(Recorder):
    """Appends one JSON object a visit to a file; ``read_visits`` reads it back.

    A loss that is not finite is written as the string "nan", "inf" or "-inf", since JSON has no such numbers;
    ``float`` takes them all. Lines reach the disk at the end of each epoch, with each saved state, and on ``close``.

    Besides visits there are lines that say what no longer counts: ``abandoned_epoch``; ``resumed_epoch`` with the
    ``visits`` of that epoch that do count, where a run goes on from a saved state, or begins in a file that has lines
    of an earlier one; ``another_pass``, where positions begin anew within an epoch.

    Args:
        path: The file. What an earlier run wrote to it stays; a last line that was cut off is removed.

    Raises:
        RecordError: If it is not a recorder's file; from ``decide``, if another process or recorder writes to it too.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = LineFile(self.path)
        # A recorder that nobody closes loses no line, as a file of Python's does not.
        weakref.finalize(self, self._file.close_if_left)
        self._loaded: tuple[int, int] | None = None
        self._epoch = -1
        self._made: set[tuple[int, int]] = set()

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        line: dict[str, Any] = {
            "epoch": epoch,
            "batch": batch,
            "visit": visit,
            "loss": loss if -float("inf") < loss < float("inf") else str(loss),
            "decision": decision.value,
        }
        if indices is not None:
            line["indices"] = plain_indices(indices)
        is_first = not self._file.is_open
        has_earlier_run = is_first and self._file.open()
        is_anew = (epoch, batch, visit) == (0, 0, 1) and (has_earlier_run or self._epoch > 0)
        if is_anew and self._loaded is None:
            self._loaded = 0, 0
        self._write_what_was_loaded()
        if epoch != self._epoch:
            self._epoch = epoch
            self._made.clear()
        elif (batch, visit) in self._made:
            self._made.clear()
            self._write({"another_pass": epoch})
        self._made.add((batch, visit))
        self._write(line)
        if is_first:
            # Who else writes to the file can see it from now on.
            self._file.flush()

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._file.flush()

    def on_epoch_abandoned(self, epoch: int) -> None:
        if not self._file.is_open:
            self._file.open()
        self._write_what_was_loaded()
        self._made.clear()
        self._write({"abandoned_epoch": epoch})

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        # Written with the next visit: a state that is replaced by another, before any, changes nothing.
        self._loaded = epoch, visits

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def __enter__(self) -> JsonLinesRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write_what_was_loaded(self) -> None:
        if self._loaded is not None:
            epoch, visits = self._loaded
            self._write({"resumed_epoch": epoch, "visits": visits})
            self._loaded = None
            self._made.clear()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


class TensorBoardRecorder(Recorder):
    """Writes each epoch's summary as scalars named ``batch_attention/...``.

    After an older state was loaded, epochs are written again; in a new process, ``SummaryWriter(purge_step=epoch)``
    hides their first points.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and ``flush``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_epoch_end(self, summary: EpochSummary) -> None:
        for name, value in summary.as_dict().items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(f"batch_attention/{name}", value, summary.epoch)

    def flush(self) -> None:
        self._writer.flush()


def _as_recorded(indices: Sequence[Any] | None) -> tuple[Any, ...] | None:
    if indices is None:
        return None
    try:
        return tuple(plain_indices(indices))
    except StateError:
        # Keys of other kinds than numbers and strings can be kept, though not saved.
        return tuple(indices)
