"""Which loaders the samples of a batch can be followed through."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.loader_order import check_order
from batch_sampler_attn.shards import Shard


def check_loader(attention: object, samples: int, loader: Any) -> None:
    """Refuse loaders that would attribute losses to the wrong samples, or see some of them never.

    Args:
        attention: The batch sampler that the loader has to be built on.
        samples: That it knows of.
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
    try:
        length = len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        return
    if length != samples:
        raise ProtocolError(
            f"the loader's data set has {length:,} samples, and samples is {samples:,}; make it with "
            "SampleAttention(len(dataset), ...), and anew when the data set has changed its length"
        )


def check_ranks(shard: Shard | None, ranks: int) -> None:
    """Refuse ranks that would all train on the same samples, or leave some to nobody.

    Args:
        shard: What ``rank`` and ``world_size`` said; None if they were not given.
        ranks: That train together.

    Raises:
        ProtocolError: If they would.
    """
    if shard is None and ranks > 1:
        raise ProtocolError(
            f"{ranks} ranks train together, and all of them would train on the same samples: give rank= and "
            "world_size=, or world_size=1 for ranks that have data of their own"
        )
    if shard is not None and ranks > 1 and shard.ranks not in (1, ranks):
        raise ProtocolError(
            f"world_size is {shard.ranks}, and {ranks} ranks train together: some samples would be seen by nobody; "
            "give world_size= as many"
        )
