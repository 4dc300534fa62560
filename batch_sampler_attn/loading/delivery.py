"""One epoch of a sampler's batches through its DataLoader, repeats included."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader

from batch_sampler_attn import notices
from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.loading.base_batches import BaseBatches
from batch_sampler_attn.loading.loader_checks import check_loader, yields_what_it_fetches
from batch_sampler_attn.loading.on_demand import OnDemandFetcher
from batch_sampler_attn.loading.pass_watch import PassWatch, is_end
from batch_sampler_attn.loading.progress import EpochProgress
from batch_sampler_attn.loading.shard_checks import check_shard
from batch_sampler_attn.passes import Pass
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.shards import Shard


class Delivery:
    """What drives the schedule of a ``BatchAttentionSampler``; a ``passes.Driver``.

    Args:
        sampler: That loaders are built on.
        base: Its base batches.
        schedule: Its schedule.
        is_immediate: Whether a repeat is fetched at once, rather than handed out to the loader again.

    Attributes:
        is_in_order: Whether a batch is done with before the next one is begun.
        is_inside_loader: Whether whoever asks the sampler now is the loader that is attended.
        progress: Of the epoch's batches.
    """

    def __init__(
        self, sampler: object, base: BaseBatches, schedule: BatchAttentionSchedule, *, is_immediate: bool
    ) -> None:
        self.is_in_order = is_immediate
        self.is_inside_loader = False
        self._sampler = sampler
        self._base = base
        self._schedule = schedule
        self._fetchers: WeakKeyDictionary[Any, OnDemandFetcher] = WeakKeyDictionary()
        self._pass: Pass | None = None
        self._plain_passes = 0
        self.forget_epoch()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes are no part of a copy. One that was made in mid-epoch goes on after
        # load_state_dict(state_dict()); iterated over, it begins the epoch anew, as after a loop that was left.
        return {**vars(self), "_fetchers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _fetchers=WeakKeyDictionary())

    # What the sampler asks for -----------------------------------------------------------------------

    def batches(self) -> Iterator[list[int]]:
        """What the sampler is iterated over as: visits for the loader that is attended, base batches for others."""
        # A DataLoader makes several iterators and uses one, so making one must not change anything.
        if self.is_inside_loader:
            return _HandOut(self, self._pass)
        return itertools.chain(self._count_plain_pass(), self._base)

    def go_on(self, progress: EpochProgress) -> None:
        """Let the next pass go on from a loaded state."""
        self._pass = None
        self.progress = progress
        self._is_resumed = True

    def hand_out(self, asking: object, token: object) -> list[int]:
        """The next batch's indices.

        Args:
            asking: The loader's iterator over the sampler.
            token: The pass that it was made in.

        Raises:
            ProtocolError: If that is another pass.
        """
        if token is not self._pass:
            raise ProtocolError(
                "a loader iterator of an earlier epoch asked for more batches. Use the loader through one "
                "schedule.attend(loader) loop at a time; and in place of a loader that keeps one iterator for all "
                "epochs, such as timm's MultiEpochsDataLoader, a DataLoader with persistent_workers=True"
            )
        return self.progress.hand_out(asking)

    def _count_plain_pass(self) -> Iterator[list[int]]:
        self._plain_passes += 1
        yield from ()

    # What the schedule asks for ------------------------------------------------------------------------

    def deliver(self, loader: Any) -> Iterator[Any]:
        """One epoch: the loader's batches, and each again while the decision is REPEAT.

        Raises:
            ProtocolError: If the loader cannot be served, or the schedule is where the sampler is not.
        """
        check_loader(self._sampler, loader, is_immediate=self.is_in_order)
        schedule = self._schedule
        reduce = schedule.agreement.reduce
        if reduce is not None and reduce.ranks > 1:
            check_shard(self._base.sampler, self._base.shard, Shard(reduce.rank, reduce.ranks))
        is_in_epoch = schedule.active_pass is None and schedule.epochs.state.progress > 0
        if is_in_epoch and not self._is_resumed and schedule.options.window is None:
            raise ProtocolError(
                "the schedule is in the middle of an epoch, but its BatchAttentionSampler is not: load "
                "sampler.state_dict(), which holds the schedule's state, instead of schedule.state_dict() alone"
            )
        return self._deliver(loader)

    def settle(self, decision: Decision, visits: int) -> None:
        """The loss of the batch that is out was reported, its visit number ``visits``."""
        self.progress.settle(decision, visits)

    def skip(self) -> None:
        """The batch that is out is not trained on."""
        self.progress.let_go()

    def forget_epoch(self) -> None:
        """The epoch in progress begins anew."""
        self._is_resumed = False
        self.progress = EpochProgress(self._base, is_immediate=self.is_in_order)

    # One pass --------------------------------------------------------------------------------------------

    def _deliver(self, loader: Any) -> Iterator[Any]:
        length = length_of(loader)
        with self._schedule.open_pass(length, self._base.common_to_ranks()) as current:
            try:
                yield from self._serve(current, loader)
                self.forget_epoch()
            finally:
                if self._pass is current:
                    self._let_workers_go()

    def _serve(self, current: Pass, loader: Any) -> Iterator[Any]:
        is_resumed = self._begin(current, loader)
        progress = self.progress
        watch = PassWatch(progress, loader)
        iterator = self._start_resumed(loader) if is_resumed else self._inside(iter, loader)
        plain_passes = self._plain_passes
        while True:
            if self._plain_passes != plain_passes and getattr(loader, "persistent_workers", False):
                raise ProtocolError(
                    "the loader was iterated over elsewhere in the middle of its epoch; having persistent_workers, it "
                    "is one iterator, and began anew. Use another DataLoader there"
                )
            if progress.is_fetch_due:
                batch = self._fetcher_for(loader).fetch(progress.pending[0].to_fetch(progress.begun))
            else:
                try:
                    batch = self._inside(next, iterator)
                except (StopIteration, RuntimeError) as error:
                    if not is_end(error, progress):
                        raise
                    if watch.is_epoch_over():
                        return
                    # Repeats decided on too late for this pass of the loader, or base batches whose places repeats
                    # have taken in a loader that counts: another pass serves them.
                    iterator = self._inside(iter, loader)
                    continue
                watch.note_arrival()
            ticket = progress.out()
            current.offer(ticket.position, visits=ticket.visits, indices=ticket.indices)
            yield batch
            current.collect()

    def _begin(self, current: Pass, loader: Any) -> bool:
        """Begin an epoch of the loader's, or go on in a loaded one; tell whether it is the latter."""
        is_resumed, self._is_resumed = self._is_resumed, False
        if not is_resumed:
            self.forget_epoch()
        progress, schedule = self.progress, self._schedule
        if progress.position == 0:
            progress.begun = schedule.epoch, schedule.epochs.state.position
        self._pass = current
        self._let_workers_go()
        length, whole = length_of(loader), self._base.length
        # A loader that takes all there is asks to the end, as torch's own do: some samplers draw once more there.
        progress.limit = length if length is not None and whole is not None and length < whole else None
        progress.go_on()
        batches = progress.limit or whole or 0
        if batches >= notices.ENDLESS and schedule.epoch == 0 and schedule.options.window is None:
            notices.long_first_epoch(batches)
        return is_resumed

    def _start_resumed(self, loader: Any) -> Iterator[Any]:
        """``iter(loader)``, with as many draws from its generator as the run that is resumed made at this point.

        A DataLoader draws a seed for its workers whenever it makes an iterator: here too, where the saved run was in
        the middle of one. From then on, whoever shares the generator (it may be torch's global one) would draw other
        numbers.
        """
        if not isinstance(loader, DataLoader) or not yields_what_it_fetches(loader):
            # Who knows when a wrapper begins to iterate over what it wraps?
            return self._inside(iter, loader)  # type: ignore[no-any-return]
        generator = loader.generator
        throwaway = torch.Generator()
        throwaway.set_state((generator or torch.default_generator).get_state())
        # Persistent workers keep the seed that they were started with.
        is_first_start = self.progress.position == 0 and self._schedule.epoch == 0
        if is_first_start or (self.progress.starts_loader_anew and not loader.persistent_workers):
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        loader.generator = throwaway
        try:
            return self._inside(iter, loader)  # type: ignore[no-any-return]
        finally:
            loader.generator = generator

    def _inside(self, call: Any, argument: Any) -> Any:
        """Call into the loader, with the sampler knowing that whoever asks it now is the loader."""
        self.is_inside_loader = True
        try:
            return call(argument)
        finally:
            self.is_inside_loader = False

    def _fetcher_for(self, loader: Any) -> OnDemandFetcher:
        """What fetches immediate repeats: the same for as long as the loader's own workers are."""
        fetcher = self._fetchers.get(loader)
        if fetcher is None:
            moment = self._schedule.epoch, self.progress.position
            fetcher = self._fetchers[loader] = OnDemandFetcher(loader, moment)
        return fetcher

    def _let_workers_go(self) -> None:
        for loader, fetcher in [*self._fetchers.items()]:
            if not fetcher.outlives_epoch:
                del self._fetchers[loader]


class _HandOut(Iterator[list[int]]):
    """What a loader iterates over during a pass of ``attend``."""

    def __init__(self, delivery: Delivery, token: object) -> None:
        self._delivery = delivery
        self._token = token

    def __next__(self) -> list[int]:
        return self._delivery.hand_out(self, self._token)
