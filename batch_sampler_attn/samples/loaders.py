"""Which loaders the samples of a batch can be followed through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batch_sampler_attn.errors import OptionError, ProtocolError, shown
from batch_sampler_attn.loader_order import check_order
from batch_sampler_attn.shards import own_shard


def check_loader(attention: object, loader: Any) -> None:
    """Refuse loaders that would attribute losses to the wrong samples.

    Args:
        attention: The batch sampler that the loader has to be built on.
        loader: What was attended. What wraps a loader need not tell which batch sampler that has.

    Raises:
        ProtocolError: If it is such a loader.
    """
    check_order(loader)
    if getattr(loader, "batch_sampler", attention) is not attention:
        raise ProtocolError(
            f"{type(loader).__name__} was built on another batch sampler; build it with DataLoader(dataset, "
            "batch_sampler=attention)"
        )


def check_sampler(sampler: object) -> None:
    """Refuse what gives an order once, or none, or that of another rank in every epoch.

    Raises:
        OptionError: If it does.
    """
    if sampler is None:
        return
    if not hasattr(sampler, "__iter__") or isinstance(sampler, Iterator):
        raise OptionError(
            f"sampler is {shown(sampler)}; it must be a sampler of indices that can be iterated over in every pass"
        )
    shard = own_shard(sampler)
    if shard is not None and shard.ranks > 1:
        raise OptionError(
            f"sampler is a {type(sampler).__name__}, which deals the samples out anew in every epoch, so that no rank "
            "knows the losses of its own; leave it out, and give rank= and world_size="
        )
