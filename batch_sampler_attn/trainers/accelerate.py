"""Batch-attention in a hand-written loop around accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.accumulation import AccumulatedLoader
from batch_sampler_attn.attend import AttendedLoader, Batch
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.options import length_of, positive_int
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of
from batch_sampler_attn.trainers.replay import refuse_own_loader

# accelerate's names for setups in which an update is more than the optimizer's step.
_OTHER_UPDATES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "FSDP": "FSDP"}


def attend(
    schedule: BatchAttentionSchedule, accelerator: Any, loader: Iterable[Batch], size: int = 1
) -> AttendedLoader[list[Batch], BatchAttentionSchedule]:
    """Yield the windows of a prepared loader, each again while the decision is REPEAT.

    A window is a list of the batches of one update. Call ``accelerator.backward`` for each batch, make one update, decide
    on an ``AccumulatedLoss``'s mean, and step the learning-rate schedule on ADVANCE. accelerate's own accumulation cannot
    be used: it counts repeats as further batches.

    ``accelerator.register_for_checkpointing(schedule)`` saves and loads the schedule. Each iteration begins at the
    schedule's epoch and window, so a resumed loop is the same loop: it skips the batches of the epoch that the saved run
    has trained on. A loader from ``accelerator.skip_first_batches`` may be given for the rest of that epoch. The order of
    batches is that of the saved run if it follows from the epoch's number, as with
    ``DataLoaderConfiguration(use_seedable_sampler=True)``.

    With ``epoch_length=``, epochs are not the loader's: each iteration begins at the loader's first batch.

    Args:
        schedule: Decides. On several ranks, it needs ``ranks=MeanOverRanks()``.
        accelerator: The ``Accelerator`` that prepared model, optimizer and loader.
        loader: The loader as ``accelerator.prepare`` returned it.
        size: Batches of one update; an epoch's last window may have fewer.

    Returns:
        An iterable of windows, to be iterated over once an epoch.

    Raises:
        OptionError: If ``size`` is not an integer of at least 1.
        ProtocolError: If accelerate accumulates gradients, shards the model, or keeps the loader's position itself; if
            ranks would decide apart; if the loader repeats batches itself. While iterating: if the loader skips other
            batches than those that are behind.
    """
    size = positive_int("size", size, "the batches of one update")
    if hasattr(accelerator, "is_gradient_accumulation_boundary"):
        raise ProtocolError(
            "attend() got a DeepSpeed engine, which counts the batches of an update itself. Use schedule.attend("
            "accumulate(loader, engine.gradient_accumulation_steps())), engine.step() for each batch, and one decide()"
        )
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise ProtocolError(
            f"the Accelerator has gradient_accumulation_steps={steps}, and its accumulate() counts repeats as further "
            f"batches. Make it with Accelerator(), give attend() size={steps}, and divide each loss by len(window)"
        )
    check_accelerator(schedule, accelerator)
    refuse_own_loader(loader, "attend() of batch_sampler_attn.trainers.accelerate repeats its windows")
    if getattr(loader, "use_stateful_dataloader", False):
        raise ProtocolError(
            "the loader keeps its own position (use_stateful_dataloader=True), which counts a window that is to be "
            "repeated as done. Leave that setting out: attend() skips the batches that are behind"
        )
    if schedule.options.epoch_length is None:
        loader = _Resumed(schedule, accelerator, loader, size)
    return schedule.attend(AccumulatedLoader(loader, size))


class _Resumed(Iterable[Batch]):
    """A prepared loader that begins each pass at the schedule's epoch, and at the schedule's window in it."""

    def __init__(self, schedule: BatchAttentionSchedule, accelerator: Any, loader: Iterable[Batch], size: int) -> None:
        self._schedule = schedule
        self._accelerator = accelerator
        self._loader = loader
        self._size = size

    def __iter__(self) -> Iterator[Batch]:
        # The pass is open, and has forgotten an epoch that was left.
        loader, behind, skipped = self._loader, self._behind, _skipped_by(self._loader)
        if skipped not in (0, behind):
            raise ProtocolError(
                f"the loader skips {skipped} batches, and {behind} batches of this epoch are behind. Give attend() the "
                "loader as prepare() returned it: attend() skips them itself"
            )
        if behind and not skipped:
            length = length_of(loader)
            if length is not None and behind >= length:
                # A checkpoint of the epoch's last window. Not each of accelerate's loaders can skip all batches.
                return iter(())
            loader = self._accelerator.skip_first_batches(loader, behind)
        _set_epoch(loader, self._schedule.epoch)
        return iter(loader)

    def __len__(self) -> int:
        if _skipped_by(self._loader):
            raise TypeError("the length of a loader from skip_first_batches may be negative")
        # Without a pass, the next one resumes; an epoch that was left begins again.
        behind = self._behind if passes_of(self._schedule).active is None else 0
        return max(0, len(self._loader) - behind)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Its position is the schedule's, whatever states the loader has.
        if name in ("_loader", "state_dict", "load_state_dict") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    @property
    def _behind(self) -> int:
        """Batches of the epoch that were trained on before this pass."""
        return passes_of(self._schedule).state.position * self._size


def check_accelerator(schedule: BatchAttentionSchedule, accelerator: Any) -> None:
    """Refuse setups whose updates are not the optimizer's step alone, and ranks that decide apart.

    Args:
        schedule: The schedule of this rank.
        accelerator: The ``Accelerator``, a trainer's or the user's.

    Raises:
        ProtocolError: If DeepSpeed, FSDP or Megatron-LM makes the updates, or there are several ranks and the schedule
            has no ``MeanOverRanks``.
    """
    if name := _OTHER_UPDATES.get(getattr(accelerator.distributed_type, "name", "")):
        raise ProtocolError(
            f"accelerate uses {name}, whose updates are more than the optimizer's step; batch-attention was not tried "
            "with it. Use DistributedDataParallel: torchrun, or accelerate launch without a plugin"
        )
    ranks = accelerator.num_processes
    if ranks > 1 and passes_of(schedule).ranks.transport is None:
        raise ProtocolError(
            f"this process is one of {ranks} that share gradients, and ranks that decide differently wait for each "
            "other forever. Use BatchAttentionSchedule(..., ranks=MeanOverRanks()), from batch_sampler_attn.distributed"
        )


def _skipped_by(loader: object) -> int:
    """Batches that a loader of ``skip_first_batches`` leaves out at its beginning."""
    part: Any = loader
    while part is not None:
        if skipped := getattr(part, "skip_batches", 0):
            return int(skipped)
        part = getattr(part, "batch_sampler", None)
    return 0


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader, and the samplers inside its batch samplers, which epoch to draw."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    # The loader itself reaches no sampler that is inside of three: skipping, sharding, batching.
    batches = getattr(loader, "batch_sampler", None)
    while batches is not None:
        if hasattr(getattr(batches, "sampler", None), "set_epoch"):
            batches.sampler.set_epoch(epoch)
        batches = getattr(batches, "batch_sampler", None)
