"""The batch-sampler adapter for ``torch.utils.data``: the one owner of what is where.

Every base batch is a ``Ticket``. It is *in flight* from when the loader takes its indices until the loss
of its visit is reported, and *pending* from a REPEAT until it is handed out, or fetched, again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch.utils.data import Sampler

from batch_sampler_attn import checkpoint, delivery
from batch_sampler_attn.base_batches import BaseBatches
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.tickets import Ticket, pack_tickets, plain_indices, unpack_tickets
from batch_sampler_attn.turns import BY_HAND

REPEATS = ("immediate", "deferred")
_STATE_KEYS = {
    "version",
    "options",
    "schedule",
    "epoch_generator",
    "generator",
    "position",
    "is_exhausted",
    "last_base_batch",
    "flight",
    "pending",
}


class BatchAttentionSampler(Sampler[list[int]]):
    """A batch sampler whose repeats fetch the same indices anew, so that random augmentation is drawn afresh.

    Pass it as ``DataLoader(dataset, batch_sampler=...)`` and iterate over ``schedule.attend(loader)``. A plain
    ``for batch in loader`` visits every batch once, in an order drawn faster than by torch's own ``BatchSampler``.

    Args:
        sampler: A sampler of dataset indices, such as ``RandomSampler(dataset)``; or, without
            ``batch_size``, a batch sampler.
        batch_size: Indices in a batch.
        drop_last: Whether a last, shorter batch is left out.
        schedule: Decides about repeats. It belongs to this sampler from here on.
        repeats: "immediate", as in the paper: the repeat follows at once, fetched in the main process while the
            workers' batches wait. Or "deferred": the workers fetch it, and it arrives after the
            ``num_workers * prefetch_factor`` batches that they had been given before. What is still
            to be repeated when the base batches are over is served by going through the loader again.

    Raises:
        OptionError: If an argument is not allowed, or there is no batch or only one sample to train on.
        ProtocolError: If the schedule belongs to another sampler.

    Example:
        >>> from torch.utils.data import DataLoader, RandomSampler
        >>> schedule = BatchAttentionSchedule(k=1.2)
        >>> sampler = BatchAttentionSampler(RandomSampler(range(10)), 4, schedule=schedule)
        >>> loader = DataLoader(range(10), batch_sampler=sampler)
        >>> for numbers in schedule.attend(loader):
        ...     decision = schedule.decide(numbers.float().mean())
        >>> schedule.last_summary.batches
        3
    """

    _is_resumed: bool
    _asking: _HandOut | None
    _batches: Iterator[list[Any]] | None
    _epoch_generator: str | None
    _last_base_batch: list[Any] | None
    _flight: deque[Ticket]
    _pending: deque[Ticket]
    _to_resend: deque[Ticket]

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int | None = None,
        drop_last: bool = False,
        *,
        schedule: BatchAttentionSchedule,
        repeats: Literal["immediate", "deferred"] = "immediate",
    ) -> None:
        if not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {schedule!r}; pass a BatchAttentionSchedule(k=...)")
        if repeats not in REPEATS:
            raise OptionError(f"repeats is {repeats!r}; it must be one of {', '.join(map(repr, REPEATS))}")
        self._base = BaseBatches(sampler, batch_size, drop_last)
        schedule._bind(self)
        self.schedule = schedule
        self.repeats = repeats
        self._was_loaded = False
        self._is_inside_loader = False
        self._pass: object | None = None
        self._plain_passes = 0
        self._forget_epoch()

    @property
    def batch_size(self) -> int | None:
        """Indices in a batch; None if a batch sampler was wrapped whose batch size is its own affair."""
        return self._base.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a last, shorter batch is left out."""
        return self._base.drop_last

    def __len__(self) -> int:
        return len(self._base)

    def __iter__(self) -> Iterator[list[int]]:
        # A DataLoader makes several iterators and uses one, so making one must not change anything.
        if self._is_inside_loader:
            return _HandOut(self, self._pass)
        return itertools.chain(self._count_plain_pass(), self._base)

    def _count_plain_pass(self) -> Iterator[list[int]]:
        self._plain_passes += 1
        yield from ()

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state and its schedule's, as plain JSON types.

        Take it between reporting a loss and asking for the next batch; taken before the loss is reported,
        the batch that is out is visited again after the resume. Torch's global generator is yours to save; where a
        wrapper of the DataLoader is attended, resuming draws one number more from it, a seed for the loader's workers.
        """
        if self._is_inside_loader:
            # A StatefulDataLoader asks for this as it hands out indices, batches ahead of the decisions.
            return {"saved_by_loader": True}
        in_flight = [*self._flight, *self._to_resend]
        return {
            "version": checkpoint.VERSION,
            "options": self._options(),
            "schedule": self.schedule.state_dict(),
            "epoch_generator": self._epoch_generator,
            "generator": self._base.generator_state(),
            "position": self._position,
            "is_exhausted": self._is_exhausted,
            "last_base_batch": None if self._last_base_batch is None else plain_indices(self._last_base_batch),
            "flight": pack_tickets(in_flight),
            "pending": pack_tickets([*self._pending]),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, in the sampler and in its schedule.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        if self._is_inside_loader:
            if not self._was_loaded:
                raise StateError(
                    "a StatefulDataLoader tried to restore this sampler from a state of its own, which is older than "
                    "the decisions. Save sampler.state_dict() beside loader.state_dict(), and load both"
                )
            return
        fields = checkpoint.check_keys("the sampler's state", state_dict, _STATE_KEYS)
        checkpoint.check_version(fields["version"])
        checkpoint.check_options(self._options(), fields["options"])
        schedule_parts = self.schedule._unpack(fields["schedule"])
        position = checkpoint.check_count("position", fields["position"])
        is_exhausted, last_base_batch = fields["is_exhausted"], fields["last_base_batch"]
        if not isinstance(is_exhausted, bool):
            raise StateError(f"is_exhausted is {is_exhausted!r} in the state; it must be true or false")
        if (position > 0) != isinstance(last_base_batch, list):
            raise StateError(f"last_base_batch is {last_base_batch!r} at position {position} of the state")
        flight = unpack_tickets("flight", fields["flight"], position)
        pending = unpack_tickets("pending", fields["pending"], position, least_visits=1)
        self._check_every_batch_is_somewhere(schedule_parts[0].batches, flight, pending, position)
        generator = self._base.check_generator_state("generator", fields["generator"])
        epoch_generator = self._base.check_generator_state("epoch_generator", fields["epoch_generator"])
        if position > 0 and (generator is None) != (epoch_generator is None):
            raise StateError("of generator and epoch_generator, the state has one and lacks the other; it was changed")
        batches = None
        if position > 0 and not self._base.is_set_by_epoch:
            # The order is drawn anew before anything is assigned: it tells whether data and sampler are the same.
            batches = self._base.resumed(epoch_generator, position, last_base_batch)
        self._base.set_generator_state(generator)

        self._forget_epoch()
        self.schedule._assign(*schedule_parts)
        self._pass = None
        self._batches = batches
        self._epoch_generator = epoch_generator
        self._position = position
        self._is_exhausted = is_exhausted
        self._last_base_batch = last_base_batch
        self._to_resend = deque(flight)
        self._pending = deque(pending)
        self._is_resumed = self._was_loaded = True

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "drop_last": self.drop_last, "repeats": self.repeats}

    def _check_every_batch_is_somewhere(
        self, done: int, flight: list[Ticket], pending: list[Ticket], position: int
    ) -> None:
        on_their_way = [ticket.position for ticket in [*flight, *pending]]
        if len(set(on_their_way)) < len(on_their_way):
            raise StateError(f"the state has batches {sorted(on_their_way)} on their way, one of them twice")
        if self.repeats == "immediate" and len(pending) > 1:
            raise StateError(f"the state has {len(pending)} pending repeats, but an immediate repeat is the only one")
        # A window ends epochs, and with them the count of batches done, while this goes on.
        if self.schedule.options.window is None and done + len(on_their_way) != position:
            raise StateError(
                f"the state had handed out {position} batches, but {done} are done with and {len(on_their_way)} are on "
                "their way; it was changed after it was saved"
            )

    # What delivery.py drives -------------------------------------------------------------------------

    def _deliver(self, schedule: BatchAttentionSchedule, loader: Any) -> Iterator[Any]:
        delivery.check_loader(self, loader)
        is_in_epoch = schedule._turns.phase is BY_HAND and bool(schedule.batches or schedule.visits)
        if is_in_epoch and not self._is_resumed and schedule.options.window is None:
            raise ProtocolError(
                "the schedule is in the middle of an epoch, but its BatchAttentionSampler is not: load "
                "sampler.state_dict(), which holds the schedule's state, instead of schedule.state_dict() alone"
            )
        return delivery.deliver(self, schedule, loader)

    def _open_pass(self, token: object) -> bool:
        """Begin an epoch, or go on in a loaded one; tell whether it is the latter."""
        is_resumed, self._is_resumed = self._is_resumed, False
        if not is_resumed:
            self._forget_epoch()
        self._pass = token
        if self._position > 0 and self._batches is None:
            self._batches = self._base.resumed(self._epoch_generator, self._position, self._last_base_batch)
        return is_resumed

    @property
    def _starts_loader_anew(self) -> bool:
        """Whether the run would go on by beginning to iterate over the loader: for an epoch, or for late repeats."""
        is_draining = self.repeats == "deferred" and self._is_exhausted and bool(self._pending)
        return self._position == 0 or (is_draining and not self._flight and not self._to_resend)

    def _forget_epoch(self) -> None:
        self._is_resumed = False
        self._asking = None
        self._batches = None
        self._epoch_generator = None
        self._position = 0
        self._is_exhausted = False
        self._last_base_batch = None
        self._flight = deque()
        self._pending = deque()
        # In flight when a state was saved: these are handed out again before anything else.
        self._to_resend = deque()

    def _hand_out(self, asking: _HandOut) -> list[Any]:
        """Indices for the loader to fetch. Never blocks: the loader asks on the thread that trains."""
        if asking is not self._asking:
            # A StatefulDataLoader that was saved between epochs makes an iterator, which takes its first batches,
            # and discards it for another.
            self._to_resend.extendleft(reversed(self._flight))
            self._flight.clear()
            self._asking = asking
        if self._to_resend:
            ticket = self._to_resend.popleft()
        elif self._pending and self.repeats == "deferred":
            ticket = self._pending.popleft()
        else:
            ticket = Ticket(self._position, 0, self._next_base_batch())
            self._position += 1
        self._flight.append(ticket)
        return ticket.indices

    def _next_base_batch(self) -> list[Any]:
        if self._is_exhausted:
            raise StopIteration
        if self._batches is None:
            self._batches, self._epoch_generator = self._base.begin_epoch()
        try:
            batch = next(self._batches)
        except StopIteration:
            self._is_exhausted = True
            raise
        self._last_base_batch = batch
        return batch

    def _out(self, *, is_fetched: bool) -> Ticket:
        """The ticket of the batch that is about to be yielded."""
        if is_fetched:
            return self._pending[0]
        if not self._flight:
            raise ProtocolError(
                "the loader yielded a batch that it did not take from this BatchAttentionSampler. Build it with "
                "DataLoader(dataset, batch_sampler=sampler); with a StatefulDataLoader, ask for loader.state_dict() "
                "only once attend() has begun"
            )
        return self._flight[0]

    def _settle(self, decision: Decision, visits: int) -> None:
        """The loss of the batch that is out was reported."""
        is_fetched = self.repeats == "immediate" and bool(self._pending)
        ticket = self._pending.popleft() if is_fetched else self._flight.popleft()
        if decision is Decision.REPEAT:
            self._pending.append(ticket._replace(visits=visits))


class _HandOut(Iterator[list[int]]):
    """What a loader iterates over during a pass of ``attend``."""

    def __init__(self, owner: BatchAttentionSampler, token: object) -> None:
        self._owner = owner
        self._token = token

    def __next__(self) -> list[int]:
        if self._token is not self._owner._pass:
            raise ProtocolError(
                "a loader iterator of an earlier epoch asked for more batches. Use the loader through one "
                "schedule.attend(loader) loop at a time"
            )
        return self._owner._hand_out(self)
