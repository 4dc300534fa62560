"""Noticing what goes wrong between a DataLoader and ``attend``."""

from __future__ import annotations

import threading

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.loading.progress import EpochProgress


class PassWatch:
    """Notices what goes wrong between the DataLoader and ``attend``: batches left out, and ends before the end.

    Args:
        progress: Of the batches.
        loader: Named in errors.
    """

    def __init__(self, progress: EpochProgress, loader: object) -> None:
        self._progress = progress
        self._loader = type(loader).__name__
        self._thread = threading.get_ident()
        self._has_length = length_of(loader) is not None
        self._begin_pass()

    def _begin_pass(self) -> None:
        self._arrivals = 0
        self._most_in_flight = 0

    def note_arrival(self) -> None:
        """A batch came from the loader.

        Raises:
            ProtocolError: If one before it was left out: then more are in flight than when the pass began, and whoever
                reads ahead had read ahead. (A thread that reads ahead may go further ahead at any time.)
        """
        in_flight = len(self._progress.flight)
        self._arrivals += 1
        if self._arrivals == 1:
            self._most_in_flight = in_flight
        elif in_flight > self._most_in_flight and self._progress.asked_by == self._thread:
            raise ProtocolError(
                f"{in_flight - self._most_in_flight} of the sampler's batches did not come out of {self._loader}: "
                "something between the DataLoader and attend() leaves batches out (a generator that filters what "
                "a collate function returns, say), so that losses would go to the wrong ones. Let every batch "
                "through, and call schedule.skip() in the loop for those not to be trained on. What reads ahead has to "
                "read as far ahead at first as later on"
            )

    def is_epoch_over(self) -> bool:
        """The loader ended: was that the epoch's end, rather than the end of one pass of several?

        Raises:
            ProtocolError: If batches were lost, or will never come.
        """
        progress, arrivals = self._progress, self._arrivals
        self._begin_pass()
        if progress.flight:
            raise ProtocolError(
                f"{self._loader} ended with {len(progress.flight)} batches taken from the sampler and not yielded. "
                "Something between the DataLoader and attend() drops batches: let every batch through, and call "
                "schedule.skip() in the loop. Or it yields a fixed number of batches, of which deferred repeats, "
                "which come on top of the base batches, take some: let it go through the whole DataLoader, and give "
                "the sampler batches_per_epoch=n to train on fewer"
            )
        if not progress.pending and (progress.was_asked_in_vain or progress.is_over):
            return True
        if not arrivals:
            raise ProtocolError(
                f"{self._loader} can be gone through only once, and {len(progress.pending)} repeats are still to be "
                "served by going through it again. Give attend() something that begins anew each time: the DataLoader, "
                "or a class whose __iter__ goes through it, in place of a generator"
            )
        if not self._has_length and not progress.pending and not progress.is_over:
            raise ProtocolError(
                f"{self._loader} ended after {progress.position} base batches without having asked the sampler for all "
                "of them, and has no len() that says how many it means to take. Give it a __len__, or let it go "
                "through the whole DataLoader and give the sampler batches_per_epoch=n"
            )
        return False


def is_end(error: Exception, progress: EpochProgress) -> bool:
    """Whether the loader ended.

    A generator that counts what it takes (``yield next(iterator)``, so many times) falls over the end.
    """
    return isinstance(error, StopIteration) or (
        progress.was_asked_in_vain and isinstance(error.__cause__, StopIteration)
    )
