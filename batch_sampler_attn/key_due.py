"""Telling, in a hand-written loop, whether a repeat that is due is heeded."""

from __future__ import annotations

from batch_sampler_attn.errors import ProtocolError, shown
from batch_sampler_attn.rule import Decision


class KeyDue:
    """The user's key of the batch that is to be repeated, if one was given."""

    def __init__(self) -> None:
        self._due: tuple[int, object] | None = None

    @property
    def is_due(self) -> bool:
        """Whether a batch with a key is to be repeated."""
        return self._due is not None

    def clear(self) -> None:
        """No repeat is due."""
        self._due = None

    def note(self, position: int, key: object, decision: Decision) -> None:
        """The batch at ``position`` was decided on."""
        self._due = (position, key) if key is not None and decision is Decision.REPEAT else None

    def check(self, position: int, key: object) -> None:
        """Refuse the loss of another batch than the one that is to be repeated.

        Raises:
            ProtocolError: If it is another one's.
        """
        if key is None or self._due is None:
            return
        due_position, due = self._due
        if due_position == position and not _is_same(key, due):
            raise ProtocolError(
                f"the last decision was REPEAT for batch {shown(due)}, and now the loss of batch {shown(key)} was "
                "reported. Train on the same batch until the decision is ADVANCE; to give it up, after running out of "
                "memory, say, call schedule.skip() before the next batch"
            )


def _is_same(key: object, other: object) -> bool:
    """Whether two keys are equal; arrays that are not the same one are not compared, and are others."""
    try:
        return key is other or bool(key == other)
    except Exception:  # whatever an array of several elements raises when asked for its truth
        return False
