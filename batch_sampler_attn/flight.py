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

from batch_sampler_attn.errors import ProtocolError, StateError, plural
from batch_sampler_attn.options import length_of

# What a source fetches where the loader itself is to yield the next batch.
NOTHING = object()

# A StatefulDataLoader may make one iterator for its own state, and a loop one more than it needs.
_MOST_ITERATORS_WITHOUT_A_BATCH = 3


class InFlight(NamedTuple):
    """Batches between a loader and a loop, as tickets. It is never changed, but replaced.

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
        leave_out: For errors: how to leave a batch out.
        fewer: For errors: how to train on fewer batches.
    """

    leave_out: str
    fewer: str

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
        """The loop requests the next batch. Raises ProtocolError if it has not reported this one's loss."""

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
        self._was_loaded = False

    def __getstate__(self) -> dict[str, Any]:
        # The loop and its lock belong to the original, not to a copy.
        return {**vars(self), "lock": None, "is_inside_loader": False, "_pass": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())

    @property
    def is_kept(self) -> bool:
        """Whether a loop has stopped asking for batches, but keeps the iterator, which would go on."""
        return self._pass is not None and self._pass.is_suspended

    @property
    def ticket(self) -> Any:
        """The ticket of the batch that the open pass has yielded last; None without one."""
        return None if self._pass is None else self._pass.ticket

    def loaded(self) -> None:
        """The sampler's state is about to be replaced by a loaded one."""
        self._pass, self._was_loaded = None, True

    def is_loaders_state(self) -> bool:
        """Whether a StatefulDataLoader is loading a state of its own, to be ignored next to one that was loaded."""
        if self.is_inside_loader and not self._was_loaded:
            raise StateError(
                f"a StatefulDataLoader tried to restore this {self._sampler} from a state of its own, which is older "
                "than the losses. Save the sampler's state_dict() beside loader.state_dict(), and load both"
            )
        return self.is_inside_loader

    def indices(self, plain: Iterable[list[Any]]) -> Iterator[list[Any]]:
        """What the batch sampler's ``__iter__`` returns: the open pass's indices to its loader, ``plain`` to others."""
        # A DataLoader makes several iterators and uses one, so making one changes nothing.
        if self.is_inside_loader and self._pass is not None:
            return _HandOut(self, self._pass)
        return itertools.chain(self._note_other_use(), plain)

    def batches(self, loader: Any) -> Iterator[Any]:
        """One pass: the loader's batches, until nothing is missing. Raises ProtocolError for what is out of turn."""
        current = self._pass = _Pass(loader)
        source, iterator = self._source, None
        try:
            with self.lock:
                source.recall()
            while True:
                if current.was_used_elsewhere and current.is_one_iterator:
                    raise ProtocolError(
                        "the loader was iterated over elsewhere in the middle of its epoch. With persistent_workers it "
                        "is one iterator, which began again. Use another DataLoader there"
                    )
                batch = source.fetch(loader)
                if batch is NOTHING:
                    try:
                        self.is_inside_loader = True
                        if iterator is None:
                            iterator = source.start(loader)
                        batch = next(iterator)
                    except (StopIteration, RuntimeError) as error:
                        # A generator that counts (``yield next(iterator)``) raises RuntimeError at the end.
                        is_end = current.was_refused and isinstance(error.__cause__, StopIteration)
                        if not is_end and not isinstance(error, StopIteration):
                            raise
                        if self._is_over(current):
                            return
                        iterator = None
                        continue
                    finally:
                        self.is_inside_loader = False
                    self._check_arrival(current)
                ticket = current.ticket = source.offer()
                current.is_suspended = True
                yield batch
                current.is_suspended = False
                if self._pass is not current:
                    raise ProtocolError(
                        "this iterator is stale: another pass of attend() began, the epoch was abandoned, or a state "
                        "was loaded since. Iterate over attend(loader) again"
                    )
                source.collect(ticket)
        finally:
            current.is_suspended = False
            if self._pass is current:
                self.is_inside_loader = False  # an interrupt may have come before it was reset
                self._pass = None
                source.closed()

    def hand_out(self, current: _Pass, asking: object) -> list[Any]:
        """The next batch's indices, for a loader's iterator that was made in the pass ``current``."""
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
        if indices is None:
            current.refuse()
            raise StopIteration
        current.iterators_without_a_batch = 0
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
                f"{current.loader} yielded a batch that it did not take from this {self._sampler} in this epoch. Give "
                "attend() a DataLoader(dataset, batch_sampler=...) itself: islice, enumerate and generator expressions "
                "make its iterator before the epoch, as timm's MultiEpochsDataLoader does; persistent_workers=True "
                "does not. Ask a StatefulDataLoader for its state only once attend() has begun. To train on fewer "
                f"batches, {self._source.fewer}"
            )
        if current.arrivals == 1:
            current.most_in_flight = in_flight
        elif in_flight > current.most_in_flight and current.asking_thread == current.thread:
            dropped = plural(in_flight - current.most_in_flight, "batch", "batches")
            raise ProtocolError(
                f"{dropped} of the {self._sampler} did not come out of {current.loader}: something between the "
                "DataLoader and attend() drops batches, so that losses would be attributed to the wrong ones. Let "
                f"every batch through; to leave one out, {self._source.leave_out}. What reads ahead must read as far "
                "ahead at first as later"
            )

    def _is_over(self, current: _Pass) -> bool:
        """The loader ended: whether the epoch did too, rather than one of several iterations of the loader."""
        arrivals, current.arrivals = current.arrivals, 0
        if in_flight := len(self._source.out):
            raise ProtocolError(
                f"{current.loader} ended with {plural(in_flight, 'batch', 'batches')} taken from the {self._sampler} "
                "and not yielded. Something between the DataLoader and attend() drops batches (to leave one out, "
                f"{self._source.leave_out}) or yields a fixed number of batches, repeats included (to train on fewer, "
                f"{self._source.fewer}). Let every batch through"
            )
        missing = self._source.missing(was_refused=current.was_refused)
        if not missing:
            return True
        if not arrivals:
            raise ProtocolError(
                f"{current.loader} can be iterated over only once, with {missing} still to come. Give attend() the "
                "DataLoader, or a class whose __iter__ iterates over it, instead of a generator"
            )
        if not self._source.continues(has_length=current.has_length):
            raise ProtocolError(
                f"{current.loader} ended with {missing} still to come. Let it iterate over the whole DataLoader; to "
                f"train on fewer batches, {self._source.fewer}"
            )
        return False


