"""A file of lines that one process appends to, and that notices when it is not alone."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import BinaryIO

from batch_sampler_attn.errors import RecordError

# More than a line with the indices of a batch of 65,536 samples takes.
_LONGEST_LINE_BYTES = 1 << 20
_MOST_WAITING_BYTES = 1 << 16


class LineFile:
    """Appends lines to a file; what was there before stays.

    The file is opened for the first line, which reaches the disk at once. From then on its size tells whether somebody
    else writes to it: a second process is found out with the next line of the first.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be written to.
        RecordError: If it ends with half a line that is none of a recorder's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._process = os.getpid()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._size = 0
        self._is_closed = False
        path.open("ab").close()
        _torn_line(path)

    @property
    def is_open(self) -> bool:
        """Whether a line was begun to be written."""
        return self._file is not None

    def open(self) -> bool:
        """Begin to write; tell whether there are lines of an earlier run.

        Raises:
            RecordError: If the file was closed.
        """
        if self._is_closed:
            raise RecordError(f"the recorder of {self._path} was closed; make another one, it appends to the file")
        self._size = _mend_last_line(self._path)
        # Of a fork, the one that writes counts.
        self._process = os.getpid()
        self._file = self._path.open("ab", buffering=0)
        return self._size > 0

    def write(self, line: bytes) -> None:
        """Add a line, which reaches the disk with the next ``flush``, or once there are many.

        Raises:
            OSError: If it cannot be written; the lines that wait are tried again with the next one.
            RecordError: If somebody else wrote to the file.
        """
        self._check_is_alone()
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes > _MOST_WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: If it cannot be written; nothing of it is in the file then.
            RecordError: If somebody else wrote to the file.
        """
        if self._file is None or not self._waiting:
            return
        self._check_is_alone()
        rest = data = b"".join(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size += len(data)
        self._waiting.clear()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Write what waits, and close the file.

        Raises:
            OSError: If it cannot be written.
            RecordError: If somebody else wrote to the file.
        """
        try:
            self.flush()
        finally:
            self._is_closed = True
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def close_if_left(self) -> None:
        """``close`` for a file that nobody closed, where no error would be heard; in a forked process, do nothing."""
        if os.getpid() == self._process:
            with contextlib.suppress(OSError, RecordError):
                self.close()

    def _check_is_alone(self) -> None:
        if self._file is None:
            raise RecordError(f"the recorder of {self._path} was closed; make another one, it appends to the file")
        size = os.fstat(self._file.fileno()).st_size
        if size != self._size:
            raise RecordError(
                f"{self._path} has {size} bytes, and {self._size} when this recorder last wrote to it: another process "
                "or recorder writes to it too. Give each rank and each run a file of its own, such as "
                "f'visits-{rank}.jsonl'"
            )


def _mend_last_line(path: Path) -> int:
    """Give the last line its end, or cut it off if it was not written whole; return the file's size in bytes."""
    torn = _torn_line(path)
    size = path.stat().st_size
    if not torn:
        return size
    with path.open("rb+") as file:
        if is_whole(torn):
            file.seek(size)
            file.write(b"\n")
            return size + 1
        file.truncate(size - len(torn))
    return size - len(torn)


def is_whole(line: bytes) -> bool:
    """Whether nothing is cut off of a line: an object in JSON ends with its bracket."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _torn_line(path: Path) -> bytes:
    """What stands behind the last line's end, if it is a recorder's."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE_BYTES))
        tail = file.read()
    torn = tail[tail.rfind(b"\n") + 1 :]
    # A machine that went down may leave a file with zeros at its end.
    if torn.strip(b"\0") and not torn.startswith(b"{"):
        raise RecordError(
            f"{path} ends with {torn[:40]!r}, which is no recorded visit; give the recorder a file of its own"
        )
    return torn
