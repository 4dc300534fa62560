"""Batch-attention in a loop by hand around accelerate: the windows of a prepared loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batch_sampler_attn.attended import AttendedLoader, Batch, length_of
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.samples import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.windows import windows

# accelerate's words for where a model is: in these, updates are not made by the optimizer's step alone.
_ELSEWHERE = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "FSDP": "FSDP"}


def attend(
    schedule: BatchAttentionSchedule, accelerator: Any, loader: Iterable[Batch], size: int = 1
) -> AttendedLoader[list[Batch], BatchAttentionSchedule]:
    """``schedule.attend(windows(loader, size))``, once it is sure that each window comes to one update.

    Each window is a list of batches: call ``accelerator.backward`` for each of them, make one update, decide, and step
    the learning-rate schedule on ADVANCE. accelerate's own accumulation is left alone: it takes a window for ended when
    the loader's last batch was read ahead, and knows of no repeats.

    ``accelerator.register_for_checkpointing(schedule)`` has the schedule saved and loaded. So that a run goes on in the
    middle of an epoch, give it what ``remaining`` returns, in every epoch.

    Args:
        schedule: Decides. On several ranks, with ``reduce=MeanOverRanks()``.
        accelerator: That prepared model, optimizer and loader.
        loader: As ``accelerator.prepare`` returned it.
        size: Batches in a window; the last one of an epoch may have fewer.

    Returns:
        An iterable of windows, with a length where the loader has one.

    Raises:
        OptionError: If ``size`` is not a whole number of at least 1.
        ProtocolError: If accelerate accumulates gradients by itself, or makes updates elsewhere; if ranks are to decide
            apart; if the loader is attended already, or has a sampler of this package; or if it is a whole one while
            the schedule is in the middle of an epoch.
    """
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise ProtocolError(
            f"the Accelerator has gradient_accumulation_steps={steps}, by which its backward() divides, and its "
            "accumulate() leaves updates out by a count of its own, in which a repeat is another batch. Make it with "
            f"Accelerator() alone, give attend() size={steps}, and divide each loss by len(window)"
        )
    if (elsewhere := updates_are_elsewhere(accelerator)) is not None:
        raise ProtocolError(
            f"the Accelerator uses {elsewhere}, which batch-attention was not tried with, and which may make updates "
            "by itself. Use DistributedDataParallel, as accelerate does without a plugin"
        )
    check_ranks(schedule, accelerator.num_processes)
    if (name := sampler_of_ours(loader)) is not None:
        raise ProtocolError(
            f"the loader was made with a {name}, and accelerate's prepare() would send a batch's repeat to another "
            "rank. Make the DataLoader with batch_size= and shuffle=: its windows are repeated by the schedule"
        )
    whole = windows(loader, size)
    if (length := length_of(whole)) is not None:
        schedule.epochs.check_remaining(length)
    return schedule.attend(whole)


def remaining(
    schedule: BatchAttentionSchedule, accelerator: Any, loader: Iterable[Batch], size: int = 1
) -> Iterable[Batch]:
    """The batches of the schedule's epoch that are still to come: all, but after a state was loaded in its middle.

    They are in the order of the run that was saved, if that follows from the epoch's number, as it does with
    ``Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))``. A checkpoint of an epoch's
    last window, which is written before its loop is over, leaves none: going through them ends the epoch.

    Args:
        schedule: Of which the state was loaded.
        accelerator: That prepared the loader.
        loader: As ``accelerator.prepare`` returned it; not one that keeps its own place (``use_stateful_dataloader``).
        size: Batches in a window, as for ``attend``.

    Returns:
        The loader, or a part of it.
    """
    _set_epoch(schedule, loader)
    behind = schedule.batch_index * size
    if not behind:
        return loader
    length = length_of(loader)
    if length is not None and behind >= length:
        # All but the end of the epoch is done, and not each of accelerate's loaders can be without a batch.
        return ()
    rest: Iterable[Batch] = accelerator.skip_first_batches(loader, behind)
    # Which earlier versions of it count anew.
    _set_epoch(schedule, rest)
    return rest


def _set_epoch(schedule: BatchAttentionSchedule, loader: object) -> None:
    # Where the schedule ends epochs by itself, they are not the loader's.
    if schedule.options.window is None and hasattr(loader, "set_epoch"):
        loader.set_epoch(schedule.epoch)


def updates_are_elsewhere(accelerator: Any) -> str | None:
    """What makes updates in place of the optimizer's step, or shards what it steps on; None if nothing does."""
    return _ELSEWHERE.get(getattr(accelerator.distributed_type, "name", ""))


def check_ranks(schedule: BatchAttentionSchedule, ranks: int) -> None:
    """Refuse to let ranks that share gradients decide apart from each other.

    Args:
        schedule: Of this rank.
        ranks: How many train together.

    Raises:
        ProtocolError: If so.
    """
    if ranks > 1 and schedule.agreement.reduce is None:
        raise ProtocolError(
            f"this process is one of {ranks} that share gradients, and the schedule would decide by this rank's losses "
            "alone: as soon as ranks decide differently they wait for each other for ever. Make it with "
            "BatchAttentionSchedule(..., reduce=MeanOverRanks()) from batch_sampler_attn.distributed"
        )


def sampler_of_ours(loader: object) -> str | None:
    """The name of the sampler of this package that makes the loader's batches, through accelerate's; None if none."""
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and not (hasattr(sampler, "schedule") or isinstance(sampler, SampleAttention)):
        sampler = getattr(sampler, "batch_sampler", None)
    return None if sampler is None else type(sampler).__name__
