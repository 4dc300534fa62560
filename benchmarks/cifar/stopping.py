"""Ending on a TERM signal as on an interrupt: with what is finished recorded."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """A TERM signal came; like ``KeyboardInterrupt`` it is no ``Exception``, so that nothing takes it for an error."""

    # What a shell reports of a process that TERM ended.
    EXIT_STATUS = 128 + signal.SIGTERM


@contextmanager
def term_raises() -> Iterator[None]:
    """While this lasts, TERM raises ``Terminated`` in the main thread; then it does again what it did before.

    A second TERM, while what is finished is written, changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_ending = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_ending
        if not is_ending:
            is_ending = True
            raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
