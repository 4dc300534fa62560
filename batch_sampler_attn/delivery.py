"""One epoch of a ``BatchAttentionSampler`` through its DataLoader, repeats included."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.bookkeeping import ENDLESS
from batch_sampler_attn.errors import BatchAttentionWarning, ProtocolError

if TYPE_CHECKING:
    from batch_sampler_attn.progress import EpochProgress
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.schedule import BatchAttentionSchedule


def deliver(sampler: BatchAttentionSampler, schedule: BatchAttentionSchedule, loader: Any) -> Iterator[Any]:
    """Yield the loader's batches, and each again while the schedule's decision is REPEAT."""
    token = schedule._open_pass()
    finished = False
    try:
        is_resumed = sampler._open_pass(token, loader)
        progress = sampler._progress
        _notice_endless_epoch(progress, schedule, stacklevel=2)
        watch = _PassWatch(sampler, loader)
        iterator = _start_resumed(sampler, loader) if is_resumed else _inside(sampler, iter, loader)
        plain_passes = sampler._plain_passes
        while True:
            if sampler._plain_passes != plain_passes and getattr(loader, "persistent_workers", False):
                raise ProtocolError(
                    "the loader was iterated over elsewhere in the middle of its epoch; having persistent_workers, it "
                    "is one iterator, and began anew. Use another DataLoader there"
                )
            if progress.is_fetch_due:
                batch = sampler._fetcher_for(loader).fetch(progress.pending[0].to_fetch(progress.begun))
            else:
                try:
                    batch = _inside(sampler, next, iterator)
                except (StopIteration, RuntimeError) as error:
                    if not _is_end(error, progress):
                        raise
                    if watch.is_epoch_over():
                        break
                    # Repeats decided on too late for this pass of the loader, or base batches whose places repeats
                    # have taken in a loader that counts: another pass serves them.
                    iterator = _inside(sampler, iter, loader)
                    continue
                watch.note_arrival()
            schedule._offer(token, progress.out())
            yield batch
            schedule._turns.collect(token)
        finished = True
    finally:
        sampler._close_pass(token, finished=finished)
        schedule._close_pass(token, finished=finished)


class _PassWatch:
    """Notices what goes wrong between the DataLoader and ``attend``: batches left out, and ends before the end.

    Args:
        sampler: Whose batches they are.
        loader: Named in errors.
    """

    def __init__(self, sampler: BatchAttentionSampler, loader: Any) -> None:
        self._progress = sampler._progress
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


def check_loader(sampler: BatchAttentionSampler, loader: Any) -> None:
    """Refuse loaders that would attribute losses to the wrong batches, or cannot repeat as asked."""
    if getattr(loader, "in_order", True) is False:
        raise ProtocolError(
            "the DataLoader has in_order=False, so batches arrive in another order than they were handed out, and "
            "losses would go to the wrong ones; leave in_order at True"
        )
    if getattr(loader, "snapshot_every_n_steps", 1) != 1:
        raise ProtocolError(
            f"the StatefulDataLoader has snapshot_every_n_steps={loader.snapshot_every_n_steps}; on a resume it would "
            "go through batches without training on them. Leave it at 1"
        )
    if isinstance(loader, itertools.islice):
        raise ProtocolError(
            "attend() was given islice(...), which began to iterate over the DataLoader before the epoch did. To train "
            "on n batches an epoch, use BatchAttentionSampler(..., batches_per_epoch=n), and attend the DataLoader"
        )
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        raise ProtocolError("the DataLoader does not batch; build it with DataLoader(dataset, batch_sampler=sampler)")
    if getattr(loader, "sampler", None) is sampler:
        raise ProtocolError(
            "the DataLoader was built with sampler=, which takes a sampler of single indices; a BatchAttentionSampler "
            "makes batches: DataLoader(dataset, batch_sampler=sampler)"
        )
    inner = getattr(loader, "batch_sampler", None)
    if inner is not sampler and getattr(inner, "sampler", None) is sampler:
        raise ProtocolError(
            f"the batch sampler of {type(loader).__name__} is a {type(inner).__name__} around the "
            "BatchAttentionSampler, as in loaders that keep one iterator for all epochs (timm's MultiEpochsDataLoader, "
            "Ultralytics' InfiniteDataLoader), which hand batches out before an epoch begins. Use "
            "DataLoader(dataset, batch_sampler=sampler, persistent_workers=True), which keeps its workers too"
        )
    if sampler.repeats == "immediate" and not _yields_what_it_fetches(loader):
        raise ProtocolError(
            f"an immediate repeat is fetched from the DataLoader's data set, past what {type(loader).__name__} may do "
            "to a batch. Pass the DataLoader itself, or use BatchAttentionSampler(..., repeats='deferred')"
        )


def _yields_what_it_fetches(loader: Any) -> bool:
    if not isinstance(loader, DataLoader):
        return False
    overriding = type(loader).__iter__
    return overriding is DataLoader.__iter__ or overriding.__module__.partition(".")[0] == "torchdata"


def _start_resumed(sampler: BatchAttentionSampler, loader: Any) -> Iterator[Any]:
    """``iter(loader)``, with as many draws from its generator as the run that is resumed made at this point.

    A DataLoader draws a seed for its workers whenever it makes an iterator: here too, where the saved run was in the
    middle of one. From then on, whoever shares the generator (it may be torch's global one) would draw other numbers.
    """
    if not isinstance(loader, DataLoader) or not _yields_what_it_fetches(loader):
        # Who knows when a wrapper begins to iterate over what it wraps?
        return _inside(sampler, iter, loader)  # type: ignore[no-any-return]
    generator = loader.generator
    throwaway = torch.Generator()
    throwaway.set_state((generator or torch.default_generator).get_state())
    # Persistent workers keep the seed that they were started with.
    is_first_start = sampler._progress.position == 0 and sampler.schedule.epoch == 0
    if is_first_start or (sampler._progress.starts_loader_anew and not loader.persistent_workers):
        torch.empty((), dtype=torch.int64).random_(generator=generator)
    loader.generator = throwaway
    try:
        return _inside(sampler, iter, loader)  # type: ignore[no-any-return]
    finally:
        loader.generator = generator


def _notice_endless_epoch(progress: EpochProgress, schedule: BatchAttentionSchedule, *, stacklevel: int) -> None:
    length = progress.limit or progress.length
    is_first_epoch = schedule.epoch == 0 and schedule.options.window is None
    if length is not None and length >= ENDLESS and is_first_epoch:
        warnings.warn(
            f"an epoch of this sampler has {length:,} batches, and nothing repeats before the first has ended. For "
            "shorter epochs, use BatchAttentionSampler(..., batches_per_epoch=n), or let every n batches be one to the "
            "schedule: BatchAttentionSchedule(window=n)",
            BatchAttentionWarning,
            stacklevel=stacklevel + 1,
        )


def _is_end(error: Exception, progress: EpochProgress) -> bool:
    """Whether the loader ended.

    A generator that counts what it takes (``yield next(iterator)``, so many times) falls over the end.
    """
    return isinstance(error, StopIteration) or (
        progress.was_asked_in_vain and isinstance(error.__cause__, StopIteration)
    )


def _inside(sampler: BatchAttentionSampler, call: Any, argument: Any) -> Any:
    """Call into the loader, with the sampler knowing that whoever asks it now is the loader."""
    sampler._is_inside_loader = True
    try:
        return call(argument)
    finally:
        sampler._is_inside_loader = False
