"""One epoch of a ``BatchAttentionSampler`` through its DataLoader, repeats included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Sampler

from batch_sampler_attn.errors import ProtocolError

if TYPE_CHECKING:
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.schedule import BatchAttentionSchedule


def deliver(sampler: BatchAttentionSampler, schedule: BatchAttentionSchedule, loader: Any) -> Iterator[Any]:
    """Yield the loader's batches, and each again while the schedule's decision is REPEAT."""
    token = schedule._open_pass()
    finished = False
    try:
        is_resumed = sampler._open_pass(token)
        progress, fetcher = sampler._progress, OnDemandFetcher(loader)
        iterator = _start_resumed(sampler, loader) if is_resumed else _inside(sampler, iter, loader)
        plain_passes = sampler._plain_passes
        while True:
            if sampler._plain_passes != plain_passes and getattr(loader, "persistent_workers", False):
                raise ProtocolError(
                    "the loader was iterated over elsewhere in the middle of its epoch; having persistent_workers, it "
                    "is one iterator, and began anew. Use another DataLoader there"
                )
            if progress.is_fetch_due:
                batch = fetcher.fetch(progress.pending[0].indices)
            else:
                try:
                    batch = _inside(sampler, next, iterator)
                except StopIteration:
                    if progress.flight:
                        raise ProtocolError(
                            f"the loader ended with {len(progress.flight)} batches taken from the sampler and not "
                            "yielded; something between the DataLoader and attend() drops batches"
                        ) from None
                    if not progress.pending:
                        break
                    # Repeats decided on too late for this pass of the loader: another pass serves them.
                    iterator = _inside(sampler, iter, loader)
                    continue
            schedule._offer(token, progress.out())
            yield batch
            schedule._turns.collect(token)
        finished = True
    finally:
        if finished:
            sampler._forget_epoch()
        schedule._close_pass(token, finished=finished)


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
    if isinstance(loader, DataLoader) and loader.batch_sampler is None:
        raise ProtocolError("the DataLoader does not batch; build it with DataLoader(dataset, batch_sampler=sampler)")
    if sampler.repeats == "immediate" and not _yields_what_it_fetches(loader):
        raise ProtocolError(
            f"an immediate repeat is fetched from the DataLoader's data set, past what {type(loader).__name__} may do "
            "to a batch. Pass the DataLoader itself, or use BatchAttentionSampler(..., repeats='deferred')"
        )


class OnDemandFetcher:
    """Fetches a batch in this process, collated and pinned as the loader's own are."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._request = _Request()
        self._iterator: Iterator[Any] | None = None

    def fetch(self, indices: list[int]) -> Any:
        """The batch of ``indices``."""
        self._request.indices = indices
        if self._iterator is None:
            self._iterator = iter(self._without_workers())
        return next(self._iterator)

    def _without_workers(self) -> DataLoader[Any]:
        return DataLoader(
            self._loader.dataset,
            batch_sampler=self._request,
            collate_fn=self._loader.collate_fn,
            pin_memory=self._loader.pin_memory,
            # Making an iterator draws a seed for workers; this one has none, and the user's generator is not ours.
            generator=torch.Generator(),
        )


class _Request(Sampler[list[int]]):
    """Without workers a DataLoader asks for indices only as it fetches: these are always the ones wanted now."""

    def __init__(self) -> None:
        self.indices: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self.indices


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


def _inside(sampler: BatchAttentionSampler, call: Any, argument: Any) -> Any:
    """Call into the loader, with the sampler knowing that whoever asks it now is the loader."""
    sampler._is_inside_loader = True
    try:
        return call(argument)
    finally:
        sampler._is_inside_loader = False
