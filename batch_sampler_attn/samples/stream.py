"""The base order: pass after pass over the data, without the samples that are pruned."""

from __future__ import annotations

import itertools
import operator
import random
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from batch_sampler_attn.errors import OptionError, short_repr
from batch_sampler_attn.ranks import Shard, own_shard
from batch_sampler_attn.samples.options import DOSES, SampleOptions

# A sampler without a length that yields so many times the samples is taken for endless.
_ENDLESS = 100


class SampleBatch(NamedTuple):
    """One batch on its way.

    Attributes:
        indices: Its samples.
        weights: Of their losses, one a sample.
        is_extra: Whether it is made of pooled samples.
    """

    indices: list[int]
    weights: list[float]
    is_extra: bool


class StreamState(NamedTuple):
    """Where the base order is.

    Attributes:
        passes: Passes that began.
        order: The samples of the current one, last first.
        could_be_pruned: Whether each of these might have been pruned.
        left: How many of them are still to come.
        scale: What keeps the mean weight of a pass at 1, where weights are used.
    """

    passes: int = 0
    order: array[int] = array("i")
    could_be_pruned: array[int] = array("B")
    left: int = 0
    scale: float = 1.0


class SampleStream:
    """Goes through the data again and again, in a new order each time.

    A pass prunes well-fitted samples, each with the same probability. It decides on all of them as it begins.

    Args:
        options: Checked already.
        sampler: Yields the order of a pass; None for a random order that follows from the seed.
        shard: This rank's part of the data.
        doses: With ``select=doses``, how many samples each pass prunes.
    """

    def __init__(self, options: SampleOptions, sampler: Iterable[Any] | None, shard: Shard, doses: list[int]) -> None:
        self._options = options
        self._sampler = sampler
        self._shard = shard
        self._doses = doses

    def draw(
        self, state: StreamState, losses: array[float], fitted_below: float | None, *, is_full: bool
    ) -> tuple[SampleBatch, StreamState, list[int]]:
        """The next batch, the state after it, and how many samples were pruned in each pass that began.

        Args:
            state: Where the order is.
            losses: (samples,), those that are remembered, in single precision.
            fitted_below: A sample with a loss below this is well fitted; None if none is.
            is_full: Whether no sample may be pruned.
        """
        indices: list[int] = []
        weights: list[float] = []
        pruned: list[int] = []
        options = self._options
        while len(indices) < options.batch_size:
            if not state.left:
                state, gone = self._begin_pass(state.passes, losses, fitted_below, is_full=is_full)
                pruned.append(gone)
            left = max(0, state.left - options.batch_size + len(indices))
            indices += reversed(state.order[left : state.left])
            # Of samples that could not have been pruned, and of those that could.
            weight_of = (state.scale, state.scale / (1 - options.prune_probability)) if options.weighted else (1.0, 1.0)
            weights += [weight_of[could_be] for could_be in reversed(state.could_be_pruned[left : state.left])]
            state = state._replace(left=left)
        return SampleBatch(indices, weights, is_extra=False), state, pruned

    def _begin_pass(
        self, number: int, losses: array[float], fitted_below: float | None, *, is_full: bool
    ) -> tuple[StreamState, int]:
        options = self._options
        # A text seeds the same on every platform and Python version.
        rank = f", rank {self._shard.rank}" if self._shard.ranks > 1 else ""
        rng = random.Random(f"{options.seed}, pass {number}{rank}")
        if self._sampler is not None:
            order = _order_of(self._sampler, number, options.samples, self._shard)
        else:
            order = list(range(self._shard.rank, options.samples, self._shard.ranks))
            rng.shuffle(order)
        scale, fitted = 1.0, [False] * len(order)
        if options.select == DOSES:
            dose = 0 if is_full else min(sum(self._doses[number : number + 1]), len(order) - 1)
            gone = [place < dose for place in range(len(order))]
        else:
            if fitted_below is not None:
                fitted = [losses[sample] < fitted_below for sample in order]
            gone = [is_fitted and rng.random() < options.prune_probability for is_fitted in fitted]
            if all(gone):
                gone = [False] * len(order)
            scale = 1 - options.prune_probability * sum(fitted) / len(order)
        if options.select != "loss":
            # As many samples, whichever they are. All have the same chance, so none weighs more.
            rng.shuffle(gone)
            scale, fitted = 1.0, [False] * len(order)
        kept = [place for place, is_gone in enumerate(gone) if not is_gone]
        state = StreamState(
            number + 1,
            array("i", (order[place] for place in reversed(kept))),
            array("B", (fitted[place] for place in reversed(kept))),
            len(kept),
            scale,
        )
        return state, len(order) - len(kept)


# Samplers of the user's ----------------------------------------------------------------------------------


def check_sampler(sampler: object) -> None:
    """Refuse a sampler that gives an order only once, or that of another rank in every epoch."""
    if sampler is None:
        return
    if not hasattr(sampler, "__iter__") or isinstance(sampler, Iterator):
        raise OptionError(
            f"sampler is {short_repr(sampler)}; it must be a sampler of indices that each pass can iterate over"
        )
    shard = own_shard(sampler)
    if shard is not None and shard.ranks > 1:
        raise OptionError(
            f"sampler is a {type(sampler).__name__}, which assigns samples to other ranks in every epoch, so that no "
            "rank knows the losses of its own; leave it out, and give rank= and world_size="
        )


def _order_of(sampler: Any, number: int, samples: int, shard: Shard) -> list[int]:
    """The indices of a pass that are this rank's, which knows the losses of its own samples."""
    set_epoch = getattr(sampler, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(number)
    most = None if hasattr(sampler, "__len__") else _ENDLESS * samples
    order = [_checked(index, samples) for index in itertools.islice(sampler, most)]
    if len(order) == most:
        raise OptionError(f"the sampler has yielded {most:,} indices without an end; a pass is what it yields")
    own = [index for index in order if index % shard.ranks == shard.rank]
    if not own:
        which = f" that is {shard.rank} modulo {shard.ranks}, as this rank's samples are" if order else ""
        raise OptionError(f"the sampler yields no index{which}; every pass iterates over it again")
    return own


def _checked(index: Any, samples: int) -> int:
    try:
        plain = operator.index(index)
    except TypeError as error:
        raise OptionError(
            f"the sampler yields {short_repr(index)}, a {type(index).__name__}; it must yield whole numbers, one a "
            "sample, and no batches of them"
        ) from error
    if not 0 <= plain < samples:
        raise OptionError(
            f"the sampler yields index {plain}; with samples={samples} it must be from 0 to {samples - 1}"
        )
    return plain
