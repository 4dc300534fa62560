"""What is remembered of each sample: its loss, and how often it was seen in the epoch."""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

from batch_sampler_attn.errors import StateError
from batch_sampler_attn.samples.options import MOST_VISITS
from batch_sampler_attn.samples.packing import pack, unpack

_LARGEST = 3.0e38  # What single precision holds.


class News(NamedTuple):
    """What a batch's losses say, by sample.

    Attributes:
        losses: Finite ones, to be remembered.
        visits: In the epoch, this one included.
    """

    losses: dict[int, float]
    visits: dict[int, int]


NO_NEWS = News({}, {})


class SampleMemory:
    """Five bytes a sample.

    Args:
        losses: (samples,), the loss that is remembered; NaN for a sample whose loss was never seen.
        visits: (samples,), visits in the epoch in progress, up to 255; None for none.
    """

    def __init__(self, losses: array[float], visits: array[int] | None = None) -> None:
        self.losses = losses
        self.visits: array[int] = array("B", [0]) * len(losses) if visits is None else visits

    @classmethod
    def of(cls, samples: int) -> SampleMemory:
        """Of samples that were never seen."""
        return cls(array("f", [math.nan]) * samples)

    def tell(self, news: News) -> None:
        """Remember what a batch's losses say. Telling the same again changes nothing."""
        for sample, loss in news.losses.items():
            self.losses[sample] = max(-_LARGEST, min(loss, _LARGEST))
        for sample, visits in news.visits.items():
            self.visits[sample] = min(visits, MOST_VISITS)

    def next_epoch(self) -> SampleMemory:
        """With these very losses, and visits counted anew."""
        return SampleMemory(self.losses)

    def pack(self) -> dict[str, Any]:
        """As JSON types."""
        return {"losses": pack(self.losses), "visits": pack(self.visits)}

    @classmethod
    def unpack(cls, losses: object, visits: object, samples: int) -> SampleMemory:
        """What ``pack`` packed.

        Raises:
            StateError: If it is damaged.
        """
        memory = cls(
            unpack("losses", losses, "f", samples),  # type: ignore[arg-type]
            unpack("visits", visits, "B", samples),  # type: ignore[arg-type]
        )
        if any(map(math.isinf, memory.losses)):
            raise StateError("losses holds an infinite one in the state; it was changed after it was saved")
        return memory
