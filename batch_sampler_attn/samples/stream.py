"""The base order: pass after pass over the data, without the samples that are left out."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError
from batch_sampler_attn.samples.batch import SampleBatch
from batch_sampler_attn.samples.memory import SampleMemory
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.samples.packing import pack, unpack
from batch_sampler_attn.samples.samplers import order_of
from batch_sampler_attn.shards import Shard


class StreamPlace(NamedTuple):
    """Where in which pass the base order is.

    Attributes:
        passes: Begun so far.
        order: The pass's samples, last first.
        was_at_risk: Whether each of these might have been left out.
        left: How many of them are still to come.
        scale: What keeps the mean weight of a pass at 1, where weights are used.
    """

    passes: int = 0
    order: array[int] = array("i")
    was_at_risk: array[int] = array("B")
    left: int = 0
    scale: float = 1.0

    def restarted(self) -> StreamPlace:
        """Where a new pass begins with the next sample."""
        return StreamPlace(self.passes)

    def pack(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "passes": self.passes,
            "order": pack(self.order[: self.left]),
            "was_at_risk": pack(self.was_at_risk[: self.left]),
            "scale": self.scale,
        }


BEFORE_THE_FIRST_PASS = StreamPlace()


class SampleStream:
    """Goes through the data again and again, in a new order each time.

    A pass leaves well-fitted samples out, each with the same probability; it decides on all of them as it begins.

    Args:
        options: Of the schedule.
        sampler: Yields the order of a pass; None for a random one of ours.
        shard: This rank's part of the data.
    """

    def __init__(self, options: SampleOptions, sampler: Iterable[Any] | None, shard: Shard) -> None:
        self._options = options
        self._sampler = sampler
        self._shard = shard

    def draw(
        self, place: StreamPlace, recall: Callable[[], SampleMemory], fitted_below: float | None
    ) -> tuple[SampleBatch, StreamPlace, int]:
        """The next batch, the place behind it, and how many samples were left out to get there.

        Args:
            place: Where to go on.
            recall: Called as a pass begins, for the losses that say which samples are well fitted.
            fitted_below: Samples with a loss below this are; None for none.

        Raises:
            OptionError: If the sampler yields no sample, or none of the data set.
        """
        indices: list[int] = []
        weights: list[float] = []
        left_out = 0
        while len(indices) < self._options.batch_size:
            if not place.left:
                place, more = self._begin_pass(place.passes, recall(), fitted_below)
                left_out += more
            left = max(0, place.left - self._options.batch_size + len(indices))
            indices += reversed(place.order[left : place.left])
            by_risk = self._weights(place.scale)
            weights += [by_risk[was_at_risk] for was_at_risk in reversed(place.was_at_risk[left : place.left])]
            place = place._replace(left=left)
        return SampleBatch(indices, weights, is_extra=False), place, left_out

    def _weights(self, scale: float) -> tuple[float, float]:
        """Of samples that could not have been left out, and of those that could."""
        return (scale, scale / (1 - self._options.leave_out)) if self._options.weighted else (1.0, 1.0)

    def _begin_pass(self, number: int, memory: SampleMemory, fitted_below: float | None) -> tuple[StreamPlace, int]:
        options = self._options
        # A text seeds the same on every platform and Python version.
        rank = f", rank {self._shard.rank}" if self._shard.ranks > 1 else ""
        rng = random.Random(f"{options.seed}, pass {number}{rank}")
        order = self._whole_order(number, rng)
        is_fitted = [fitted_below is not None and memory.losses[sample] < fitted_below for sample in order]
        leaves_out = [fitted and rng.random() < options.leave_out for fitted in is_fitted]
        if all(leaves_out):
            leaves_out = [False] * len(order)
        scale = 1 - options.leave_out * sum(is_fitted) / len(order)
        if options.choose == "random":
            # As many, whichever they are; all have the same chance, so none weighs more.
            rng.shuffle(leaves_out)
            is_fitted, scale = [False] * len(order), 1.0
        kept = [place for place, leaves in enumerate(leaves_out) if not leaves]
        place = StreamPlace(
            number + 1,
            array("i", (order[place] for place in reversed(kept))),
            array("B", (is_fitted[place] for place in reversed(kept))),
            len(kept),
            scale,
        )
        return place, len(order) - len(kept)

    def _whole_order(self, number: int, rng: random.Random) -> list[int]:
        samples, (rank, ranks) = self._options.samples, self._shard
        if self._sampler is not None:
            return order_of(self._sampler, number, samples, self._shard)
        order = list(range(rank, samples, ranks))
        rng.shuffle(order)
        return order

    def unpack(self, packed: object) -> StreamPlace:
        """The place that was saved as a dictionary.

        Raises:
            StateError: If it is damaged.
        """
        options = self._options
        fields = checkpoint.check_keys("the stream", packed, {"passes", "order", "was_at_risk", "scale"})
        passes = checkpoint.check_count("passes", fields["passes"])
        order: Any = unpack("order", fields["order"], "i")
        was_at_risk: Any = unpack("was_at_risk", fields["was_at_risk"], "B", len(order))
        scale = checkpoint.check_number("scale", fields["scale"], "the state")
        rank, ranks = self._shard
        broken = []
        if not 1 - options.leave_out <= scale * (1 + 1e-9) or scale > 1:
            broken.append(f"a scale of {scale}")
        if len(order) and not passes:
            broken.append("an order before the first pass")
        if any(not 0 <= sample < options.samples or sample % ranks != rank for sample in order):
            broken.append("a sample that is none of the data, or of another rank")
        if self._sampler is None and len({*order}) < len(order):
            broken.append("a sample twice in a pass")
        if not {*was_at_risk} <= {0, 1}:
            broken.append("a sample that is neither at risk nor safe")
        if broken:
            raise StateError(
                f"the stream does not hold together: {'; '.join(broken)}. It was changed after it was saved"
            )
        return StreamPlace(passes, order, was_at_risk, len(order), scale)
