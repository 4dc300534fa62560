"""One epoch of batches of samples through a loader, or as lists of indices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.samples.batch import SampleBatch
from batch_sampler_attn.samples.epoch import SampleEpochs
from batch_sampler_attn.samples.summary import SampleSummary

_END = object()


class SampleDelivery:
    """Keeps batches and losses in step, and refuses what is out of turn.

    Args:
        epochs: What goes out, and what losses are made into.

    Attributes:
        is_inside_loader: Whether whoever asks for batches now is the loader that is attended.
        last_summary: Of the epoch that ended last; None before.
        out: The batch that was yielded, until its losses are reported.
    """

    def __init__(self, epochs: SampleEpochs) -> None:
        self.is_inside_loader = False
        self.last_summary: SampleSummary | None = None
        self.out: SampleBatch | None = None
        self._epochs = epochs
        # The pass that is open; an iterator of another one is stale.
        self._open: object | None = None

    def hand_outs(self) -> Iterator[list[int]]:
        """What a loader iterates over. It makes several iterators and uses one, so making one changes nothing."""
        return _HandOuts(self, self._open)

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
        token = self._open = object()
        self.out = None
        self._epochs.agree_on_begin()
        self._epochs.take_back()
        try:
            iterator = self.hand_outs() if loader is None else self._inside(iter, loader)
            while (batch := self._inside(next, iterator, _END)) is not _END:
                self._check_is_current(token)
                if not self._epochs.flight:
                    raise ProtocolError(
                        f"{type(loader).__name__} yielded a batch that it did not take from this SampleAttention; "
                        "build it with DataLoader(dataset, batch_sampler=attention)"
                    )
                self.out = self._epochs.flight[0]
                yield batch
                self._check_is_current(token)
                if self.out is not None:
                    raise ProtocolError(
                        "the next batch was asked for before weigh() or report() was told the losses of the last one"
                    )
            if not self._epochs.is_over:
                made, due = self._epochs.counts.updates, self._epochs.options.updates
                raise ProtocolError(
                    f"{type(loader).__name__} ended after {made} of {due} updates. Something between the DataLoader "
                    "and attend() drops batches; let every batch through"
                )
            self.last_summary = self._epochs.end()
        finally:
            if self._open is token:
                self._open = self.out = None

    def _check_is_current(self, token: object) -> None:
        if self._open is not token:
            raise ProtocolError(
                "this iterator is stale: another attend() was begun, or a state was loaded since; iterate over "
                "attention.attend(loader) anew"
            )

    def _inside(self, call: Any, *arguments: Any) -> Any:
        self.is_inside_loader = True
        try:
            return call(*arguments)
        finally:
            self.is_inside_loader = False


class _HandOuts(Iterator[list[int]]):
    def __init__(self, delivery: SampleDelivery, token: object) -> None:
        self._delivery = delivery
        self._token = token

    def __next__(self) -> list[int]:
        return self._delivery.hand_out(self._token)
