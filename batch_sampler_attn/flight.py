"""What happens between a DataLoader and a loop: indices go out, batches arrive in the same order, losses follow.

A DataLoader asks its batch sampler for indices ahead of the loop, and maybe on another thread. So a batch is *in flight*
from when the loader takes its indices until the loop reports its loss; first in, first out. A ``Source`` says which
indices go out next and what a loss leads to. Everything else is here, once for batches and for samples.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from batch_sampler_attn.errors import ProtocolError, plural

# What a source fetches where the loader itself is to yield the next batch.
NOTHING = object()

# A StatefulDataLoader may make one iterator for its own state, and a loop one more than it needs.
_MOST_ITERATORS_WITHOUT_A_BATCH = 3


class InFlight(NamedTuple):
    """Batches between a loader and a loop, as tickets. It is never changed, but replaced by another one.

    Attributes:
        out: The loader has taken their indices, and their losses have not arrived; oldest first.
        resend: Taken by an iterator that was left; they go out again before anything else.
    """

    out: tuple[Any, ...] = ()
    resend: tuple[Any, ...] = ()

    def sent(self, ticket: Any) -> InFlight:
        """With one more ticket out."""
        return InFlight((*self.out, ticket), self.resend)

    def resent(self) -> InFlight:
        """With the first of ``resend`` out."""
        return InFlight((*self.out, self.resend[0]), self.resend[1:])

    def landed(self) -> InFlight:
        """Without the oldest ticket, whose loss has arrived."""
        return InFlight(self.out[1:], self.resend)

    def recalled(self) -> InFlight:
        """With everything that is out to be sent again."""
        return InFlight((), (*self.out, *self.resend))


class Source(Protocol):
    """Says what goes out next. Each method replaces its state in one assignment, so that an interrupt cannot tear it.

    Attributes:
        advice: For errors: how to train on fewer batches, or leave one out.
    """

    advice: str

    @property
    def out(self) -> tuple[Any, ...]:
        """The tickets in flight, oldest first."""

    def hand_out(self) -> list[Any] | None:
        """The indices of the next batch, which is in flight from here on; None if there is none now."""

    def recall(self) -> None:
        """The batches in flight go out again, before anything else."""

    def start(self, loader: Any) -> Iterator[Any]:
        """``iter(loader)``."""

    def fetch(self, loader: Any) -> Any:
        """The next batch, if it does not come out of the loader's iterator; else ``NOTHING``."""

    def offer(self) -> Any:
        """The ticket of the batch that is about to be yielded."""

    def collect(self, ticket: Any) -> None:
        """The loop asks for the batch after this one.

        Raises:
            ProtocolError: If it has not reported the loss.
        """

    def missing(self, *, was_refused: bool) -> str:
        """What is still to come in this epoch, in words; empty if nothing is.

        Args:
            was_refused: Whether the loader asked for indices, and there were none.
        """

    def continues(self, *, has_length: bool) -> bool:
        """Whether iterating over the loader once more brings what is missing.

        Args:
            has_length: Whether the loader says how many batches it yields.
        """

    def closed(self) -> None:
        """The pass has ended, or its loop was left."""


