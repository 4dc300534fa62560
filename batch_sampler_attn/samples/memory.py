"""What is remembered of each sample: its loss, and how often it was seen in the epoch."""

from __future__ import annotations

import math
from array import array
from typing import Any

from batch_sampler_attn.errors import StateError
from batch_sampler_attn.samples.packing import pack, unpack

_LARGEST = 3.0e38  # What single precision holds.


class SampleMemory:
    """Five bytes a sample.

    Args:
        samples: How many there are.

    Attributes:
        losses: (samples,), the loss that is remembered; NaN for a sample whose loss was never seen.
        visits: (samples,), visits in the epoch in progress, up to 255.
    """

    def __init__(self, samples: int) -> None:
        self.losses: array[float] = array("f", [math.nan]) * samples
        self.visits: array[int] = array("B", [0]) * samples

    def keep(self, sample: int, loss: float) -> None:
        """Remember a finite loss."""
        self.losses[sample] = max(-_LARGEST, min(loss, _LARGEST))

    def count_visit(self, sample: int) -> None:
        """The sample was trained on."""
        self.visits[sample] = min(self.visits[sample] + 1, 255)

    def begin_epoch(self) -> None:
        """Visits are counted anew."""
        self.visits = array("B", [0]) * len(self.visits)

    def pack(self) -> dict[str, Any]:
        """As JSON types."""
        return {"losses": pack(self.losses), "visits": pack(self.visits)}

    @classmethod
    def unpack(cls, losses: object, visits: object, samples: int) -> SampleMemory:
        """What ``pack`` packed.

        Raises:
            StateError: If it is damaged.
        """
        memory = cls(0)
        memory.losses = unpack("losses", losses, "f", samples)  # type: ignore[assignment]
        memory.visits = unpack("visits", visits, "B", samples)  # type: ignore[assignment]
        if any(map(math.isinf, memory.losses)):
            raise StateError("losses holds an infinite one in the state; it was changed after it was saved")
        return memory
