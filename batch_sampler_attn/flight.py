"""What happens between a DataLoader and a loop: indices go out, batches arrive in the same order, losses follow.

A DataLoader asks its batch sampler for indices ahead of the loop, and maybe on another thread. So a batch is *in
flight* from when the loader takes its indices until the loop reports its loss; first in, first out. A ``Source`` says
which indices go out next and what a loss leads to. Everything else is here, once for batches and for samples.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from batch_sampler_attn.errors import STALE, ProtocolError, StateError, plural
from batch_sampler_attn.options import length_of

# What a source fetches where the loader itself is to yield the next batch.
NOTHING = object()

# A StatefulDataLoader may make one iterator for its own state, and a loop one more than it needs.
_MOST_ITERATORS_WITHOUT_A_BATCH = 3

_NO_KEPT_ITERATOR = (
    "Use a loader in one loop of attend() at a time. Instead of one that keeps its iterator for all epochs (timm's "
    "MultiEpochsDataLoader, Ultralytics' InfiniteDataLoader), use a DataLoader with persistent_workers=True"
)


class VisitIndices(list[Any]):
    """A batch's dataset indices, with the ``visit`` that they are for, by which ``SeededDataset`` draws."""

    __slots__ = ("visit",)

    def __init__(self, indices: Iterable[Any], visit: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.visit = visit


class InFlight(NamedTuple):
    """Batches between a loader and a loop, as tickets. It is never changed, but replaced."""

    out: tuple[Any, ...] = ()  # the loader has taken their indices, and their losses have not arrived; oldest first
    resend: tuple[Any, ...] = ()  # taken by an iterator that was left: they go out again before anything else

    def sent(self, ticket: Any) -> InFlight:
        """With one more ticket out: the first of ``resend``, or a new one if there is none."""
        return InFlight((*self.out, ticket), self.resend[1:])

    def landed(self) -> InFlight:
        """Without the oldest ticket, whose loss has arrived."""
        return InFlight(self.out[1:], self.resend)

    def recalled(self) -> InFlight:
        """With everything that is out to be sent again."""
        return InFlight((), (*self.out, *self.resend))


class Source(Protocol):
    """Says what goes out next. It replaces its state in one assignment: an interrupt cannot tear it."""

    advice: str  # for errors: how to leave a batch out, and how to train on fewer

    @property
    def out(self) -> tuple[Any, ...]:
        """The tickets in flight, oldest first."""

    def hand_out(self) -> list[Any] | None:
        """The indices of the next batch, which is in flight from here on; None if there is none now."""

    def recall(self) -> None:
        """The batches in flight go out again, before anything else."""

    def offer(self) -> Any:
        """The ticket of the batch that is about to be yielded."""

    def collect(self, ticket: Any) -> None:
        """The loop requests the next batch: refuse if it has not reported this one's loss."""

    def missing(self, *, was_refused: bool) -> str:
        """What is still to come in this epoch, in words; empty if nothing is, or no indices were left to hand out."""

    def continues(self, *, has_length: bool) -> bool:
        """Whether another iteration of the loader, which may have a length, brings what is missing."""
        del has_length
        return False

    def start(self, loader: Any) -> Iterator[Any]:
        """``iter(loader)``."""
        return iter(loader)

    def fetch(self, loader: Any) -> Any:
        """The next batch, if it does not come out of the loader's iterator; else ``NOTHING``."""
        del loader
        return NOTHING

    def closed(self) -> None:
        """The pass has ended, or its loop was left."""


class Feed:
    """Feeds the loader of a batch sampler with a source's indices, and a loop with the batches."""

    def __init__(self, source: Source, sampler: object) -> None:
        self.lock = threading.RLock()  # held while the source's state is replaced: a loader may ask on its own thread
        self.is_inside_loader = False  # the attended loader is at work now, so the sampler's caller is the loader
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
        """The ticket of the batch that the open pass has yielded last; None without one."""
        return None if self._pass is None else self._pass.ticket

    def loaded(self) -> None:
        """The sampler's state is about to be replaced by a loaded one."""
        self._pass, self._was_loaded, self.is_inside_loader = None, True, False

    def is_loaders_state(self) -> bool:
        """Whether a StatefulDataLoader is loading a state of its own, to be ignored next to one that was loaded."""
        if self.is_inside_loader and not self._was_loaded:
            raise StateError(
                f"a StatefulDataLoader tried to restore this {self._sampler} from a state older than the losses. "
                "Save the sampler's state_dict() beside loader.state_dict(), and load both"
            )
        return self.is_inside_loader

    def indices(self, plain: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """What the batch sampler's ``__iter__`` returns: the open pass's indices to its loader, ``plain`` to others."""
        # A DataLoader makes several iterators and uses one, so making one changes nothing.
        if self.is_inside_loader and self._pass is not None:
            return _HandOut(self, self._pass)
        return itertools.chain(self._note_other_use(), plain)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One pass: the loader's batches, until nothing is missing."""
        current = self._pass = _Pass(loader)
        source, iterator = self._source, None
        try:
            with self.lock:
                source.recall()
            while True:
                if current.was_used_elsewhere and current.is_one_iterator:
                    raise ProtocolError(
                        "the loader, of persistent workers, was iterated over elsewhere; use another DataLoader there"
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
                        is_end = current.was_refused and isinstance(error.__cause__, StopIteration)
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
        in_flight = len(self._source.out)
        current.arrivals += 1
        if not in_flight:
            raise ProtocolError(
                f"{current.loader} yielded a batch that it did not take from this {self._sampler} in this epoch. Give "
                "attend() the DataLoader itself: islice, enumerate, generators, and a StatefulDataLoader that is asked "
                f"for its state before the epoch begin to iterate too early. {_NO_KEPT_ITERATOR}. {self._source.advice}"
            )
        if current.arrivals == 1:
            current.most_in_flight = in_flight
        elif in_flight > current.most_in_flight and current.asking_thread == current.thread:
            # The loader had read ahead as far as it does by its first batch; a thread may go further at any time.
            self._refuse_drop(current, in_flight - current.most_in_flight)

    def _refuse_drop(self, current: _Pass, dropped: int) -> None:
        raise ProtocolError(
            f"{plural(dropped, 'batch', 'batches')} of the {self._sampler} did not come out of {current.loader}: it "
            "drops batches, ends after a fixed number of batches (repeats included), or reads further ahead than at "
            f"first. Losses would go to other batches. Let every batch through. {self._source.advice}"
        )

    def _is_over(self, current: _Pass) -> bool:
        """The loader ended: whether the epoch did too, rather than one of several iterations of the loader."""
        arrivals, current.arrivals = current.arrivals, 0
        if in_flight := len(self._source.out):
            self._refuse_drop(current, in_flight)
        missing = self._source.missing(was_refused=current.was_refused)
        if missing and not (arrivals and self._source.continues(has_length=current.has_length)):
            raise ProtocolError(
                f"{current.loader} ended with {missing} still to come. Give attend() what iterates over the whole "
                f"DataLoader each time: a generator can be iterated over only once. {self._source.advice}"
            )
        return not missing


class _Pass:
    """One pass of ``attend``; an iterator that belongs to another one is stale."""

    def __init__(self, loader: Any) -> None:
        self.loader = type(loader).__name__
        self.ticket: Any = None
        self.thread = self.asking_thread = threading.get_ident()
        self.asking: object = None
        self.was_refused = self.was_used_elsewhere = False
        self.has_length = length_of(loader) is not None
        # With persistent workers, a DataLoader is one iterator.
        self.is_one_iterator = getattr(loader, "persistent_workers", False) is True
        self.arrivals = self.most_in_flight = self.iterators_without_a_batch = 0


class _HandOut(Iterator[list[Any]]):
    """What the attended loader iterates over."""

    def __init__(self, feed: Feed, current: _Pass) -> None:
        self._feed = feed
        self._pass = current

    def __next__(self) -> list[Any]:
        feed, current = self._feed, self._pass
        with feed.lock:
            if current is not feed._pass:
                raise ProtocolError(f"an iterator of an earlier epoch requested more batches. {_NO_KEPT_ITERATOR}")
            if self is not current.asking:
                # A StatefulDataLoader that was saved between epochs makes an iterator, which takes its first batches,
                # and discards it for another.
                feed._source.recall()
                current.asking, current.asking_thread, current.was_refused = self, threading.get_ident(), False
            indices = feed._source.hand_out()
        if indices is not None:
            current.iterators_without_a_batch = 0
            return indices
        current.iterators_without_a_batch += not current.was_refused
        current.was_refused = True
        if current.iterators_without_a_batch > _MOST_ITERATORS_WITHOUT_A_BATCH:
            raise ProtocolError(
                f"{current.loader} never ends itself, as a generator that cycles. Give attend() the DataLoader. "
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
    # A wrapper need not say which batch sampler is inside.
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
