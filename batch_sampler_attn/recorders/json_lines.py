"""Visits, written to a file as they are made."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batch_sampler_attn.indices import plain_indices
from batch_sampler_attn.recorders.line_file import LineFile
from batch_sampler_attn.recorders.recorder import Recorder
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary


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
