"""The batch-sampler adapter for ``torch.utils.data``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch.utils.data import Sampler

from batch_sampler_attn import checkpoint
from batch_sampler_attn.agreement import ranks_of_process_group
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.loading.base_batches import BaseBatches
from batch_sampler_attn.loading.delivery import Delivery
from batch_sampler_attn.loading.progress import EpochProgress
from batch_sampler_attn.schedule import BatchAttentionSchedule

REPEATS = ("immediate", "deferred")
STATE_KEYS = {
    "version",
    "options",
    "schedule",
    "epoch_generator",
    "generator",
    "position",
    "is_exhausted",
    "last_base_batch",
    "flight",
    "pending",
}


class BatchAttentionSampler(Sampler[list[int]]):
    """A batch sampler whose repeats fetch the same indices anew, so that random augmentation is drawn afresh.

    Pass it as ``DataLoader(dataset, batch_sampler=...)`` and iterate over ``schedule.attend(loader)``. A plain
    ``for batch in loader`` visits every batch once, in an order drawn faster than by torch's own ``BatchSampler``.

    Args:
        sampler: A sampler of dataset indices, such as ``RandomSampler(dataset)``; or, without
            ``batch_size``, a batch sampler.
        batch_size: Indices in a batch.
        drop_last: Whether a last, shorter batch is left out.
        schedule: Decides about repeats. It belongs to this sampler from here on. None makes one with the
            default options, to be found as ``sampler.schedule``.
        repeats: "immediate", as in the paper: the repeat follows at once, while the loader's own batches wait. Where
            the loader has workers, one more worker fetches it, which lives as long as they do. Or "deferred": the
            workers fetch it, and it arrives after the ``num_workers * prefetch_factor`` batches that they had been
            given before. What is still to be repeated when the base batches are over is served by going through the
            loader again.
        batches_per_epoch: Train on so many batches of each epoch's order, and no more; None for all of them.
        rank: With ``world_size``, for ranks that train together: which of them this is. Each takes every
            ``world_size``-th index of the order (or batch, of a batch sampler), so the order has to be the same on all:
            a generator with the same seed. Every rank has as many batches; one that would lack the last takes an item
            from the order's beginning. Leave both out with a ``DistributedSampler``.
        world_size: How many ranks there are; 1 for ranks that have data of their own.

    What the state holds makes order, visits and decisions of a resumed run those of the uninterrupted one. Random
    numbers that a data set draws in worker processes are not in it: a DataLoader seeds its workers anew, there as in
    plain training, so random augmentation goes on with other draws. With ``DataLoader(SeededDataset(dataset), ...)``
    they follow from epoch, batch and visit, and a resumed run has them too.

    Raises:
        OptionError: If an argument is not allowed, or there is no batch or only one sample to train on.
        ProtocolError: If the schedule belongs to another sampler, or none is given to a rank.

    Example:
        >>> from torch.utils.data import DataLoader, RandomSampler
        >>> schedule = BatchAttentionSchedule(k=1.2)
        >>> sampler = BatchAttentionSampler(RandomSampler(range(10)), 4, schedule=schedule)
        >>> loader = DataLoader(range(10), batch_sampler=sampler)
        >>> for numbers in schedule.attend(loader):
        ...     decision = schedule.decide(numbers.float().mean())
        >>> schedule.last_summary.batches
        3
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int | None = None,
        drop_last: bool = False,
        *,
        schedule: BatchAttentionSchedule | None = None,
        repeats: Literal["immediate", "deferred"] = "immediate",
        batches_per_epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if schedule is None:
            if (ranks := ranks_of_process_group()) > 1:
                raise ProtocolError(
                    f"this process is one of {ranks} in an initialized process group, and its BatchAttentionSampler "
                    "was given no schedule. If a trainer made it anew from yours, switch that off (Lightning: "
                    "use_distributed_sampler=False); if you made it, give it "
                    "schedule=BatchAttentionSchedule(reduce=MeanOverRanks())"
                )
            schedule = BatchAttentionSchedule()
        if not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {schedule!r}; pass a BatchAttentionSchedule(k=...)")
        if repeats not in REPEATS:
            raise OptionError(f"repeats is {repeats!r}; it must be one of {', '.join(map(repr, REPEATS))}")
        self._base = BaseBatches(sampler, batch_size, drop_last, batches_per_epoch, rank, world_size)
        self._delivery = Delivery(self, self._base, schedule, is_immediate=repeats == "immediate")
        schedule.attach(self._delivery)
        self.schedule = schedule
        self.repeats = repeats
        self._was_loaded = False

    @property
    def batch_size(self) -> int | None:
        """Indices in a batch; None if a batch sampler was wrapped whose batch size is its own affair."""
        return self._base.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether a last, shorter batch is left out."""
        return self._base.drop_last

    @property
    def sampler(self) -> Any:
        """The sampler of indices, or of batches, that this one draws from."""
        return self._base.sampler

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the epoch that is about to begin on to the sampler inside, as torch's BatchSampler does.

        Args:
            epoch: As a ``DistributedSampler`` takes it. A sampler without ``set_epoch`` is not told.
        """
        self._base.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._base)

    def __repr__(self) -> str:
        inside = type(self.sampler).__name__
        size = f", batch_size={self.batch_size}" if self.batch_size is not None else ""
        return f"<{type(self).__name__}({inside}{size}, repeats={self.repeats!r}), {self.schedule!r}>"

    def __iter__(self) -> Iterator[list[int]]:
        return self._delivery.batches()

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state and its schedule's, as plain JSON types.

        Take it between reporting a loss and asking for the next batch; taken before the loss is reported,
        the batch that is out is visited again after the resume. Torch's global generator is yours to save; where a
        wrapper of the DataLoader is attended, resuming draws one number more from it, a seed for the loader's workers.
        """
        if self._delivery.is_inside_loader:
            # A StatefulDataLoader asks for this as it hands out indices, batches ahead of the decisions.
            return {"saved_by_loader": True}
        state = {
            "version": checkpoint.VERSION,
            "options": self._options(),
            "schedule": self.schedule.state_dict(),
            "generator": self._base.generator_state(),
            **self._delivery.progress.pack(),
        }
        if self.schedule.options.window is None:
            del state["begun"]  # the schedule's epoch says it
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, in the sampler and in its schedule.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        if self._delivery.is_inside_loader:
            if not self._was_loaded:
                raise StateError(
                    "a StatefulDataLoader tried to restore this sampler from a state of its own, which is older than "
                    "the decisions. Save sampler.state_dict() beside loader.state_dict(), and load both"
                )
            return
        has_window = self.schedule.options.window is not None
        fields = checkpoint.check_keys(
            "the sampler's state", state_dict, STATE_KEYS, {"shard", "begun"} if has_window else {"shard"}
        )
        checkpoint.check_version(fields["version"])
        checkpoint.check_options(self._options(), fields["options"])
        position = checkpoint.check_count("position", fields["position"])
        schedule_parts = self.schedule.unpack(fields["schedule"])
        generator = self._base.check_generator_state("generator", fields["generator"])
        if position and (generator is None) != (fields["epoch_generator"] is None):
            raise StateError("of generator and epoch_generator, the state has one and lacks the other; it was changed")
        progress = EpochProgress.unpack(
            self._base,
            {"begun": [schedule_parts[0].epoch, 0], **fields},
            is_immediate=self.repeats == "immediate",
            # A window ends epochs, and with them the count of batches done, while this goes on.
            batches_done=None if has_window else schedule_parts[0].position,
        )
        self._base.set_generator_state(generator)
        self.schedule.assign(*schedule_parts)
        self._delivery.go_on(progress)
        self._was_loaded = True

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "repeats": self.repeats,
        }
        if self._base.most_batches is not None:
            options["batches_per_epoch"] = self._base.most_batches
        return options
