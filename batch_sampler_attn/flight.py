"""Batches in flight between a DataLoader and a loop: indices go out, batches arrive in the same order, losses follow.

A DataLoader requests indices from its batch sampler ahead of the loop, possibly on another thread. A batch is *in
flight* from the request for its indices until the loop reports its loss; first in, first out. A ``Source`` chooses the
next indices and processes losses. The rest is here, shared by attention to batches and attention to samples.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from batch_sampler_attn.errors import STALE, ProtocolError, StateError, plural
from batch_sampler_attn.options import length_of

# Returned by ``Source.fetch`` if the loader itself is to yield the next batch.
NOTHING = object()

# A StatefulDataLoader may make one iterator for its own state, and a loop one more than it needs.
_MOST_ITERATORS_WITHOUT_A_BATCH = 3

_NO_KEPT_ITERATOR = (
    "Use a loader in one loop of attend() at a time. Instead of one that keeps its iterator for all epochs (timm's "
    "MultiEpochsDataLoader, Ultralytics' InfiniteDataLoader), use a DataLoader with persistent_workers=True"
)


class VisitIndices(list[Any]):
    """A batch's dataset indices, with the number of the ``visit``, which seeds the draws of ``SeededDataset``."""

    __slots__ = ("visit",)

    def __init__(self, indices: Iterable[Any], visit: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.visit = visit


class InFlight(NamedTuple):
    """Tickets of the batches between a loader and a loop, as an immutable value."""

    sent: tuple[Any, ...] = ()  # the loader has their indices, and their losses have not arrived; oldest first
    resend: tuple[Any, ...] = ()  # sent to an iterator that was abandoned: to be sent again before anything else

    def sending(self, ticket: Any) -> InFlight:
        """With one more ticket sent: the first of ``resend``, or a new one if there is none."""
        return InFlight((*self.sent, ticket), self.resend[1:])

    def landed(self) -> InFlight:
        """Without the oldest ticket, whose loss has arrived."""
        return InFlight(self.sent[1:], self.resend)

    def recalled(self) -> InFlight:
        """With all tickets to be sent again."""
        return InFlight((), (*self.sent, *self.resend))


class Source(Protocol):
    """Chooses the batches. It replaces its state in one assignment, so that an interrupt cannot corrupt it."""

    advice: str  # for errors: how to skip a batch, and how to train on fewer

    @property
    def sent(self) -> tuple[Any, ...]:
        """The tickets in flight, oldest first."""

    def hand_out(self) -> list[Any] | None:
        """Put the next batch in flight and return its indices; None if there is none at present."""

    def recall(self) -> None:
        """Have the batches in flight handed out again, before any others."""

    def offer(self) -> Any:
        """The ticket of the batch that is about to be yielded."""

    def collect(self, ticket: Any) -> None:
        """Refuse the loop's request for the next batch if it has not reported the loss of this one."""

    def missing(self, *, end_reported: bool) -> str:
        """What the epoch still lacks, in words; empty if nothing. ``end_reported``: the loader saw the indices end."""

    def continues(self, *, has_length: bool) -> bool:
        """Whether to iterate over the loader again for what is missing; ``has_length`` says if the loader has one."""
        del has_length
        return False

    def start(self, loader: Any) -> Iterator[Any]:
        """``iter(loader)``."""
        return iter(loader)

    def fetch(self, loader: Any) -> Any:
        """The next batch, if it does not come from the loader's iterator; else ``NOTHING``."""
        del loader
        return NOTHING

    def closed(self) -> None:
        """The pass has ended, or its loop was left."""


class Feed:
    """Passes a source's indices to the loader of a batch sampler, and the batches to a loop."""

    def __init__(self, source: Source, sampler: object) -> None:
        self.lock = threading.RLock()  # for replacing the source's state: a loader may request indices on its thread
        self.is_inside_loader = False  # the attended loader is running, so the sampler's caller is the loader
        self._source = source
        self._sampler = type(sampler).__name__
        self._pass: _Pass | None = None
        self._was_loaded = False

    def __getstate__(self) -> dict[str, Any]:
        # The loop and its lock belong to the original, not to a copy.
        return {**vars(self), "lock": None, "is_inside_loader": False, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    @property
    def ticket(self) -> Any:
        """The ticket of the batch that the open pass yielded last; None if there is none."""
        return None if self._pass is None else self._pass.ticket

    def loaded(self) -> None:
        """The sampler's state is about to be replaced by a loaded one."""
        self._pass, self._was_loaded, self.is_inside_loader = None, True, False

    def is_loaders_state(self) -> bool:
        """Whether a StatefulDataLoader is loading its own state, which is ignored if the sampler's was loaded."""
        if self.is_inside_loader and not self._was_loaded:
            raise StateError(
                f"a StatefulDataLoader tried to restore this {self._sampler} from a state older than the losses. "
                "Save the sampler's state_dict() along with loader.state_dict(), and load both"
            )
        return self.is_inside_loader

    def indices(self, plain: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """The batch sampler's ``__iter__``: the open pass's indices for its loader, ``plain`` for any other caller."""
        # A DataLoader makes several iterators and uses one, so making one changes nothing.
        if self.is_inside_loader and self._pass is not None:
            return _HandOut(self, self._pass)
        return itertools.chain(self._note_other_use(), plain)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One pass: the loader's batches, until none is missing."""
        current = self._pass = _Pass(loader)
        source, iterator = self._source, None
        try:
            with self.lock:
                source.recall()
            while True:
                if current.was_used_elsewhere and current.is_one_iterator:
                    raise ProtocolError(
                        "a loader with persistent workers was iterated over elsewhere; use another DataLoader there"
                    )
                batch = source.fetch(loader)
                if batch is NOTHING:
                    try:
                        self.is_inside_loader = True
                        if iterator is None:
                            iterator = source.start(loader)
                        batch = next(iterator)
                        self.is_inside_loader = False
                    except (StopIteration, RuntimeError) as error:
                        self.is_inside_loader = False
                        # A generator that counts (``yield next(iterator)``) raises RuntimeError at the end.
                        is_end = current.end_reported and isinstance(error.__cause__, StopIteration)
                        if not is_end and not isinstance(error, StopIteration):
                            raise
                        if self._is_over(current):
                            return
                        iterator = None
                        continue
                    self._check_arrival(current)
                ticket = current.ticket = source.offer()
                yield batch
                if self._pass is not current:
                    raise ProtocolError(STALE)
                source.collect(ticket)
        finally:
            if self._pass is current:
                self.is_inside_loader = False
                self._pass = None
                source.closed()

    def _note_other_use(self) -> Iterator[list[Any]]:
        if self._pass is not None:
            self._pass.was_used_elsewhere = True
        yield from ()

    def _check_arrival(self, current: _Pass) -> None:
        in_flight = len(self._source.sent)
        current.arrivals += 1
        if not in_flight:
            raise ProtocolError(
                f"{current.loader} yielded a batch that it did not take from this {self._sampler} in this epoch. Give "
                "attend() the DataLoader itself: islice, enumerate, generators, and a StatefulDataLoader that is asked "
                f"for its state before the epoch start to iterate too early. {_NO_KEPT_ITERATOR}. {self._source.advice}"
            )
        if current.arrivals == 1:
            current.most_in_flight = in_flight
        elif in_flight > current.most_in_flight and current.request_thread == current.thread:
            # By its first batch, a loader has read ahead as far as it does; only a thread may go further later.
            self._refuse_drop(current, in_flight - current.most_in_flight)

    def _refuse_drop(self, current: _Pass, dropped: int) -> None:
        raise ProtocolError(
            f"{plural(dropped, 'batch', 'batches')} of the {self._sampler} did not come out of {current.loader}: it "
            "drops batches, ends after a fixed number of batches (repeats included), or reads further ahead than at "
            f"first. Losses would be attributed to other batches. Let every batch through. {self._source.advice}"
        )

    def _is_over(self, current: _Pass) -> bool:
        """Whether the epoch ended with the loader, which may be iterated over several times in an epoch."""
        arrivals, current.arrivals = current.arrivals, 0
        if in_flight := len(self._source.sent):
            self._refuse_drop(current, in_flight)
        missing = self._source.missing(end_reported=current.end_reported)
        if missing and not (arrivals and self._source.continues(has_length=current.has_length)):
            raise ProtocolError(
                f"{current.loader} ended with {missing} still to come. Give attend() an object that iterates over the "
                f"whole DataLoader each time: a generator can be iterated over only once. {self._source.advice}"
            )
        return not missing


def iterate_resumed(loader: Any, *, draws: bool = False) -> Iterator[Any]:
    """``iter`` of a PyTorch DataLoader, which draws the seed of its workers from a copy of its generator.

    With ``draws``, the generator itself makes that draw too, as it did in the saved run.
    """
    import torch  # as the loader has

    generator, copy = loader.generator, torch.Generator()
    copy.set_state((generator or torch.default_generator).get_state())
    if draws:
        torch.empty((), dtype=torch.int64).random_(generator=generator)
    loader.generator = copy
    try:
        return iter(loader)
    finally:
        loader.generator = generator


class _Pass:
    """One pass of ``attend``; an iterator that belongs to another one is stale."""

    def __init__(self, loader: Any) -> None:
        self.loader = type(loader).__name__
        self.ticket: Any = None
        self.thread = self.request_thread = threading.get_ident()
        self.requester: object = None
        self.end_reported = self.was_used_elsewhere = False
        self.has_length = length_of(loader) is not None
        # With persistent workers, a DataLoader has a single iterator.
        self.is_one_iterator = getattr(loader, "persistent_workers", False) is True
        self.arrivals = self.most_in_flight = self.iterators_without_a_batch = 0


class _HandOut(Iterator[list[Any]]):
    """The iterator of indices for the attended loader."""

    def __init__(self, feed: Feed, current: _Pass) -> None:
        self._feed = feed
        self._pass = current

    def __next__(self) -> list[Any]:
        feed, current = self._feed, self._pass
        with feed.lock:
            if current is not feed._pass:
                raise ProtocolError(f"an iterator of an earlier epoch requested more batches. {_NO_KEPT_ITERATOR}")
            if self is not current.requester:
                # A StatefulDataLoader that was saved between epochs makes an iterator, which takes its first batches,
                # and discards it for another.
                feed._source.recall()
                current.requester, current.request_thread, current.end_reported = self, threading.get_ident(), False
            indices = feed._source.hand_out()
        if indices is not None:
            current.iterators_without_a_batch = 0
            return indices
        current.iterators_without_a_batch += not current.end_reported
        current.end_reported = True
        if current.iterators_without_a_batch > _MOST_ITERATORS_WITHOUT_A_BATCH:
            raise ProtocolError(
                f"{current.loader} never ends, like a generator that cycles. Give attend() the DataLoader. "
                f"{_NO_KEPT_ITERATOR}"
            )
        raise StopIteration


def check_loader(sampler: object, loader: Any) -> None:
    """Refuse a loader through which losses could not be attributed to the batches of ``sampler``."""
    kind, name = type(loader).__name__, type(sampler).__name__
    for option, allowed in (("in_order", True), ("snapshot_every_n_steps", 1)):
        if (value := getattr(loader, option, allowed)) != allowed:
            raise ProtocolError(
                f"the {kind} has {option}={value}, which loses batches or mixes up losses; leave it at {allowed}"
            )
    # A wrapper may not expose the batch sampler inside.
    inner = getattr(loader, "batch_sampler", sampler)
    if inner is sampler:
        return
    found = type(inner).__name__
    advice = "Keep trainers from replacing it (Lightning: use_distributed_sampler=False)"
    if getattr(loader, "sampler", None) is sampler:
        problem = "was built with sampler=, which takes single indices"
    elif inner is None:
        problem = "does not batch"
    elif sampler in (getattr(inner, "batch_sampler", None), getattr(inner, "sampler", None)):
        problem = f"has a {found} around this {name}, which changes what it yields on a rank, or when"
        advice = (
            f"On ranks, give it rank= and world_size=, and no loader to accelerate's prepare(). {_NO_KEPT_ITERATOR}"
        )
    else:
        problem = f"has another batch sampler, a {found}"
    raise ProtocolError(
        f"the {kind} {problem}. Build it with DataLoader(dataset, batch_sampler=...) on this {name}. {advice}"
    )
