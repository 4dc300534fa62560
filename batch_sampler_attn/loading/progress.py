"""Where every batch of a sampler's epoch is: still to come, in flight, pending, or done with.

A batch is *in flight* from when the loader takes its indices until the loss of its visit is reported, and
*pending* from a REPEAT until it is handed out, or fetched, again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import ProtocolError, StateError, shown
from batch_sampler_attn.indices import are_plain, plain_indices
from batch_sampler_attn.loading.base_batches import BaseBatches
from batch_sampler_attn.loading.tickets import Ticket, pack_tickets, unpack_tickets
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.shards import unpack_shard

# A StatefulDataLoader may make one for its own state, and attend() one more than was needed.
_MOST_VAIN_ITERATORS = 3


class EpochProgress:
    """One epoch's batches on their way.

    Args:
        base: The base batches.
        is_immediate: Whether a repeat is fetched at once, rather than handed out to the loader again.

    Attributes:
        position: Base batches handed out so far.
        epoch_generator: The state of the generator that the epoch's order was drawn from, if there is one.
        flight: Handed out, and not settled; first in, first out.
        pending: To be repeated.
        begun: After how many epochs, and batches of the next, the pass was begun; without a window, these are none.
        limit: Base batches of the epoch, where the loader takes fewer than there are; None for all of them.
        asked_by: The thread on which the loader's present iterator asked for its first batch.
        was_asked_in_vain: Whether the loader's present iterator was told that there is no batch left.
    """

    def __init__(self, base: BaseBatches, *, is_immediate: bool) -> None:
        self._base = base
        self._is_immediate = is_immediate
        # Whose indices there are in flight and pending: a state may have been saved on another rank.
        self._shard = base.rank_shard
        self.position = 0
        self.epoch_generator: str | None = None
        self.flight: deque[Ticket] = deque()
        self.pending: deque[Ticket] = deque()
        self.begun = (0, 0)
        self.limit: int | None = None
        self.asked_by: int | None = None
        self.was_asked_in_vain = False
        # Iterators in a row that were told so from the first.
        self._vain_iterators = 0
        # In flight when a state was saved: these are handed out again before anything else.
        self._to_resend: deque[Ticket] = deque()
        self._batches: Iterator[list[Any]] | None = None
        self._is_exhausted = False
        self._last_base_batch: list[Any] | None = None
        self._asking: object | None = None

    @property
    def is_fetch_due(self) -> bool:
        """Whether the next batch is an immediate repeat."""
        return self._is_immediate and bool(self.pending)

    @property
    def starts_loader_anew(self) -> bool:
        """Whether the run would go on by beginning to iterate over the loader: for an epoch, or for late repeats."""
        is_draining = not self._is_immediate and self._is_exhausted and bool(self.pending)
        return self.position == 0 or (is_draining and not self.flight and not self._to_resend)

    @property
    def is_over(self) -> bool:
        """Whether every base batch of the epoch has been handed out, as far as can be known."""
        return self._is_exhausted or self.position in (self.limit, self._base.length)

    def hand_out(self, asking: object) -> list[Any]:
        """Indices for the loader to fetch. Never blocks: the loader asks on the thread that trains.

        Args:
            asking: The loader's iterator over the sampler.
        """
        if asking is not self._asking:
            # A StatefulDataLoader that was saved between epochs makes an iterator, which takes its first batches,
            # and discards it for another.
            self._to_resend.extendleft(reversed(self.flight))
            self.flight.clear()
            self._asking = asking
            self.asked_by = threading.get_ident()
            self.was_asked_in_vain = False
        if self._to_resend:
            ticket = self._to_resend.popleft()
        elif self.pending and not self._is_immediate:
            ticket = self.pending.popleft()
        else:
            try:
                ticket = Ticket(self.position, 0, self._next_base_batch())
            except StopIteration:
                self._note_vain_question()
                raise
            self.position += 1
        self._vain_iterators = 0
        self.flight.append(ticket)
        return ticket.to_fetch(self.begun)

    def _note_vain_question(self) -> None:
        self._vain_iterators += not self.was_asked_in_vain
        self.was_asked_in_vain = True
        if self._vain_iterators > _MOST_VAIN_ITERATORS:
            raise ProtocolError(
                "the loader begins anew whenever the BatchAttentionSampler has no batch left, and never ends itself, "
                "so that no epoch would. Give attend() the DataLoader, with persistent_workers=True, in place of a "
                "generator that cycles through it, or of a loader that keeps one iterator for all epochs, such as "
                "timm's MultiEpochsDataLoader"
            )

    def out(self) -> Ticket:
        """The ticket of the batch that is about to be yielded.

        Raises:
            ProtocolError: If the loader yielded what it was not given.
        """
        if self.is_fetch_due:
            return self.pending[0]
        if not self.flight:
            raise ProtocolError(
                "the loader yielded a batch that it did not take from this BatchAttentionSampler in this epoch. Either "
                "it was not built with DataLoader(dataset, batch_sampler=sampler), or its iterator was made before the "
                "epoch, as timm's MultiEpochsDataLoader does and loaders that read ahead when they are constructed: "
                "use a DataLoader with persistent_workers=True in their place. With a StatefulDataLoader, ask for "
                "loader.state_dict() only once attend() has begun"
            )
        return self.flight[0]

    def settle(self, decision: Decision, visits: int) -> None:
        """The loss of the batch that is out was reported, its visit number ``visits``."""
        ticket = self.let_go()
        if decision is Decision.REPEAT:
            self.pending.append(ticket._replace(visits=visits))

    def let_go(self) -> Ticket:
        """The batch that is out is on its way no more; what its ticket was."""
        return self.pending.popleft() if self.is_fetch_due else self.flight.popleft()

    def go_on(self) -> None:
        """Draw the order of a loaded epoch again, if that had to wait until the epoch was begun.

        Raises:
            StateError: If it is another order.
        """
        if self.position > 0 and self._batches is None:
            assert self._last_base_batch is not None
            known: dict[int, list[Any] | None] = {
                ticket.position: ticket.indices for ticket in (*self._to_resend, *self.pending)
            }
            known[self.position - 1] = self._last_base_batch
            is_another_ranks = self._shard != self._base.rank_shard
            if is_another_ranks:
                known = dict.fromkeys(known)
            self._batches = self._base.resumed(
                self.epoch_generator, self.position, known, is_exhausted=self._is_exhausted
            )
            if is_another_ranks:
                self._take_indices({position: batch or [] for position, batch in known.items()})

    def _take_indices(self, drawn: dict[int, list[Any]]) -> None:
        """Have this rank's batches on their way, where another rank's were."""
        self._to_resend = deque(ticket._replace(indices=drawn[ticket.position]) for ticket in self._to_resend)
        self.pending = deque(ticket._replace(indices=drawn[ticket.position]) for ticket in self.pending)
        self._last_base_batch = drawn[self.position - 1]
        self._shard = self._base.rank_shard

    def _next_base_batch(self) -> list[Any]:
        if self._is_exhausted or self.position == self.limit:
            raise StopIteration
        if self._batches is None:
            self._batches, self.epoch_generator = self._base.begin_epoch()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._is_exhausted = True
            raise
        self._last_base_batch = batch
        return batch

    def __getstate__(self) -> dict[str, Any]:
        # The order cannot be copied while it is drawn; it is drawn again when the epoch goes on.
        return {**vars(self), "_batches": None, "_asking": None}

    # Saving and loading --------------------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """The progress as JSON types."""
        packed = {
            "epoch_generator": self.epoch_generator,
            "position": self.position,
            "is_exhausted": self._is_exhausted,
            "last_base_batch": None if self._last_base_batch is None else plain_indices(self._last_base_batch),
            "flight": pack_tickets([*self.flight, *self._to_resend]),
            "pending": pack_tickets([*self.pending]),
            "begun": [*self.begun],
        }
        return {**packed, "shard": [*self._shard]} if self._shard.ranks > 1 else packed

    @classmethod
    def unpack(
        cls, base: BaseBatches, packed: dict[str, Any], *, is_immediate: bool, batches_done: int | None
    ) -> EpochProgress:
        """The progress that ``pack`` packed, checked whole.

        Args:
            base: The base batches; their order is drawn again, which tells whether they are the same.
            packed: With the keys of ``pack``, and more.
            is_immediate: As in the constructor.
            batches_done: How many batches are behind, skipped ones too; None where a window has cut their count.

        Raises:
            StateError: If something in it is damaged, or the base batches are others. Nothing has changed then.
        """
        progress = cls(base, is_immediate=is_immediate)
        position = progress.position = checkpoint.check_count("position", packed["position"])
        is_exhausted, last_base_batch = packed["is_exhausted"], packed["last_base_batch"]
        if not isinstance(is_exhausted, bool):
            raise StateError(f"is_exhausted is {shown(is_exhausted)} in the state; it must be true or false")
        if not (are_plain(last_base_batch) if position else last_base_batch is None):
            raise StateError(f"last_base_batch is {shown(last_base_batch)} at position {position} of the state")
        begun = packed["begun"]
        if not isinstance(begun, list) or len(begun) != 2:
            raise StateError(f"begun is {shown(begun)} in the state; it must be [epochs, batches]")
        epochs, batches = (checkpoint.check_count("a number in begun", number) for number in begun)
        progress.begun = epochs, batches
        flight = unpack_tickets("flight", packed["flight"], position)
        pending = unpack_tickets("pending", packed["pending"], position, least_visits=1)
        if is_immediate and len(pending) > 1:
            raise StateError(f"the state has {len(pending)} pending repeats, but an immediate repeat is the only one")
        if "shard" in packed:
            progress._shard = unpack_shard(packed["shard"], base.rank_shard, is_in_epoch=position > 0)
        _check_every_batch_is_somewhere(batches_done, [*flight, *pending], position)
        for ticket in (*flight, *pending):
            if ticket.position == position - 1 and ticket.indices != last_base_batch:
                raise StateError(
                    f"batch {ticket.position} of the state is on its way with indices {shown(ticket.indices)}, but "
                    f"last_base_batch is {shown(last_base_batch)}; it was changed after it was saved"
                )
        progress.epoch_generator = base.check_generator_state("epoch_generator", packed["epoch_generator"])
        progress._is_exhausted, progress._last_base_batch = is_exhausted, last_base_batch
        progress._to_resend, progress.pending = deque(flight), deque(pending)
        if not base.is_set_by_epoch:
            progress.go_on()
        return progress


def _check_every_batch_is_somewhere(done: int | None, tickets: list[Ticket], position: int) -> None:
    on_their_way = sorted(ticket.position for ticket in tickets)
    if len(set(on_their_way)) < len(on_their_way):
        raise StateError(f"the state has batches {on_their_way} on their way, one of them twice")
    if done is not None and done + len(on_their_way) != position:
        raise StateError(
            f"the state had handed out {position} batches, but {done} are done with and {len(on_their_way)} are on "
            "their way; it was changed after it was saved"
        )
