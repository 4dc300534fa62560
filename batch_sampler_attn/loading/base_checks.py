"""What a batch sampler can be made of, checked as it is constructed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import OptionError, shown
from batch_sampler_attn.option_values import count


def check_sampler(sampler: Iterable[Any]) -> None:
    """Refuse what is no sampler, or one for a single epoch.

    Raises:
        OptionError: If it is.
    """
    if isinstance(sampler, (Dataset, DataLoader)) or not (
        hasattr(type(sampler), "__iter__") or hasattr(type(sampler), "__getitem__")
    ):
        raise OptionError(
            f"sampler is {shown(sampler)}; it must be a sampler of indices with a batch_size, such as "
            "RandomSampler(dataset), or a batch sampler without one"
        )
    if isinstance(sampler, Iterator):
        raise OptionError(
            f"sampler is a one-shot {type(sampler).__name__}, empty after one epoch; pass something that "
            "can be iterated over in every epoch, such as RandomSampler(dataset)"
        )


def checked_batch_size(sampler: Iterable[Any], batch_size: object, drop_last: object) -> int | None:
    """``batch_size`` as a plain int, or None, if it goes with the other arguments.

    Raises:
        OptionError: If it does not.
    """
    size = None if batch_size is None else count("batch_size", batch_size, "indices in a batch")
    if size is not None and isinstance(sampler, BatchSampler):
        raise OptionError(
            f"batch_size is {size}, but sampler is a {type(sampler).__name__}, which makes batches "
            "itself; pass it without a batch_size, or pass its sampler of indices"
        )
    if not isinstance(drop_last, bool):
        raise OptionError(f"drop_last is {shown(drop_last)}; it must be True or False")
    if size is None and drop_last:
        raise OptionError("drop_last is True without a batch_size; a batch sampler drops its last batch itself")
    return size


def check_length(sampler: object, batches: Sized, batch_size: int | None, drop_last: bool, *, plans: bool) -> None:
    """Refuse too little to train on.

    Args:
        sampler: Of indices or of batches; it may be without a length.
        batches: The batches made of it.
        batch_size: None if it makes them itself.
        drop_last: Named in errors.
        plans: Whether it may have no length until its ``set_epoch`` is called.

    Raises:
        OptionError: If there is one sample, or no batch.
    """
    samples = length_of(sampler)
    if samples is None:
        return
    if batch_size is not None and samples == 1:
        raise OptionError(
            "the sampler holds one sample; Batch-attention compares the losses of batches, which takes at "
            "least two samples. Was a batch sampler or a subset passed by mistake?"
        )
    if len(batches) == 0 and not plans:
        raise OptionError(
            f"the sampler holds no batch ({samples} samples, batch_size={batch_size}, "
            f"drop_last={drop_last}); use more data, a smaller batch_size or drop_last=False"
        )
