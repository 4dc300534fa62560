"""Whose turn it is in a pass of ``attend``: a batch goes out, its loss comes in, and only then the next."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.rule import Decision


class Phase(enum.Enum):
    """Where a loss may come from, and when."""

    BY_HAND = "outside a pass, where losses may come at any time"
    BETWEEN_BATCHES = "in a pass, with no batch out"
    AWAITING_LOSS = "in a pass, with a batch out"
    DECIDED = "in a pass, with the loss of the batch that is out reported"
    LEFT = "after a pass that did not come to its end"


# As names of the module they cost no look-up in the enum, which is slow, at every update.
BY_HAND = Phase.BY_HAND
BETWEEN_BATCHES = Phase.BETWEEN_BATCHES
AWAITING_LOSS = Phase.AWAITING_LOSS
DECIDED = Phase.DECIDED
LEFT = Phase.LEFT


class Turns:
    """Keeps batches and losses in step, and refuses what is out of turn.

    Attributes:
        phase: Where the pass is.
        position: The position of the batch that is out; None outside a pass.
        indices: Its dataset indices, if a sampler said them.
    """

    __slots__ = ("_decision", "_token", "_was_skipped", "indices", "phase", "position")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to ``BY_HAND``; a pass that was open is stale from here on."""
        self.phase = BY_HAND
        self.position: int | None = None
        self.indices: Sequence[int] | None = None
        self._token: object | None = None
        self._decision = Decision.ADVANCE
        self._was_skipped = False

    def open(self) -> object:
        """Begin a pass; what it returns stands for the pass from here on."""
        self.reset()
        self.phase = BETWEEN_BATCHES
        self._token = object()
        return self._token

    def offer(self, token: object, position: int, indices: Sequence[int] | None = None) -> None:
        """A batch is about to be yielded.

        Raises:
            ProtocolError: If the pass is stale.
        """
        self._check_current(token)
        self.position, self.indices = position, indices
        self.phase = AWAITING_LOSS

    def check_word_is_due(self, word: str, *, by_hand_too: bool) -> None:
        """Refuse a loss, or a skip, that belongs to no batch.

        Args:
            word: What was called.
            by_hand_too: Whether it may come outside a pass.

        Raises:
            ProtocolError: If no batch is waiting for one.
        """
        if self.phase is DECIDED and self._was_skipped:
            raise ProtocolError(f"{word}() was called for a batch that had been skipped; go on to the next batch")
        if self.phase is DECIDED and word == "decide":
            raise ProtocolError(
                "decide() was called twice for one batch. Report one loss for each batch that attend() yields; "
                "it yields the batch again by itself when the decision is REPEAT"
            )
        if self.phase is DECIDED:
            raise ProtocolError(
                f"{word}() was called after decide() had been told this visit's loss. Call it instead of decide(); to "
                "leave a batch that is to be repeated, call it when attend() yields the batch again"
            )
        if self.phase is BETWEEN_BATCHES:
            raise ProtocolError(f"{word}() was called before attend() had yielded a batch")
        if self.phase is BY_HAND and not by_hand_too:
            raise ProtocolError(
                f"{word}() was called while no batch of the BatchAttentionSampler was out. Iterate over "
                "schedule.attend(loader), with the DataLoader built on that sampler, and report each loss in that loop"
            )

    def settle(self, decision: Decision, *, was_skipped: bool = False) -> None:
        """The loss of the batch that is out was reported, or the batch was skipped."""
        if self.phase is AWAITING_LOSS:
            self._decision = decision
            self._was_skipped = was_skipped
            self.phase = DECIDED

    def collect(self, token: object) -> Decision:
        """The decision on the batch that was yielded.

        Raises:
            ProtocolError: If there is none yet, or the pass is stale.
        """
        self._check_current(token)
        if self.phase is not DECIDED:
            raise ProtocolError(
                "the next batch was asked for before decide() was told the loss of the last one. Call "
                "schedule.decide(loss) once for each batch, or schedule.skip() for one not to train on. To evaluate, "
                "iterate over the loader that attend() was given. If something between attend() and your loop reads "
                "ahead (a prefetcher, say), put it inside: schedule.attend(prefetcher(loader))"
            )
        self.phase = BETWEEN_BATCHES
        return self._decision

    def close(self, token: object, *, finished: bool) -> bool:
        """End a pass; tell whether it was the current one."""
        if self._token is not token:
            return False
        self.reset()
        if not finished:
            self.phase = LEFT
        return True

    def _check_current(self, token: object) -> None:
        if self._token is not token:
            raise ProtocolError(
                "this iterator is stale: another pass of attend() was begun, the epoch was abandoned, or a state was "
                "loaded since. Iterate over schedule.attend(loader) anew"
            )
