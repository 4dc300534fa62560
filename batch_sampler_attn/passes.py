"""One pass over batches: a batch is offered, its loss comes in, the decision is collected, and only then the next.

Whatever drives a schedule does so through a ``Pass``: a loop around any iterable, a DataLoader with a sampler of ours,
a device. In short, for a driver that decides batch by batch::

    with schedule.open_pass() as current:
        for batch in batches:
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                current.offer()
                yield batch                   # here the user's loop trains, and calls schedule.decide(loss)
                decision = current.collect()
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from batch_sampler_attn import notices
from batch_sampler_attn.epochs import Epochs
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.ranks import MessageKind
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.state import State


class Driver(Protocol):
    """What hands a schedule's batches out by itself, in place of plain iteration.

    Attributes:
        is_in_order: Whether a batch is done with before the next one is begun.
    """

    is_in_order: bool

    def deliver(self, loader: Any) -> Iterator[Any]:
        """One epoch: yield the loader's batches, and each again while the decision is REPEAT."""

    def settle(self, decision: Decision, visits: int) -> None:
        """The loss of the batch that is out was reported, its visit number ``visits``."""

    def skip(self) -> None:
        """The batch that is out is not trained on."""

    def forget_epoch(self) -> None:
        """The epoch in progress begins anew."""


class Phase(enum.Enum):
    """What a pass waits for."""

    BETWEEN_BATCHES = "no batch is out"
    AWAITING_LOSS = "a batch is out"
    DECIDED = "the loss of the batch that is out was reported"
    SKIPPED = "the batch that is out was skipped"
    LEFT = "it did not come to its end"
    OVER = "it came to its end, or the epoch was begun anew otherwise"


class Pass:
    """Keeps batches and losses in step, and refuses what is out of turn.

    As a context manager it is closed at the end: finished if the body came to its end, left if it raised.

    Args:
        epochs: Of the schedule that it is of.
        driver: The schedule's, if it has one.
        is_announced: Whether ranks hear of each batch before it is trained on: the length of the epoch is unknown.

    Attributes:
        phase: What it waits for.
        position: The position of the batch that is out, or was last.
        indices: Its dataset indices, if the driver said them.
    """

    def __init__(self, epochs: Epochs, driver: Driver | None, *, is_announced: bool) -> None:
        self.phase = Phase.BETWEEN_BATCHES
        self.position = epochs.state.position
        self.indices: Sequence[int] | None = None
        self._epochs = epochs
        self._driver = driver
        self._is_announced = is_announced
        self._decision = Decision.ADVANCE

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(finished=kind is None)

    @property
    def may_repeat(self) -> bool:
        """Whether any batch may ever be repeated."""
        return self._epochs.may_ever_repeat

    # The driver's side -----------------------------------------------------------------------------------

    def offer(
        self, position: int | None = None, *, visits: int | None = None, indices: Sequence[int] | None = None
    ) -> None:
        """A batch is about to be yielded.

        Args:
            position: Its position in the epoch; None where batches come in order.
            visits: The visits it has had, where batches do not come in order.
            indices: Its dataset indices, if they are known.

        Raises:
            ProtocolError: If the pass is stale.
        """
        self._check_is_open()
        state = self._epochs.state
        if visits is not None:
            state.visits = visits
        self.position = state.position if position is None else position
        self.indices = indices
        self.phase = Phase.AWAITING_LOSS
        if self._is_announced and not state.visits:
            self._epochs.agreement.notify(MessageKind.BATCH, state.epoch, self.position, 1)

    def collect(self) -> Decision:
        """The decision on the batch that was yielded; ADVANCE, if it was skipped.

        Raises:
            ProtocolError: If there is none yet, or the pass is stale.
        """
        self._check_is_open()
        if self.phase not in (Phase.DECIDED, Phase.SKIPPED):
            state = self._epochs.state
            self._epochs.agreement.notify(MessageKind.REFUSED, state.epoch, self.position, state.visits + 1)
            raise ProtocolError(
                "the next batch was asked for before decide() was told the loss of the last one. Call "
                "schedule.decide(loss) once for each batch, or schedule.skip() for one not to train on. To evaluate, "
                "iterate over the loader that attend() was given. If something between attend() and your loop reads "
                "ahead (a prefetcher, say), put it inside: schedule.attend(prefetcher(loader))"
            )
        self.phase = Phase.BETWEEN_BATCHES
        return self._decision

    def take_over(self, state: State) -> None:
        """Visits were made, and decided on, elsewhere: this is what the epoch's state came to.

        Raises:
            ProtocolError: If the pass is stale.
        """
        self._check_is_open()
        self._epochs.state = state

    def close(self, *, finished: bool, host_reads: int | None = None) -> None:
        """End the pass, and with it the epoch, unless epochs are windows; do nothing if it is over already.

        Args:
            finished: Whether all its batches were done with. If not, the epoch begins anew with the next pass.
            host_reads: For the epoch's summary.

        Raises:
            EmptyEpochError: If there was no batch.
            ProtocolError: If the criterion says that the epoch cannot end here.
        """
        if self.phase in (Phase.LEFT, Phase.OVER):
            return
        self.phase = Phase.OVER if finished else Phase.LEFT
        if not finished:
            return
        epochs = self._epochs
        epochs.account()
        if epochs.options.window is not None:
            return
        total, resumed_at = epochs.state.position, epochs.resumed_at
        last_total = 0 if self._driver is not None else epochs.last_total
        epochs.end(host_reads)
        # Epochs may differ in length, but hardly by just what was behind: trained on, or left out, twice.
        if resumed_at is not None and abs(total - last_total) == resumed_at < last_total:
            notices.other_total_after_resume(total, last_total, resumed_at)

    def _check_is_open(self) -> None:
        if self.phase in (Phase.LEFT, Phase.OVER):
            raise ProtocolError(
                "this iterator is stale: another pass of attend() was begun, the epoch was abandoned, or a state was "
                "loaded since. Iterate over schedule.attend(loader) anew"
            )

    # The schedule's side ---------------------------------------------------------------------------------

    def check_word_is_due(self, word: str) -> None:
        """Refuse a loss, or a skip, that belongs to no batch.

        Args:
            word: What was called, "decide", "report" or "skip".

        Raises:
            ProtocolError: If no batch is waiting for one.
        """
        if self.phase is Phase.SKIPPED:
            raise ProtocolError(f"{word}() was called for a batch that had been skipped; go on to the next batch")
        if self.phase is Phase.DECIDED and word in ("decide", "report"):
            raise ProtocolError(
                f"{word}() was called twice for one batch. Report one loss for each batch that attend() yields; "
                "it yields the batch again by itself when the decision is REPEAT"
            )
        if self.phase is Phase.DECIDED:
            raise ProtocolError(
                f"{word}() was called after decide() had been told this visit's loss. Call it instead of decide(); to "
                "leave a batch that is to be repeated, call it when attend() yields the batch again"
            )
        if self.phase is Phase.BETWEEN_BATCHES:
            raise ProtocolError(f"{word}() was called before attend() had yielded a batch")

    def settle(self, decision: Decision, visits: int) -> None:
        """The loss of the batch that is out was reported."""
        self.phase, self._decision = Phase.DECIDED, decision
        if self._driver is not None:
            self._driver.settle(decision, visits)

    def skip(self) -> None:
        """The batch that is out was skipped."""
        self.phase, self._decision = Phase.SKIPPED, Decision.ADVANCE
        if self._driver is not None:
            self._driver.skip()

    def retire(self) -> None:
        """Another pass begins, or the epoch begins anew: whoever holds this one finds it stale."""
        self.phase = Phase.OVER
