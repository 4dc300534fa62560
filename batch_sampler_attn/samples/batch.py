"""One batch of samples on its way, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.samples.options import SampleOptions


@dataclass(slots=True)
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


def unpack_batch(packed: object, options: SampleOptions) -> SampleBatch:
    """The batch that was saved as a dictionary.

    Raises:
        StateError: If it is damaged.
    """
    fields = checkpoint.check_keys("a batch in flight", packed, {"indices", "weights", "is_extra"})
    indices, weights = fields["indices"], fields["weights"]
    are_lists = isinstance(indices, list) and isinstance(weights, list)
    if (
        not are_lists
        or not len(indices) == len(weights) == options.batch_size
        or not isinstance(fields["is_extra"], bool)
    ):
        raise StateError(
            f"a batch in flight is {shown(packed)} in the state; it must have {options.batch_size} samples"
        )
    for sample in indices:
        if checkpoint.check_count("a sample in flight", sample) >= options.samples:
            raise StateError(f"sample {sample} is in flight in the state, and there are {options.samples} here")
    weights = [checkpoint.check_number("a weight in flight", weight, "the state") for weight in weights]
    return SampleBatch(list(indices), weights, fields["is_extra"])
