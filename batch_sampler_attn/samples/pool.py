"""Samples that are to come again, until there are enough of them for a batch."""

from __future__ import annotations

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, shown


class Pool:
    """First in, first out; no sample is in it twice."""

    def __init__(self) -> None:
        # A dictionary keeps the order, and says at once what is in it.
        self._waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, sample: int) -> bool:
        return sample in self._waiting

    def add(self, sample: int) -> None:
        """Let the sample come again."""
        self._waiting[sample] = None

    def take(self, samples: int) -> list[int]:
        """Those that have waited longest."""
        taken = [sample for sample, _ in zip(self._waiting, range(samples), strict=False)]
        for sample in taken:
            del self._waiting[sample]
        return taken

    def clear(self) -> None:
        """Let none of them come again."""
        self._waiting.clear()

    def pack(self) -> list[int]:
        """As JSON types."""
        return [*self._waiting]

    @classmethod
    def unpack(cls, packed: object, samples: int) -> Pool:
        """What ``pack`` packed.

        Raises:
            StateError: If it is damaged.
        """
        if not isinstance(packed, list):
            raise StateError(f"pool is {shown(packed)} in the state; it must be a list of samples")
        pool = cls()
        for sample in packed:
            if checkpoint.check_count("a sample of the pool", sample) >= samples or sample in pool:
                raise StateError(
                    f"pool holds sample {sample} in the state, which it cannot; it was changed after it was saved"
                )
            pool.add(sample)
        return pool
