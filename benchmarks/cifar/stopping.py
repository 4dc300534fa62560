"""Ending on a TERM signal as on an interrupt: with what is finished recorded."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """A TERM signal came; like ``KeyboardInterrupt`` it is no ``Exception``, so that nothing takes it for an error."""

    # What a shell reports of a process that TERM ended.
    EXIT_STATUS = 128 + signal.SIGTERM


@contextmanager
def term_raises() -> Iterator[None]:
    """While this lasts, TERM raises ``Terminated`` in the main thread; then it does again what it did before.

    So does HUP, which comes when a terminal is closed. A second signal, while what is finished is written, changes
    nothing, and one that the process was started to ignore is ignored still.
    """
    is_ending = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_ending
        if not is_ending:
            is_ending = True
            raise Terminated

    with _handled_by(end):
        yield


@contextmanager
def term_waits() -> Iterator[None]:
    """While this lasts, TERM and HUP wait; then they do what they would have done."""
    came: list[int] = []
    with _handled_by(lambda number, _frame: came.append(number)):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no handlers can be set, nor do any run
        yield
        return
    before = {}
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # not every platform has both
            # None: whoever set it was not Python, and it could not be put back.
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
