"""Samples that are to come again, until there are enough of them for a batch: first in, first out, and none twice."""

from __future__ import annotations

from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.samples.batch import unpack_sample
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.shards import Shard

# Never more than some batches' worth, so that a new one is made with each batch rather than one changed.
Pool = tuple[int, ...]


def unpack_pool(packed: object, options: SampleOptions, shard: Shard) -> Pool:
    """The pool that was saved as a list.

    Raises:
        StateError: If it is damaged.
    """
    if not isinstance(packed, list):
        raise StateError(f"pool is {shown(packed)} in the state; it must be a list of samples")
    pool = tuple(unpack_sample("a sample of the pool", sample, options, shard) for sample in packed)
    if len({*pool}) < len(pool) or (pool and options.k is None):
        raise StateError(f"pool is {shown(packed)} in the state, which it cannot be; it was changed after it was saved")
    return pool
