"""One batch of samples on its way, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.shards import Shard


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """One batch on its way.

    Attributes:
        indices: Its samples.
        weights: Of their losses, one each.
        is_extra: Whether it is made of pooled samples.
    """

    indices: list[int]
    weights: list[float]
    is_extra: bool


def unpack_batch(packed: object, options: SampleOptions, shard: Shard) -> SampleBatch:
    """The batch that was saved as a dictionary.

    Raises:
        StateError: If it is damaged.
    """
    fields = checkpoint.check_keys("a batch in flight", packed, {"indices", "weights", "is_extra"})
    indices, weights, is_extra = fields["indices"], fields["weights"], fields["is_extra"]
    are_lists = isinstance(indices, list) and isinstance(weights, list)
    if not are_lists or not len(indices) == len(weights) == options.batch_size or not isinstance(is_extra, bool):
        raise StateError(
            f"a batch in flight is {shown(packed)} in the state; it must have {options.batch_size} samples"
        )
    indices = [unpack_sample("a sample in flight", sample, options, shard) for sample in indices]
    weights = [checkpoint.check_number("a weight in flight", weight, "the state") for weight in weights]
    if not all(may_weigh(weight, options, is_extra=is_extra) for weight in weights):
        raise StateError(
            f"a batch in flight has weights {shown(weights)} in the state, which these options do not give"
        )
    if is_extra and (options.k is None or len({*indices}) < len(indices)):
        raise StateError(f"samples {shown(indices)} are in flight as pooled ones in the state, which they cannot be")
    return SampleBatch(indices, weights, is_extra)


def unpack_sample(what: str, sample: object, options: SampleOptions, shard: Shard) -> int:
    """An index, if it is one of this rank's samples.

    Raises:
        StateError: If it is not.
    """
    index = checkpoint.check_count(what, sample)
    if index >= options.samples or index % shard.ranks != shard.rank:
        raise StateError(f"{what} is {index} in the state; it must be one of the {options.samples} here, of this rank")
    return index


def may_weigh(weight: float, options: SampleOptions, *, is_extra: bool) -> bool:
    """Whether a sample can have this weight: between that of one of few that are not at risk, and of one that was."""
    if is_extra or not options.weighted:
        return weight == 1
    least = 1 - options.leave_out
    return least * (1 - 1e-9) <= weight <= (1 + 1e-9) / least
