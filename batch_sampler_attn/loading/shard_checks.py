"""Whether a sampler is for the rank that trains on it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.shards import Shard, own_shard

# Each yields all of its data on every rank.
_UNSHARDED = (RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


def check_shard(sampler: Any, said: Shard | None, here: Shard) -> None:
    """Refuse to train ranks on the same data, or on another rank's.

    Args:
        sampler: Of indices, or of batches.
        said: As ``shard_of`` returned it.
        here: This rank, as its schedule knows it.

    Raises:
        ProtocolError: If so.
    """
    shard = said or own_shard(sampler)
    if shard is not None and shard.ranks > 1 and shard != here:
        raise ProtocolError(
            f"the sampler is for rank {shard.rank} of {shard.ranks}, and the schedule decides on rank {here.rank} of "
            f"{here.ranks}; make it with rank={here.rank} and world_size={here.ranks}"
        )
    parts = (sampler, getattr(sampler, "sampler", None))
    if shard is None and any(type(part) in _UNSHARDED for part in parts):
        raise ProtocolError(
            f"{here.ranks} ranks train together, and this one's {type(sampler).__name__} goes through all of the data. "
            "Give BatchAttentionSampler a DistributedSampler(dataset), or "
            f"rank={here.rank}, world_size={here.ranks}; or, if each rank has data of its own, world_size=1"
        )
