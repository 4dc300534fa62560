"""Attention in a hand-written loop that uses accelerate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from batch_sampler_attn.accumulation import AccumulatedLoader, accumulate
from batch_sampler_attn.attend import AttendedLoader, Batch
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.options import length_of
from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of


def attend(
    schedule: BatchAttentionSchedule, accelerator: Any, loader: Iterable[Batch], size: int = 1
) -> AttendedLoader[list[Batch], BatchAttentionSchedule]:
    """Wrap a prepared loader so that it yields windows, each again while the decision is REPEAT.

    A window is a list of the batches of one update. Call ``accelerator.backward(loss / len(window))`` for each batch,
    make one update, decide on the mean of an ``AccumulatedLoss``, and step the learning-rate schedule on ADVANCE.

    Save the schedule with ``accelerator.register_for_checkpointing(schedule)``. Each iteration resumes at the
    schedule's epoch and window, if the epoch determines the order of batches
    (``DataLoaderConfiguration(use_seedable_sampler=True)``). With ``epoch_length=``, it starts at the first batch.

    Args:
        schedule: Decides on repeats. On several ranks, it needs ``ranks=MeanOverRanks()``.
        accelerator: The ``Accelerator`` that prepared model, optimizer and loader.
        loader: The result of ``accelerator.prepare``, or ``accelerator.skip_first_batches`` for the rest of an epoch.
        size: Number of batches in an update; an epoch's last window may have fewer.

    Raises:
        OptionError: If ``size`` is not an integer of at least 1.
        ProtocolError: If accelerate accumulates gradients, shards the model or keeps the loader's position; if the
            loader repeats batches itself, or skips other batches than the saved run trained on.
    """
    # In a DeepSpeed engine, it is a method.
    steps = accelerator.gradient_accumulation_steps
    if callable(steps) or steps != 1:
        raise ProtocolError(
            f"{type(accelerator).__name__} counts repeats as batches. Leave out gradient_accumulation_steps and give "
            "attend() size=n; around a DeepSpeed engine, use schedule.attend(accumulate(loader, n))"
        )
    check_updates(accelerator)
    windows = accumulate(loader, size)
    if getattr(loader, "use_stateful_dataloader", False):
        raise ProtocolError("the loader has use_stateful_dataloader=True; leave it out: attend() resumes by itself")
    if schedule.options.epoch_length is None:
        windows = _Resumed(loader, size, schedule, accelerator)
    return schedule.attend(windows)


def register_for_checkpointing(accelerator: Any, attention: SampleAttention) -> None:
    """Save a ``SampleAttention`` in the accelerator's checkpoints, with each rank's own state."""
    name = f"sample_attention_{accelerator.process_index}.json"
    accelerator.register_save_state_pre_hook(
        lambda _, __, folder: Path(folder, name).write_text(json.dumps(attention.state_dict()), encoding="utf-8")
    )
    accelerator.register_load_state_pre_hook(
        lambda _, folder: attention.load_state_dict(json.loads(Path(folder, name).read_text(encoding="utf-8")))
    )


class _Resumed(AccumulatedLoader[Batch]):
    """Windows of a prepared loader; each pass begins at the schedule's epoch, and at the schedule's window in it."""

    def __init__(self, loader: Iterable[Batch], size: int, schedule: BatchAttentionSchedule, accelerator: Any) -> None:
        super().__init__(loader, size)
        self._schedule = schedule
        self._accelerator = accelerator
        self._skipped = max(getattr(part, "skip_batches", 0) for part in (loader, *_batch_samplers(loader)))

    def __iter__(self) -> Iterator[list[Batch]]:
        # The pass is open by now, and has discarded an epoch that was left.
        loader, behind = self.loader, passes_of(self._schedule).state.position * self.size
        if self._skipped not in (0, behind):
            raise ProtocolError(
                f"the loader skips {self._skipped} batches, and {behind} batches of this epoch are done. Give "
                "attend() the whole loader: it skips them itself"
            )
        if behind and not self._skipped:
            # After a checkpoint of the epoch's last window, none are left, and not every loader can skip all.
            length = length_of(loader)
            if length is not None and behind >= length:
                return iter(())
            loader = self._accelerator.skip_first_batches(loader, behind)
        # The loader itself sets the epoch in two nested samplers; skipping, sharding and batching are three.
        parts: list[Any] = [loader, *(getattr(sampler, "sampler", None) for sampler in _batch_samplers(loader))]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(self._schedule.epoch)
        return iter(AccumulatedLoader(loader, self.size))

    def __len__(self) -> int:
        if self._skipped:
            raise TypeError("a loader from skip_first_batches may have a negative length")
        # If no pass is open, the next one resumes; an epoch that was left starts again.
        passes = passes_of(self._schedule)
        return max(0, super().__len__() - (passes.state.position if passes.active is None else 0))

    def __getattr__(self, name: str) -> Any:
        # The schedule has the position, whatever states the loader has.
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattr__(name)


def _batch_samplers(loader: Any) -> Iterator[Any]:
    """The loader's batch sampler, the one inside it, and so on."""
    while (loader := getattr(loader, "batch_sampler", None)) is not None:
        yield loader


def check_updates(accelerator: Any, n_gpu: int = 1) -> None:
    """Refuse updates that do more than the optimizer's step, and batches that are split among GPUs."""
    kind = "DataParallel" if n_gpu > 1 else getattr(accelerator.distributed_type, "name", "")
    if kind in ("DataParallel", "DEEPSPEED", "MEGATRON_LM", "FSDP"):
        raise ProtocolError(
            f"{kind} was not tried with batch-attention, and may update otherwise than by the optimizer's step. Use "
            "DistributedDataParallel: torchrun, or accelerate launch without a plugin, and ranks=MeanOverRanks()"
        )
