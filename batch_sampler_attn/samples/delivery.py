"""One epoch of batches of samples through a loader, or as lists of indices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.samples.batch import SampleBatch
from batch_sampler_attn.samples.epoch import SampleEpochs

_END = object()


class SampleDelivery:
    """Keeps batches and losses in step, and refuses what is out of turn.

    Args:
        epochs: What goes out, and what losses are made into.

    Attributes:
        is_inside_loader: Whether whoever asks for batches now is the loader that is attended.
    """

    def __init__(self, epochs: SampleEpochs) -> None:
        self.is_inside_loader = False
        self._epochs = epochs
        # The pass that is open; an iterator of another one is stale.
        self._open: object | None = None
        self._is_one_iterator = False
        self._yielded: SampleBatch | None = None
        # A pass was left with all of its updates made, and other ranks are to be told of the epoch's end.
        self._is_end_due = False

    @property
    def out(self) -> SampleBatch | None:
        """The batch that was yielded, until its losses are settled."""
        flight = self._epochs.flight
        return self._yielded if flight and flight[0] is self._yielded else None

    def close(self) -> None:
        """Nobody goes on with the pass that is open."""
        self._open = self._yielded = None
        self._is_end_due = False

    def batches(self) -> Iterator[list[int]]:
        """What whoever iterates over the batch sampler gets.

        The loader that is attended makes several iterators and uses one, so making one changes nothing. Anybody else
        gets all samples once, in order. A loader whose workers persist has one iterator, which begins anew then: what
        it yields next to the pass that is open are no batches of it.
        """
        if self.is_inside_loader:
            return _HandOuts(self, self._open)
        if self._is_one_iterator:
            self.close()
        options = self._epochs.options
        firsts = range(0, options.samples, options.batch_size)
        return (list(range(first, min(first + options.batch_size, options.samples))) for first in firsts)

    def hand_out(self, token: object) -> list[int]:
        """The next batch's indices, for an iterator that was made in the pass ``token``.

        Raises:
            ProtocolError: If that is another pass.
        """
        if token is not self._open:
            raise ProtocolError(
                "a loader iterator of an earlier epoch asked for more batches; use the loader through one "
                "attention.attend(loader) loop at a time"
            )
        batch = self._epochs.hand_out()
        if batch is None:
            raise StopIteration
        return list(batch.indices)

    def deliver(self, loader: Iterable[Any] | None) -> Iterator[Any]:
        """``SampleAttention.attend``, for a loader that was checked."""
        if self._is_end_due or self._is_left_whole:
            self._epochs.end()
            self.close()
        token = self._open = object()
        self._is_one_iterator = getattr(loader, "persistent_workers", False) is True
        self._yielded = None
        try:
            self._epochs.agree_on_begin()
            self._epochs.take_back()
            iterator = _HandOuts(self, token) if loader is None else self._inside(iter, loader)
            while (batch := self._inside(next, iterator, _END)) is not _END:
                self._check_is_current(token)
                if not self._epochs.flight:
                    raise ProtocolError(
                        f"{type(loader).__name__} yielded a batch that it did not take from this SampleAttention; "
                        "build it with DataLoader(dataset, batch_sampler=attention)"
                    )
                self._yielded = self._epochs.flight[0]
                yield batch
                self._check_is_current(token)
                if self.out is not None:
                    raise ProtocolError(
                        "the next batch was asked for before weigh() or report() was told the losses of the last one"
                    )
            self._check_is_current(token)
            if not self._epochs.is_over:
                made, due = self._epochs.counts.updates, self._epochs.options.updates
                raise ProtocolError(
                    f"{type(loader).__name__} ended after {made} of {due} updates. Something between the DataLoader "
                    "and attend() drops batches; let every batch through"
                )
            self._epochs.end()
        finally:
            if self._open is token:
                self.is_inside_loader = False  # where an interrupt came between call and answer
                is_end_due = self._is_left_whole
                self.close()
                if is_end_due and self._epochs.agreement.ranks > 1:
                    # Not from here: whoever leaves a loop does not wait for others, who may be gone.
                    self._is_end_due = True
                elif is_end_due:
                    self._epochs.end()

    @property
    def _is_left_whole(self) -> bool:
        """Whether the pass that is open has all of its updates, as where a loop counts batches by itself."""
        return self._yielded is not None and self._epochs.is_over

    def _check_is_current(self, token: object) -> None:
        if self._open is not token:
            raise ProtocolError(
                "this iterator is stale: another attend() was begun since, a state was loaded, or the loader, whose "
                "workers persist, was gone through elsewhere; iterate over attention.attend(loader) anew"
            )

    def _inside(self, call: Any, *arguments: Any) -> Any:
        try:
            self.is_inside_loader = True
            return call(*arguments)
        finally:
            self.is_inside_loader = False


class _HandOuts(Iterator[list[int]]):
    def __init__(self, delivery: SampleDelivery, token: object) -> None:
        self._delivery = delivery
        self._token = token

    def __next__(self) -> list[int]:
        return self._delivery.hand_out(self._token)
