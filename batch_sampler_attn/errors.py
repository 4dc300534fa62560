"""The package's errors and warnings, and helpers for their messages."""

from __future__ import annotations

import sys
import warnings

STALE = (
    "this iterator is stale: another pass of attend() began, the epoch was abandoned, or a state was loaded since. "
    "Iterate over attend(loader) again"
)

_LONGEST_REPR = 120

_PACKAGE = __name__.partition(".")[0]


class BatchAttentionError(Exception):
    """Base of all errors of this package."""


class OptionError(BatchAttentionError, ValueError):
    """An option has a value that is not allowed."""


class LossError(BatchAttentionError, TypeError):
    """A loss is not one real number, or losses of samples do not fit their batch."""


class NonfiniteLossError(BatchAttentionError, ValueError):
    """A loss is NaN or infinite while ``nonfinite="raise"``. The state is unchanged."""


class ProtocolError(BatchAttentionError, RuntimeError):
    """Batches were requested, or losses were reported, in the wrong order."""


class BatchChangedError(ProtocolError):
    """The last visit changed its batch in place, so a repeat would train on different data."""


class EmptyEpochError(BatchAttentionError, ValueError):
    """An epoch ended without a single batch."""


class StateError(BatchAttentionError, ValueError):
    """A saved state cannot be loaded. Nothing was changed."""


class RanksDivergedError(BatchAttentionError, RuntimeError):
    """Ranks that train together are at different visits, or differ in options, state or epoch length."""


class RankTimeoutError(BatchAttentionError, TimeoutError):
    """Another rank did not reach the same call in time."""


class RankLostError(BatchAttentionError, ConnectionError):
    """The connection to another rank was lost: its process has ended, or the network has failed."""


class RecordError(BatchAttentionError, ValueError):
    """Recorded visits are missing, or their file cannot be used."""


class DeviceLoopError(BatchAttentionError, RuntimeError):
    """The device loop cannot capture the update as a CUDA graph."""


class BatchAttentionWarning(UserWarning):
    """Training continues, but something in the losses or in the loop deserves a look."""


def warn(message: str) -> None:
    """Issue a ``BatchAttentionWarning`` that points to the user's code rather than to this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, BatchAttentionWarning, stacklevel=level)


def plural(number: int, one: str, many: str) -> str:
    """A number with its noun: "1 batch", "2 batches"."""
    return f"{number} {one if number == 1 else many}"


def short_repr(value: object) -> str:
    """``repr(value)`` for a message: truncated, and never raising an error."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, or a user's broken __repr__
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST_REPR else f"{text[: _LONGEST_REPR - 3]}..."
