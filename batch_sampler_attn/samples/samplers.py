"""Samplers of the user's, which give the order of each pass."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.errors import OptionError, shown
from batch_sampler_attn.shards import Shard, own_shard

# A sampler that does not say its length, and gives so many times the samples that there are, is taken for endless.
_ENDLESS = 100


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


def samples_in_a_pass(sampler: Any, samples: int) -> int:
    """How many samples plain training with this sampler would see in an epoch; all of them if nothing else is known."""
    try:
        return max(1, len(sampler))
    except (TypeError, NotImplementedError):
        return samples


def order_of(sampler: Iterable[Any], number: int, samples: int, shard: Shard) -> list[int]:
    """The indices of a pass that are this rank's.

    Args:
        sampler: That was checked; told the number of the pass if it has ``set_epoch``.
        number: From 0.
        samples: Length of the data set.
        shard: A sample stays with its rank, which knows its loss.

    Raises:
        OptionError: If the sampler yields no such sample, or none of the data set, or has no end.
    """
    set_epoch = getattr(sampler, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(number)
    most = None if hasattr(sampler, "__len__") else _ENDLESS * samples
    order = [_checked(index, samples) for index in itertools.islice(sampler, most)]
    if len(order) == most:
        raise OptionError(
            f"the sampler has yielded {most:,} indices, for {samples:,} samples, without an end; a pass is what it "
            "yields, so it must end"
        )
    if not order:
        raise OptionError("the sampler yields no index; pass one that can be iterated over in every epoch")
    own = [index for index in order if index % shard.ranks == shard.rank]
    if not own:
        raise OptionError(
            f"the sampler yields no index that is {shard.rank} modulo {shard.ranks}, as this rank's samples are"
        )
    return own


def _checked(index: Any, samples: int) -> int:
    try:
        plain = operator.index(index)
    except TypeError as error:
        raise OptionError(
            f"the sampler yields {shown(index)}, a {type(index).__name__}; it must yield whole numbers, one a sample, "
            "and no batches of them"
        ) from error
    if not 0 <= plain < samples:
        raise OptionError(
            f"the sampler yields index {plain}; with samples={samples} it must be from 0 to {samples - 1}"
        )
    return plain