class _Pass:
    """One pass of ``attend``; an iterator that belongs to another one is stale."""

    def __init__(self, loader: Any) -> None:
        self.loader = type(loader).__name__
        self.ticket: Any = None
        self.thread = self.asking_thread = threading.get_ident()
        self.asking: object = None
        self.was_refused = self.was_used_elsewhere = self.is_suspended = False
        self.has_length = length_of(loader) is not None
        # With persistent workers, a DataLoader is one iterator.
        self.is_one_iterator = getattr(loader, "persistent_workers", False) is True
        self.arrivals = self.most_in_flight = self.iterators_without_a_batch = 0

    def refuse(self) -> None:
        """There is no batch for the asking iterator. Raises ProtocolError if that will never end the loader."""
        self.iterators_without_a_batch += not self.was_refused
        self.was_refused = True
        if self.iterators_without_a_batch > _MOST_ITERATORS_WITHOUT_A_BATCH:
            raise ProtocolError(
                f"{self.loader} begins again whenever there is no batch left, and never ends itself. Instead of a "
                "generator that cycles, or a loader that keeps one iterator for all epochs (timm's "
                "MultiEpochsDataLoader), give attend() the DataLoader, with persistent_workers=True"
            )


class _HandOut(Iterator[list[Any]]):
    """What the attended loader iterates over."""

    def __init__(self, feed: Feed, current: _Pass) -> None:
        self._feed = feed
        self._pass = current

    def __next__(self) -> list[Any]:
        return self._feed.hand_out(self._pass, self)


def check_loader(sampler: object, loader: Any) -> None:
    """Refuse a loader through which losses could not be attributed to the batches of ``sampler``."""
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
    # A wrapper need not say which batch sampler is inside.
    inner = getattr(loader, "batch_sampler", sampler)
    if inner is sampler:
        return
    name, found = type(sampler).__name__, type(inner).__name__
    advice = f"Build it with DataLoader(dataset, batch_sampler=...) on this {name}"
    if getattr(loader, "sampler", None) is sampler:
        problem = f"was built with sampler=, which takes single indices; a {name} makes batches"
    elif inner is None:
        problem = f"does not batch, and does not use this {name}"
    elif sampler in (getattr(inner, "batch_sampler", None), getattr(inner, "sampler", None)):
        problem = f"has a {found} around this {name}, which changes what it yields on a rank, or when"
        advice += (
            ". Between ranks, give it rank= and world_size=, and no loader to accelerate's prepare(). To keep workers, "
            "use persistent_workers=True instead of a loader that keeps one iterator, as timm's "
            "MultiEpochsDataLoader and Ultralytics' InfiniteDataLoader do"
        )
    else:
        problem = f"has another batch sampler, a {found}"
        advice += ", and keep trainers from replacing it (Lightning: use_distributed_sampler=False)"
    raise ProtocolError(f"the {type(loader).__name__} {problem}. {advice}")
