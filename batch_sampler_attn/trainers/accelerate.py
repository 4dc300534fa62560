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

    A window is a list of the batches of one update. Call ``accelerator.backward`` for each batch, make one update,
    decide on the mean of an ``AccumulatedLoss``, and step the learning-rate schedule on ADVANCE.

    ``accelerator.register_for_checkpointing(schedule)`` saves and loads the schedule. Each iteration begins at the
    schedule's epoch and window, so a resumed run uses the same loop, if the order of batches follows from the epoch's
    number (``DataLoaderConfiguration(use_seedable_sampler=True)``). With ``epoch_length=``, epochs are not the
    loader's, and each iteration begins at the loader's first batch.

    Args:
        schedule: Decides. On several ranks, it needs ``ranks=MeanOverRanks()``.
        accelerator: The ``Accelerator`` that prepared model, optimizer and loader.
        loader: The loader as ``accelerator.prepare`` returned it, or as ``accelerator.skip_first_batches`` shortened it
            for the rest of an epoch.
        size: Batches of one update; an epoch's last window may have fewer.

    Raises:
        OptionError: If ``size`` is not an integer of at least 1.
        ProtocolError: If accelerate accumulates gradients, shards the model or keeps the loader's position; if ranks
            would decide apart; if the loader repeats batches itself, or skips others than the saved run trained on.
    """
    size = positive_int("size", size, "the batches of one update")
    if hasattr(accelerator, "is_gradient_accumulation_boundary"):
        raise ProtocolError(
            "attend() got a DeepSpeed engine, which accumulates by itself. Use schedule.attend(accumulate(loader, "
            "engine.gradient_accumulation_steps())): engine.step() for each batch, and then one schedule.decide(loss)"
        )
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise ProtocolError(
            f"the Accelerator has gradient_accumulation_steps={steps}, and counts repeats as further batches. Leave "
            f"that out, give attend() size={steps}, and divide each loss by len(window)"
        )
    check_accelerator(schedule, accelerator)
    refuse_own_loader(loader, "attend() of batch_sampler_attn.trainers.accelerate repeats its windows")
    if getattr(loader, "use_stateful_dataloader", False):
        raise ProtocolError(
            "the loader has use_stateful_dataloader=True, whose saved position is past a window that is to be "
            "repeated. Leave that out: attend() skips the batches that are behind"
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
        self._skipped = max(getattr(part, "skip_batches", 0) for part in (loader, *_batch_samplers(loader)))

    def __iter__(self) -> Iterator[Batch]:
        # The pass is open, and has forgotten an epoch that was left.
        loader, behind = self._loader, passes_of(self._schedule).state.position * self._size
        if self._skipped not in (0, behind):
            raise ProtocolError(
                f"the loader skips {self._skipped} batches, and {behind} batches of this epoch are behind. Give "
                "attend() the whole loader, of which it skips them itself"
            )
        if behind and not self._skipped:
            # After a checkpoint of the epoch's last window, none are left, and not every loader can skip all.
            length = length_of(loader)
            if length is not None and behind >= length:
                return iter(())
            loader = self._accelerator.skip_first_batches(loader, behind)
        # The loader itself tells two samplers its epoch; skipping, sharding and batching are three.
        parts: list[Any] = [loader, *(getattr(sampler, "sampler", None) for sampler in _batch_samplers(loader))]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._schedule.epoch)
        return iter(loader)

    def __len__(self) -> int:
        if self._skipped:
            raise TypeError("a loader from skip_first_batches may have a negative length")
        # Without a pass, the next one resumes; an epoch that was left begins again.
        passes = passes_of(self._schedule)
        behind = passes.state.position * self._size if passes.active is None else 0
        return max(0, len(self._loader) - behind)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Its position is the schedule's, whatever states the loader has.
        if name in ("_loader", "state_dict", "load_state_dict") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def check_accelerator(schedule: BatchAttentionSchedule, accelerator: Any) -> None:
    """Refuse updates that are more than the optimizer's step, and ranks that decide apart."""
    if name := _OTHER_UPDATES.get(getattr(accelerator.distributed_type, "name", "")):
        raise ProtocolError(
            f"accelerate uses {name}, with which batch-attention was not tried: updates are more than the optimizer's "
            "step there. Use DistributedDataParallel: torchrun, or accelerate launch without a plugin"
        )
    if (ranks := accelerator.num_processes) > 1 and passes_of(schedule).ranks.transport is None:
        raise ProtocolError(
            f"this process is one of {ranks} that share gradients, and ranks that decide differently wait for each "
            "other forever. Use BatchAttentionSchedule(..., ranks=MeanOverRanks()), from batch_sampler_attn.distributed"
        )


def _batch_samplers(loader: Any) -> Iterator[Any]:
    """The loader's batch sampler, the one in it, and so on."""
    while (loader := getattr(loader, "batch_sampler", None)) is not None:
        yield loader