class Feed:
    """Feeds a DataLoader with a source's indices, and a loop with the batches, each with its ticket.

    Args:
        source: Says what goes out.
        sampler: The batch sampler that the loader has to be built on.

    Attributes:
        lock: Held while the source's state is replaced: a loader may ask on a thread of its own.
        is_inside_loader: Whether the attended loader is at work now, so that the sampler's caller is the loader.
    """

    def __init__(self, source: Source, sampler: object) -> None:
        self.lock = threading.RLock()
        self.is_inside_loader = False
        self._source = source
        self._sampler = type(sampler).__name__
        self._pass: _Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The loop and its lock belong to the original, not to a copy.
        return {**vars(self), "lock": None, "is_inside_loader": False, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    @property
    def is_open(self) -> bool:
        """Whether a pass was begun and neither ended nor was left."""
        return self._pass is not None

    @property
    def ticket(self) -> Any:
        """The ticket of the batch that was yielded last in the open pass; None without one."""
        return None if self._pass is None else self._pass.ticket

    def close(self) -> None:
        """Make the open pass stale."""
        self._pass = None

    def indices(self, plain: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """What the batch sampler's ``__iter__`` returns: the open pass's indices to its loader, ``plain`` to others.

        A DataLoader makes several iterators and uses one, so making one changes nothing.
        """
        if self.is_inside_loader and self._pass is not None:
            return _HandOut(self, self._pass)
        return itertools.chain(self._note_other_use(), plain)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One pass: the loader's batches, until the source misses nothing more.

        Raises:
            ProtocolError: If the loader drops batches, yields others, or ends before the end; if a loss is not
                reported; or if the pass is stale.
        """
        current = self._pass = _Pass(loader)
        source, iterator = self._source, None
        try:
            with self.lock:
                source.recall()
            while True:
                current.check_is_only_use()
                batch = source.fetch(loader)
                if batch is NOTHING:
                    try:
                        self.is_inside_loader = True
                        if iterator is None:
                            iterator = source.start(loader)
                        batch = next(iterator)
                    except (StopIteration, RuntimeError) as error:
                        if not current.is_end(error):
                            raise
                        if self._is_over(current):
                            return
                        iterator = None
                        continue
                    finally:
                        self.is_inside_loader = False
                    self._check_arrival(current)
                ticket = current.ticket = source.offer()
                yield batch
                if self._pass is not current:
                    raise ProtocolError(
                        "this iterator is stale: another pass of attend() began, the epoch was abandoned, or a state "
                        "was loaded since. Iterate over attend(loader) again"
                    )
                source.collect(ticket)
        finally:
            if self._pass is current:
                self.is_inside_loader = False  # an interrupt may have come before it was reset
                self._pass = None
                source.closed()

    def hand_out(self, current: _Pass, asking: object) -> list[Any]:
        """The next batch's indices.

        Args:
            current: The pass that the loader's iterator belongs to.
            asking: That iterator.

        Raises:
            ProtocolError: If the pass is stale, or the loader never ends.
        """
        with self.lock:
            if current is not self._pass:
                raise ProtocolError(
                    "a loader iterator of an earlier epoch asked for more batches. Use the loader in one loop of "
                    "attend(loader) at a time. Instead of a loader that keeps one iterator for all epochs, such as "
                    "timm's MultiEpochsDataLoader, use a DataLoader with persistent_workers=True"
                )
            if asking is not current.asking:
                # A StatefulDataLoader that was saved between epochs makes an iterator, which takes its first batches,
                # and discards it for another.
                self._source.recall()
                current.asking, current.asking_thread, current.was_refused = asking, threading.get_ident(), False
            indices = self._source.hand_out()
            current.note_answer(indices)
        if indices is None:
            raise StopIteration
        return indices

    def _note_other_use(self) -> Iterator[list[Any]]:
        if self._pass is not None:
            self._pass.was_used_elsewhere = True
        yield from ()

    def _check_arrival(self, current: _Pass) -> None:
        """Refuse a batch from elsewhere, and notice a batch that was dropped.

        After a drop, more batches are in flight than when the first one arrived, and the loader had read ahead as far
        as it does. A thread that reads ahead may go further at any time.
        """
        in_flight = len(self._source.out)
        current.arrivals += 1
        if not in_flight:
            raise ProtocolError(
                f"{current.loader} yielded a batch that it did not take from this {self._sampler} in this epoch. Build "
                "it with DataLoader(dataset, batch_sampler=...), and give attend() the loader itself: islice, enumerate "
                "and generator expressions make its iterator before the epoch, as timm's MultiEpochsDataLoader does "
                "(use persistent_workers=True). Ask a StatefulDataLoader for its state only once attend() has begun"
            )
        if current.arrivals == 1:
            current.most_in_flight = in_flight
        elif in_flight > current.most_in_flight and current.asking_thread == current.thread:
            dropped = in_flight - current.most_in_flight
            raise ProtocolError(
                f"{plural(dropped, 'batch', 'batches')} of the {self._sampler} did not come out of {current.loader}: "
                "something between the DataLoader and attend() drops batches, so that losses would be attributed to "
                f"the wrong ones. Let every batch through; {self._source.advice}. What reads ahead must read as far "
                "ahead at first as later"
            )

    def _is_over(self, current: _Pass) -> bool:
        """The loader ended: whether the epoch did too, rather than one of several iterations of the loader.

        Raises:
            ProtocolError: If batches were dropped, or will never come.
        """
        arrivals, current.arrivals = current.arrivals, 0
        if in_flight := len(self._source.out):
            raise ProtocolError(
                f"{current.loader} ended with {plural(in_flight, 'batch', 'batches')} taken from the {self._sampler} "
                "and not yielded. Something between the DataLoader and attend() drops batches, or yields a fixed "
                f"number of batches, in which repeats are not counted. Let every batch through; {self._source.advice}"
            )
        missing = self._source.missing(was_refused=current.was_refused)
        if not missing:
            return True
        if not arrivals:
            raise ProtocolError(
                f"{current.loader} can be iterated over only once, with {missing} still to come. Give attend() "
                "something that begins again each time: the DataLoader, or a class whose __iter__ iterates over it, "
                "instead of a generator"
            )
        if not self._source.continues(has_length=current.has_length):
            raise ProtocolError(
                f"{current.loader} ended with {missing} still to come. Let it iterate over the whole DataLoader; "
                f"{self._source.advice}"
            )
        return False


class _Pass:
    """One pass of ``attend``; an iterator that belongs to another one is stale."""

    def __init__(self, loader: Any) -> None:
        self.loader = type(loader).__name__
        self.ticket: Any = None
        self.thread = threading.get_ident()
        self.has_length = _has_length(loader)
        self.was_used_elsewhere = False
        self.asking: object = None
        self.asking_thread = self.thread
        self.was_refused = False
        self.arrivals = 0
        self.most_in_flight = 0
        # With persistent workers, a DataLoader is one iterator.
        self._is_one_iterator = getattr(loader, "persistent_workers", False) is True
        self._iterators_without_a_batch = 0

    def is_end(self, error: Exception) -> bool:
        """Whether the loader ended. A generator that counts (``yield next(iterator)``) raises at the end."""
        return isinstance(error, StopIteration) or (self.was_refused and isinstance(error.__cause__, StopIteration))

    def check_is_only_use(self) -> None:
        """Refuse a loader whose one iterator began again elsewhere."""
        if self.was_used_elsewhere and self._is_one_iterator:
            raise ProtocolError(
                "the loader was iterated over elsewhere in the middle of its epoch. With persistent_workers it is one "
                "iterator, which began again. Use another DataLoader there"
            )

    def note_answer(self, indices: object) -> None:
        """The loader's iterator asked, and received indices, or None.

        Raises:
            ProtocolError: If every new iterator of a loader without an end would ask in vain.
        """
        if indices is not None:
            self._iterators_without_a_batch = 0
            return
        self._iterators_without_a_batch += not self.was_refused
        self.was_refused = True
        if self._iterators_without_a_batch > _MOST_ITERATORS_WITHOUT_A_BATCH:
            raise ProtocolError(
                f"{self.loader} begins again whenever there is no batch left, so the epoch would never end. Instead of "
                "a generator that cycles, or a loader that keeps one iterator for all epochs (timm's "
                "MultiEpochsDataLoader), give attend() the DataLoader, with persistent_workers=True"
            )


class _HandOut(Iterator[list[Any]]):
    """What the attended loader iterates over."""

    def __init__(self, feed: Feed, current: _Pass) -> None:
        self._feed = feed
        self._pass = current

    def __next__(self) -> list[Any]:
        return self._feed.hand_out(self._pass, self)


def _has_length(loader: Any) -> bool:
    try:
        return len(loader) is not None
    except (TypeError, NotImplementedError, AttributeError):
        return False


def check_loader(sampler: object, loader: Any) -> None:
    """Refuse a loader through which losses could not be attributed to the sampler's batches.

    Args:
        sampler: The batch sampler that the loader has to be built on.
        loader: What was attended. A wrapper need not say which batch sampler is inside.

    Raises:
        ProtocolError: If the loader changes the order, or has another batch sampler.
    """
    if getattr(loader, "in_order", True) is False:
        raise ProtocolError(
            "the DataLoader has in_order=False, so batches arrive in another order than they were handed out, and "
            "losses would be attributed to the wrong ones; leave in_order at True"
        )
    if getattr(loader, "snapshot_every_n_steps", 1) != 1:
        raise ProtocolError(
            f"the StatefulDataLoader has snapshot_every_n_steps={loader.snapshot_every_n_steps}; on a resume it would "
            "pass over batches without training on them. Leave it at 1"
        )
    inner = getattr(loader, "batch_sampler", sampler)
    if inner is sampler:
        return
    name, found = type(sampler).__name__, type(inner).__name__
    advice = f"Build it with DataLoader(dataset, batch_sampler=...) on this {name}"
    if getattr(loader, "sampler", None) is sampler:
        problem = f"was built with sampler=, which takes single indices; this {name} makes batches"
    elif sampler in (getattr(inner, "batch_sampler", None), getattr(inner, "sampler", None)):
        problem = f"has a {found} around this {name}, which changes which batches it yields, or when"
        advice += (
            ". Between ranks, give the sampler rank= and world_size=, and keep the loader out of accelerate's "
            "prepare(). To keep workers between epochs, use persistent_workers=True instead of a loader that keeps one "
            "iterator (timm's MultiEpochsDataLoader, Ultralytics' InfiniteDataLoader)"
        )
    elif inner is None:
        problem = f"does not batch, and does not use this {name}"
    else:
        problem = f"has another batch sampler, a {found}"
        advice += ", and keep trainers from replacing it (Lightning: use_distributed_sampler=False)"
    raise ProtocolError(f"the {type(loader).__name__} {problem}. {advice}")
