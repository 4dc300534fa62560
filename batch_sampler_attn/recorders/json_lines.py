"""Visits in a file, one per line: written during training, and read back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from batch_sampler_attn.checkpoint import plain_indices
from batch_sampler_attn.errors import RecordError, warn
from batch_sampler_attn.passes import Recorder
from batch_sampler_attn.recorders.memory import Timeline, VisitRecord
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary

# A recorder's file begins like this; its first line may be incomplete.
_FIRST_LINE = re.compile(rb'\{"epoch": ?\d+, ?"batch": ?\d+, ?"visit": ?\d+,|\{"resumed_epoch": ?\d+,')
_FIRST_LINE_OF_A_RUN = b'{"epoch":0,"batch":0,"visit":1,'
_MOST_WAITING_BYTES = 1 << 16
# A line with the indices of 65,536 samples is shorter.
_LONGEST_LINE_BYTES = 1 << 20


class JsonLinesRecorder(Recorder):
    """Appends each visit to a file, as one JSON object; ``read_visits`` reads the file.

    Lines are written at the end of each epoch, with each saved state, and on ``close``. While they cannot be written,
    such as on a full disk, the recorder keeps them and warns; training continues. A run may append to the file of an
    earlier one, and a copied or unpickled recorder to that of its original.

    A line with ``resumed_epoch`` cancels visits: only the first ``visits`` visits of that epoch count.

    Args:
        path: A new file, or one that a ``JsonLinesRecorder`` wrote. Each rank needs its own.

    Raises:
        RecordError: If ``path`` is not a regular file, or not a recorder's.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if self.path.exists() and not _is_a_record(self.path):
            raise RecordError(f"{self.path} is not a file of recorded visits; give the recorder a file of its own")
        self.path.open("ab").close()
        self._has_begun = False
        self._resumed: tuple[int, int] | None = None
        self._file = _Appender(self.path)
        # A recorder that nobody closes loses no line, just as a Python file loses none.
        weakref.finalize(self, self._file.write_last)

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**vars(self), "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _file=_Appender(state["path"]))
        weakref.finalize(self, self._file.write_last)

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        number = loss if loss - loss == 0 else str(loss)
        line = {"epoch": epoch, "batch": batch, "visit": visit, "loss": number, "decision": decision.value}
        self._add(line if indices is None else {**line, "indices": plain_indices(indices)})

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self.flush()

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._add({"resumed_epoch": epoch, "visits": 0})

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        # Written with the next line, so that the last of several states loaded in a row counts.
        self._resumed = epoch, visits

    def flush(self) -> None:
        try:
            self._file.write()
        except (OSError, RecordError) as error:
            warn(f"visits cannot be written to {self.path}, and training continues: {error}")

    def close(self) -> None:
        """Write the remaining lines, or raise an error if they cannot be written."""
        self._file.write()

    def __enter__(self) -> JsonLinesRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _add(self, line: dict[str, Any]) -> None:
        if not self._has_begun and self._resumed is None and self.path.stat().st_size:
            self._resumed = 0, 0
        self._has_begun = True
        if self._resumed is not None:
            self._file.add({"resumed_epoch": self._resumed[0], "visits": self._resumed[1]})
            self._resumed = None
        if self._file.add(line):
            self.flush()


class _Appender:
    """Lines that wait for the next write. The file is open only during a write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = os.getpid()
        self._waiting: list[bytes] = []
        self._new_bytes = 0
        self._size: int | None = None

    def add(self, line: dict[str, Any]) -> bool:
        """Add a line; return whether it is time to write."""
        self._waiting.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._new_bytes += len(self._waiting[-1])
        return self._new_bytes > _MOST_WAITING_BYTES

    def write(self) -> None:
        # After a failure, the next write waits for as many new bytes: a full disk is not tried at each visit.
        self._new_bytes = 0
        if not self._waiting:
            return
        with self._path.open("ab+", buffering=0) as file:
            size = _mend_last_line(file)
            if self._size not in (None, size):
                self._waiting.clear()
                raise RecordError("another recorder writes to the file too; give each run and each rank its own")
            rest = data = b"".join(self._waiting)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
        self._size = size + len(data)
        self._waiting.clear()

    def write_last(self) -> None:
        """``write`` without errors, since nobody is left to see them. A forked process leaves it to its parent."""
        if os.getpid() == self._process:
            with contextlib.suppress(OSError, RecordError):
                self.write()


def read_visits(path: str | os.PathLike[str]) -> list[VisitRecord]:
    """Read the visits of one run from the file of a ``JsonLinesRecorder``, in the order of training.

    If several runs wrote to the file, the last one counts, with the visits before the state that it resumed from.
    Visits of abandoned epochs and an incomplete last line are omitted.

    Raises:
        RecordError: If another program wrote a line, or a run resumes from visits that are missing.
    """
    timeline = Timeline()
    with Path(path).open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                is_readable = _take(json.loads(text), timeline)
            except (ValueError, KeyError, TypeError):
                is_readable = False
            if not is_readable and text.endswith(b"\n"):
                raise RecordError(
                    f"{path}, line {number}: {text[:80]!r} is not a visit, or resumes from visits that are not above. "
                    "Give each run a file of its own"
                )
    return timeline.visits


def _take(line: dict[str, Any], timeline: Timeline) -> bool:
    """Add a line to the visits; return False if it resumes from visits that are missing."""
    if "resumed_epoch" in line:
        return timeline.resume(line["resumed_epoch"], line["visits"])
    decision, indices = Decision(line["decision"]).value, line.get("indices")
    indices = None if indices is None else tuple(indices)
    timeline.add(VisitRecord(line["epoch"], line["batch"], line["visit"], float(line["loss"]), decision, indices))
    return True


def _is_a_record(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(_LONGEST_LINE_BYTES)
    return _FIRST_LINE.match(first) is not None or _FIRST_LINE_OF_A_RUN.startswith(first)


def _mend_last_line(file: BinaryIO) -> int:
    """End a complete last line, or cut off an incomplete one; return the size of the file in bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_LINE_BYTES))
    tail = file.read()
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return size
    try:
        json.loads(torn)
    except ValueError:
        return file.truncate(size - len(torn))
    return size + file.write(b"\n")
