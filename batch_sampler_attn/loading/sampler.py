"""The batch-sampler adapter for ``torch.utils.data``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, Sampler

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import OptionError, ProtocolError, plural, short_repr
from batch_sampler_attn.flight import NOTHING, Feed, InFlight, Source, VisitIndices, check_loader, iterate_resumed
from batch_sampler_attn.loading.fetch import OnDemandFetcher, yields_what_it_fetches
from batch_sampler_attn.loading.order import BaseBatches
from batch_sampler_attn.loading.seeded import warn_if_inside
from batch_sampler_attn.options import length_of, one_of
from batch_sampler_attn.passes import Pass
from batch_sampler_attn.ranks import Shard, process_group_size, unpack_shard
from batch_sampler_attn.rule import REPEAT, Decision
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of


class BatchAttentionSampler(Sampler[list[int]]):
    """A batch sampler that repeats a batch by fetching its indices again, so that random augmentation is drawn again.

    Pass it as ``DataLoader(dataset, batch_sampler=...)`` and iterate over ``schedule.attend(loader)``. A plain
    ``for batch in loader`` visits every batch once, and draws the order faster than torch's ``BatchSampler``.

    Args:
        sampler: A sampler of dataset indices, such as ``RandomSampler(dataset)``; without ``batch_size``, of batches.
        batch_size: Number of indices in a batch.
        drop_last: Whether to drop a shorter last batch.
        schedule: Decides on the repeats of this sampler only. None creates one, available as ``sampler.schedule``.
        repeats: "immediate", as in the paper: the repeat follows at once, fetched by one more worker if the loader
            has workers. "deferred": the loader's workers fetch it, and it arrives after the ``num_workers *
            prefetch_factor`` batches that were requested before it.
        batches_per_epoch: Maximum number of batches in an epoch; None for all batches of the order.
        rank: Index of this rank among ranks that train together. Each takes every ``world_size``-th index (or batch)
            of the order, which must be the same on all ranks, from generators with the same seed. A rank without a
            last one takes the first instead. Omit both arguments with a ``DistributedSampler``.
        world_size: Number of ranks; 1 if each rank has its own data.

    A resumed run repeats the order, visits and decisions; with ``SeededDataset``, the random augmentation too.

    Raises:
        OptionError: If an argument is not allowed, or there is no batch or only one sample to train on.
        ProtocolError: If the schedule belongs to another sampler, or there are several ranks and no schedule is given.

    Example:
        >>> from torch.utils.data import DataLoader, RandomSampler
        >>> schedule = BatchAttentionSchedule(k=1.2, budget=0.2)
        >>> sampler = BatchAttentionSampler(RandomSampler(range(10)), 4, schedule=schedule)
        >>> loader = DataLoader(range(10), batch_sampler=sampler)
        >>> for numbers in schedule.attend(loader):
        ...     decision = schedule.decide(numbers.float().mean())
        >>> schedule.last_summary.batches
        3
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int | None = None,
        drop_last: bool = False,
        *,
        schedule: BatchAttentionSchedule | None = None,
        repeats: Literal["immediate", "deferred"] = "immediate",
        batches_per_epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if schedule is None:
            if (ranks := process_group_size()) > 1:
                raise ProtocolError(
                    f"a BatchAttentionSampler has no schedule on {ranks} ranks. Give it a BatchAttentionSchedule with "
                    "ranks=MeanOverRanks(); keep trainers from replacing it (Lightning: use_distributed_sampler=False)"
                )
            schedule = BatchAttentionSchedule()
        if not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {short_repr(schedule)}; pass a BatchAttentionSchedule(k=...)")
        self.repeats = one_of("repeats", repeats, ("immediate", "deferred"))
        base = BaseBatches(sampler, batch_size, drop_last, batches_per_epoch, rank, world_size)
        self.sampler, self.batch_size, self.drop_last = base.sampler, base.batch_size, base.drop_last
        self._base = base
        self._source = _BatchSource(self, base, schedule, is_in_order=repeats == "immediate")
        passes_of(schedule).set_driver(self._source)
        self.schedule = schedule

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the next epoch to the inner sampler, if it defines ``set_epoch``."""
        self._base.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._base)

    def __repr__(self) -> str:
        inside = type(self.sampler).__name__
        size = f", batch_size={self.batch_size}" if self.batch_size is not None else ""
        return f"<{type(self).__name__}({inside}{size}, repeats={self.repeats!r}), {self.schedule!r}>"

    def __iter__(self) -> Iterator[list[int]]:
        return self._source.feed.indices(self._base)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the sampler and its schedule, as plain JSON types.

        Call it at any time, even after an interrupt (Ctrl-C). A batch whose loss was not reported is visited again
        after the resume. Save the state of torch's global generator yourself; with a wrapper around the DataLoader,
        a resume draws one more number from it.
        """
        if self._source.feed.is_inside_loader:
            # A StatefulDataLoader calls this as it requests indices, several batches ahead of the decisions.
            return {"saved_by_loader": True}
        return checkpoint.seal({"options": self._options(), **self._source.pack()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the sampler and its schedule from a state that ``state_dict`` returned.

        Raises:
            StateError: If the state has another version or other options, or is damaged. Nothing is changed then.
        """
        if self._source.feed.is_loaders_state():
            return
        keys = {"options", "schedule", "generator", *EpochFlight._fields} - {"is_resumed"}
        fields = checkpoint.unseal("the sampler's state", state_dict, keys)
        checkpoint.check_options(self._options(), fields["options"])
        self._source.load(fields)

    def _options(self) -> dict[str, Any]:
        names = ("batch_size", "drop_last", "repeats")
        return {**{name: getattr(self, name) for name in names}, "batches_per_epoch": self._base.most_batches}


class Ticket(NamedTuple):
    """One base batch of the epoch: its position, its earlier visits, and its dataset indices."""

    position: int
    visits: int
    indices: list[Any]


class EpochFlight(NamedTuple):
    """The batches of an epoch in flight. It is immutable, and replaced together with the schedule's state."""

    position: int = 0  # base batches handed out so far
    flight: InFlight = InFlight()
    pending: tuple[Ticket, ...] = ()  # to be repeated
    epoch_generator: str | None = None  # the state from which the epoch's order is drawn, if there is a generator
    last_base_batch: list[Any] | None = None
    is_exhausted: bool = False  # the order has no more base batches
    begun: tuple[int, int] = (0, 0)  # the epoch, and the position in it, at which the pass began
    shard: Shard = Shard()  # the rank whose indices these are: a state may have been saved on another one
    is_resumed: bool = False  # it was loaded, and the next pass resumes from it


class _BatchSource(Source):
    """Hands out a schedule's batches, as its ``passes.Driver``; ``is_in_order`` fetches repeats at once."""

    advice = "To skip a batch, call schedule.skip(); to train on fewer, use batches_per_epoch=n"

    def __init__(
        self, sampler: object, base: BaseBatches, schedule: BatchAttentionSchedule, *, is_in_order: bool
    ) -> None:
        self.is_in_order = is_in_order
        self.feed = Feed(self, sampler)
        self._sampler = sampler
        self._base = base
        self._passes = passes_of(schedule)
        self._pass: Pass | None = None
        # The iterator over the epoch's order, and the last batch that it yielded.
        self._drawn: tuple[Iterator[list[Any]], object] | None = None
        # The flight and the generator's state before the last draw, to be saved if that draw was interrupted.
        self._undrawn: tuple[object, torch.Tensor | None] = (None, None)
        # Base batches of the epoch, if the loader takes fewer than there are.
        self._limit: int | None = None
        self._starts_resumed = False
        self._fetchers: WeakKeyDictionary[Any, OnDemandFetcher] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        # An iterator over an order cannot be copied, and worker processes must not be.
        return {**vars(self), "_pass": None, "_drawn": None, "_fetchers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _fetchers=WeakKeyDictionary())

    @property
    def lock(self) -> Any:
        return self.feed.lock

    @property
    def _flight(self) -> EpochFlight:
        return self._passes.run.flight  # type: ignore[no-any-return]

    def deliver(self, loader: Any) -> Iterator[Any]:
        passes, run = self._passes, self._passes.run
        check_loader(self._sampler, loader)
        warn_if_inside(getattr(loader, "dataset", None))
        if self.is_in_order and not yields_what_it_fetches(loader):
            raise ProtocolError(
                f"an immediate repeat would bypass what {type(loader).__name__} may do to a batch. Pass the "
                "DataLoader itself, or use BatchAttentionSampler(..., repeats='deferred')"
            )
        if passes.ranks.shard.ranks > 1:
            self._base.check_shard(passes.ranks.shard)
        is_in_epoch = passes.active is None and run.state.progress > 0 and passes.options.epoch_length is None
        if is_in_epoch and not run.flight.is_resumed:
            raise ProtocolError(
                "the schedule is in mid-epoch, and its sampler is not; load sampler.state_dict(), which holds both"
            )
        length, whole = length_of(loader), self._base.length
        with passes.open(length, self._base.common_to_ranks()) as self._pass:
            flight, state = self._flight, passes.state
            self._starts_resumed = flight.is_resumed
            flight = flight._replace(is_resumed=False) if flight.is_resumed else self.restarted()
            begun = state.epoch, state.position
            flight = self._redrawn(flight) if flight.position else flight._replace(begun=begun)
            self.closed()
            # No limit for a loader that takes all batches, as torch's do: some samplers draw once more at the end.
            self._limit = length if length is not None and whole is not None and length < whole else None
            passes.replace(flight=flight)
            yield from self.feed.batches(loader)
            if passes.options.epoch_length is not None:
                # Otherwise the epoch ends here, and the flight with it.
                passes.replace(flight=self.restarted())

    def after_decision(self, flight: EpochFlight, decision: Decision | None, visits: int) -> EpochFlight:
        ticket, pending, in_flight = self._current(flight), flight.pending, flight.flight
        if self.is_in_order and pending:
            pending = pending[1:]
        else:
            in_flight = in_flight.landed()
        if decision is REPEAT:
            pending = (*pending, ticket._replace(visits=visits))
        return flight._replace(pending=pending, flight=in_flight)

    def restarted(self) -> EpochFlight:
        return EpochFlight(shard=self._base.rank_shard)

    def _current(self, flight: EpochFlight) -> Ticket:
        return flight.pending[0] if self.is_in_order and flight.pending else flight.flight.sent[0]

    @property
    def sent(self) -> tuple[Ticket, ...]:
        return self._flight.flight.sent

    def hand_out(self) -> list[Any] | None:
        flight = self._flight
        ticket: Ticket
        if flight.flight.resend:
            ticket = flight.flight.resend[0]
        elif flight.pending and not self.is_in_order:
            ticket = flight.pending[0]
            flight = flight._replace(pending=flight.pending[1:])
        else:
            flight, batch = self._next_base_batch(flight)
            if batch is None:
                self._passes.replace(flight=flight)
                return None
            ticket = Ticket(flight.position, 0, batch)
            flight = flight._replace(position=flight.position + 1, last_base_batch=batch)
        self._passes.replace(flight=flight._replace(flight=flight.flight.sending(ticket)))
        return VisitIndices(ticket.indices, (*flight.begun, ticket.position, ticket.visits))

    def recall(self) -> None:
        self._passes.replace(flight=self._flight._replace(flight=self._flight.flight.recalled()))

    def start(self, loader: Any) -> Iterator[Any]:
        # A DataLoader draws a seed for its workers whenever it makes an iterator. A resume makes one where the saved
        # run did not, so that everything that shares the generator, perhaps torch's global one, would draw other
        # numbers. It is unknown when a wrapper makes its iterator.
        starts_resumed, self._starts_resumed = self._starts_resumed, False
        if not starts_resumed or not isinstance(loader, DataLoader) or not yields_what_it_fetches(loader):
            return iter(loader)
        flight = self._flight
        is_draining = not self.is_in_order and flight.is_exhausted and bool(flight.pending)
        starts_loader = not flight.position or (is_draining and not flight.flight.resend)
        # Persistent workers keep the seed that they were started with.
        is_first_start = not flight.position and not self._passes.state.epoch
        draws = is_first_start or (starts_loader and not loader.persistent_workers)
        return iterate_resumed(loader, draws=draws)

    def fetch(self, loader: Any) -> Any:
        flight = self._flight
        if not self.is_in_order or not flight.pending:
            return NOTHING
        if loader not in self._fetchers:
            self._fetchers[loader] = OnDemandFetcher(loader, (self._passes.state.epoch, flight.position))
        ticket = flight.pending[0]
        indices = VisitIndices(ticket.indices, (*flight.begun, ticket.position, ticket.visits))
        return self._fetchers[loader].fetch(indices)

    def offer(self) -> Ticket:
        ticket = self._current(self._flight)
        assert self._pass is not None
        self._pass.offer(ticket.position, visits=ticket.visits, indices=ticket.indices)
        return ticket

    def collect(self, ticket: Ticket) -> None:
        del ticket
        assert self._pass is not None
        self._pass.collect()

    def missing(self, *, end_reported: bool) -> str:
        flight = self._flight
        if flight.pending:
            return plural(len(flight.pending), "repeat", "repeats")
        is_over = end_reported or flight.is_exhausted or flight.position in (self._limit, self._base.length)
        return "" if is_over else f"base batches after the first {flight.position}"

    def continues(self, *, has_length: bool) -> bool:
        # A loader without a length may have ended early on purpose, after any number of batches.
        return has_length or bool(self._flight.pending)

    def closed(self) -> None:
        for loader, fetcher in [*self._fetchers.items()]:
            if not fetcher.outlives_epoch:
                del self._fetchers[loader]

    def _next_base_batch(self, flight: EpochFlight) -> tuple[EpochFlight, list[Any] | None]:
        """The flight after one more draw from the order, and the base batch drawn; None at the end."""
        if flight.is_exhausted or flight.position == self._limit:
            return flight, None
        before = flight
        if flight.position:
            flight = self._redrawn(flight)
            assert self._drawn is not None
            batches, _ = self._drawn
        else:
            batches, epoch_generator = self._base.begin_epoch()
            flight = flight._replace(epoch_generator=epoch_generator)
        # It is unknown whether an interrupted draw took a batch.
        generator = self._base.generator
        self._drawn, self._undrawn = None, (before, None if generator is None else generator.get_state())
        batch = next(batches, None)
        if batch is None:
            return flight._replace(is_exhausted=True), None
        self._drawn = batches, batch
        return flight, batch

    def _redrawn(self, flight: EpochFlight) -> EpochFlight:
        """The flight, after the epoch's order is drawn up to its position."""
        if self._drawn is not None and self._drawn[1] is flight.last_base_batch:
            return flight
        shard, last, rows = self._base.rank_shard, flight.position - 1, (*flight.flight, flight.pending)
        known: dict[int, Any] = {ticket.position: ticket.indices for row in rows for ticket in row}
        known[last] = flight.last_base_batch
        if flight.shard != shard:
            # This rank's batches replace the saved rank's at the same positions.
            known = dict.fromkeys(known)
        batches = self._base.resumed(flight.epoch_generator, flight.position, known, is_exhausted=flight.is_exhausted)
        drawn = (tuple(ticket._replace(indices=known[ticket.position]) for ticket in row) for row in rows)
        sent, resend, pending = drawn
        self._drawn = batches, known[last]
        return flight._replace(flight=InFlight(sent, resend), pending=pending, last_base_batch=known[last], shard=shard)

    # Saving and loading ----------------------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """The epoch and the schedule as JSON types."""
        with self.lock:
            schedule, flight = self._passes.pack(), self._flight
            before, state = self._undrawn
            generator = self._base.generator_state(state if before is flight else None)
        last = flight.last_base_batch
        packed = flight._asdict() | {
            "schedule": schedule,
            "generator": generator,
            "flight": _pack_tickets(flight.flight.recalled().resend),
            "pending": _pack_tickets(flight.pending),
            "last_base_batch": None if last is None else checkpoint.plain_indices(last),
            "begun": [*flight.begun],
            "shard": [*flight.shard],
        }
        del packed["is_resumed"]
        return packed

    def load(self, fields: dict[str, Any]) -> None:
        """Resume from what ``pack`` packed, or assign nothing if it does not fit."""
        base, position, last = self._base, fields["position"], fields["last_base_batch"]
        run = self._passes.unpack(fields["schedule"])
        flight = EpochFlight(is_resumed=True)._replace(
            position=position,
            flight=InFlight((), _unpack_tickets(fields["flight"])),
            pending=_unpack_tickets(fields["pending"]),
            epoch_generator=base.check_generator_state("epoch_generator", fields["epoch_generator"]),
            last_base_batch=None if last is None else checkpoint.plain_indices(last),
            is_exhausted=fields["is_exhausted"],
            begun=tuple(fields["begun"]),
            shard=unpack_shard(fields["shard"], base.rank_shard, is_in_epoch=position > 0),
        )
        generator = base.check_generator_state("generator", fields["generator"])
        if position and not base.is_set_by_epoch:
            # Here, rather than when the loop begins: the order shows whether the data is the same.
            flight = self._redrawn(flight)
        base.set_generator_state(generator)
        self.feed.loaded()
        self._passes.assign(run._replace(flight=flight))


def _pack_tickets(tickets: Iterable[Ticket]) -> list[Any]:
    return [[ticket.position, ticket.visits, checkpoint.plain_indices(ticket.indices)] for ticket in tickets]


def _unpack_tickets(packed: list[Any]) -> tuple[Ticket, ...]:
    return tuple(Ticket(position, visits, checkpoint.plain_indices(indices)) for position, visits, indices in packed)
