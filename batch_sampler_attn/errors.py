"""Every error and warning that the package raises on purpose."""

from __future__ import annotations

_LONGEST_SHOWN = 120


class BatchAttentionError(Exception):
    """Base of all errors of this package."""


class OptionError(BatchAttentionError, ValueError):
    """An option was given a value that is not allowed."""


class LossError(BatchAttentionError, TypeError):
    """A loss is not one real number."""


class NonfiniteLossError(BatchAttentionError, ValueError):
    """A loss is NaN or infinite while ``nonfinite="raise"``. The state is as before the call."""


class ProtocolError(BatchAttentionError, RuntimeError):
    """Batches were asked for or losses were reported out of turn."""


class BatchChangedError(ProtocolError):
    """A batch that is to be repeated was changed in place by its last visit: a repeat would train on something else."""


class EmptyEpochError(BatchAttentionError, ValueError):
    """An epoch ended without a single batch."""


class StateError(BatchAttentionError, ValueError):
    """A saved state cannot be loaded here. Nothing of it was assigned."""


class RanksDivergedError(BatchAttentionError, RuntimeError):
    """Ranks that train together are not at the same visit, or differ in options, state or length of the epoch."""


class RankTimeoutError(BatchAttentionError, TimeoutError):
    """Another rank did not come to the same call in time."""


class RankLostError(BatchAttentionError, ConnectionError):
    """The connection to another rank is gone: its process has ended, or the network has failed."""


class RecordError(BatchAttentionError, ValueError):
    """A file of recorded visits cannot be read."""


class DeviceLoopError(BatchAttentionError, RuntimeError):
    """The device loop cannot train as asked.

    Until updates are captured (on the CPU: until the cursor was first read), everything is as before the call; later,
    the weights are where the last update left them.
    """


class BatchAttentionWarning(UserWarning):
    """Training goes on, but something in the losses or in the loop deserves a look."""


def counted(number: int, one: str, many: str) -> str:
    """A number with its noun: "1 batch", "2 batches"."""
    return f"{number} {one if number == 1 else many}"


def shown(value: object) -> str:
    """``repr(value)`` for a message: short, and without an error of its own."""
    try:
        text = repr(value)
    except Exception:  # an integer of too many digits, or a repr of the user's that does not work
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def length_of(loader: object) -> int | None:
    """``len(loader)``; None if it has none."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None
