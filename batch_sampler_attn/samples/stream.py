"""The base order: pass after pass over the data, without the samples that are left out."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import OptionError, StateError, shown
from batch_sampler_attn.samples.memory import SampleMemory
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.samples.packing import pack, unpack
from batch_sampler_attn.shards import Shard


class Drawn(NamedTuple):
    """One sample of the base order.

    Attributes:
        sample: Its index.
        weight: Of its loss.
    """

    sample: int
    weight: float


class SampleStream:
    """Goes through the data again and again, in a new order each time.

    A pass leaves well-fitted samples out, each with the same probability; it decides on all of them as it begins.

    Args:
        options: Of the schedule.
        sampler: Yields the order of a pass; None for a random one of ours.
        shard: This rank's part of the data.

    Attributes:
        passes: Begun so far.
    """

    def __init__(self, options: SampleOptions, sampler: Iterable[Any] | None, shard: Shard) -> None:
        self.passes = 0
        self._options = options
        self._sampler = sampler
        self._shard = shard
        # What is left of the pass, last first, so that taking one is cheap.
        self._order: array[int] = array("i")
        # Whether each of these might have been left out.
        self._was_at_risk: array[int] = array("B")
        # What keeps the mean weight of a pass at 1, where weights are used.
        self._scale = 1.0

    def draw(self, memory: SampleMemory, fitted_below: float | None) -> tuple[Drawn, int]:
        """The next sample, and how many were left out to get to it.

        Args:
            memory: Says which samples are well fitted, as a pass begins.
            fitted_below: Samples with a loss below this are; None for none.

        Raises:
            OptionError: If the sampler yields no sample, or none of the data set.
        """
        left_out = 0
        while not self._order:
            left_out += self._begin_pass(memory, fitted_below)
        sample, was_at_risk = self._order.pop(), self._was_at_risk.pop()
        weight = 1.0
        if self._options.weighted:
            weight = self._scale / (1 - self._options.leave_out) if was_at_risk else self._scale
        return Drawn(sample, weight), left_out

    def restart(self) -> None:
        """Begin a new pass with the next sample."""
        self._order, self._was_at_risk = array("i"), array("B")

    def _begin_pass(self, memory: SampleMemory, fitted_below: float | None) -> int:
        options = self._options
        # A text seeds the same on every platform and Python version.
        rank = f", rank {self._shard.rank}" if self._shard.ranks > 1 else ""
        rng = random.Random(f"{options.seed}, pass {self.passes}{rank}")
        order = self._whole_order(rng)
        self.passes += 1
        is_fitted = [fitted_below is not None and memory.losses[sample] < fitted_below for sample in order]
        leaves_out = [fitted and rng.random() < options.leave_out for fitted in is_fitted]
        if all(leaves_out):
            leaves_out = [False] * len(order)
        self._scale = 1 - options.leave_out * sum(is_fitted) / len(order)
        if options.choose == "random":
            # As many, whichever they are; all have the same chance, so none weighs more.
            rng.shuffle(leaves_out)
            is_fitted, self._scale = [False] * len(order), 1.0
        kept = [place for place, leaves in enumerate(leaves_out) if not leaves]
        self._order = array("i", (order[place] for place in reversed(kept)))
        self._was_at_risk = array("B", (is_fitted[place] for place in reversed(kept)))
        return len(order) - len(kept)

    def _whole_order(self, rng: random.Random) -> list[int]:
        samples, (rank, ranks) = self._options.samples, self._shard
        if self._sampler is None:
            order = list(range(rank, samples, ranks))
            rng.shuffle(order)
            return order
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(self.passes)
        order = [int(index) for index in self._sampler]
        outside = next((index for index in order if not 0 <= index < samples), None)
        if outside is not None:
            raise OptionError(
                f"the sampler yields index {outside}; with samples={samples} it must be from 0 to {samples - 1}"
            )
        if not order:
            raise OptionError("the sampler yields no index; pass one that can be iterated over in every epoch")
        # A sample stays with its rank, which knows its loss.
        own = [index for index in order if index % ranks == rank]
        if not own:
            raise OptionError(f"the sampler yields no index that is {rank} modulo {ranks}, as this rank's samples are")
        return own

    def pack(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "passes": self.passes,
            "order": pack(self._order),
            "was_at_risk": pack(self._was_at_risk),
            "scale": self._scale,
        }

    def unpacked(self, packed: object) -> SampleStream:
        """A stream like this one, where ``pack`` packed it.

        Raises:
            StateError: If it is damaged.
        """
        fields = checkpoint.check_keys("the stream", packed, {"passes", "order", "was_at_risk", "scale"})
        twin = SampleStream(self._options, self._sampler, self._shard)
        twin.passes = checkpoint.check_count("passes", fields["passes"])
        twin._order = unpack("order", fields["order"], "i")  # type: ignore[assignment]
        twin._was_at_risk = unpack("was_at_risk", fields["was_at_risk"], "B", len(twin._order))  # type: ignore[assignment]
        twin._scale = checkpoint.check_number("scale", fields["scale"], "the state")
        if not 0 < twin._scale <= 1 or any(not 0 <= sample < self._options.samples for sample in twin._order):
            raise StateError(
                f"the stream does not hold together: scale {shown(twin._scale)}, or a sample outside of the data"
            )
        return twin
