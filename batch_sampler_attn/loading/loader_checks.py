"""Which loaders a sampler's batches can be followed through."""

from __future__ import annotations

import itertools
from typing import Any

from torch.utils.data import DataLoader

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.loader_order import check_order


def check_loader(sampler: object, loader: Any, *, is_immediate: bool) -> None:
    """Refuse loaders that would attribute losses to the wrong batches, or cannot repeat as asked.

    Args:
        sampler: The ``BatchAttentionSampler`` that it has to be built on.
        loader: What was attended.
        is_immediate: Whether repeats are fetched at once.

    Raises:
        ProtocolError: If it is such a loader.
    """
    check_order(loader)
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
    if getattr(inner, "batch_sampler", None) is sampler and getattr(inner, "num_processes", 1) > 1:
        raise ProtocolError(
            f"the BatchAttentionSampler was sharded from outside, by a {type(inner).__name__}, which would send a "
            "repeat to another rank. Give it rank= and world_size= instead, and keep the loader out of accelerate's "
            "prepare()"
        )
    if inner is not sampler and hasattr(inner, "schedule"):
        raise ProtocolError(
            f"the loader was made, or rebuilt by a trainer, with another {type(inner).__name__} than the one whose "
            "schedule this is. Build each rank's loader on the schedule's own sampler, with rank= and world_size=, and "
            "switch off the trainer's replacing of samplers (Lightning: use_distributed_sampler=False)"
        )
    if inner is not sampler and getattr(inner, "sampler", None) is sampler:
        raise ProtocolError(
            f"the batch sampler of {type(loader).__name__} is a {type(inner).__name__} around the "
            "BatchAttentionSampler, as in loaders that keep one iterator for all epochs (timm's MultiEpochsDataLoader, "
            "Ultralytics' InfiniteDataLoader), which hand batches out before an epoch begins. Use "
            "DataLoader(dataset, batch_sampler=sampler, persistent_workers=True), which keeps its workers too"
        )
    if is_immediate and not yields_what_it_fetches(loader):
        raise ProtocolError(
            f"an immediate repeat is fetched from the DataLoader's data set, past what {type(loader).__name__} may do "
            "to a batch. Pass the DataLoader itself, or use BatchAttentionSampler(..., repeats='deferred')"
        )


def yields_what_it_fetches(loader: object) -> bool:
    """Whether batches come out of it as its data set and ``collate_fn`` make them."""
    if not isinstance(loader, DataLoader):
        return False
    overriding = type(loader).__iter__
    return overriding is DataLoader.__iter__ or overriding.__module__.partition(".")[0] == "torchdata"
