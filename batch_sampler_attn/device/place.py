"""Where a loop does its work: its own stream, generators and precision, for the time of one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from batch_sampler_attn.device.randomness import Randomness, precision


class Place:
    """A loop's ``stream`` (None on a device without streams), its generators, and whether TF32 is allowed."""

    def __init__(self, device: torch.device, randomness: Randomness, tf32: bool | None) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._randomness = randomness
        self._tf32 = tf32

    @contextmanager
    def in_use(self, *, is_awaited: bool = True) -> Iterator[None]:
        """All three of them."""
        with self.on_stream(is_awaited=is_awaited), self._randomness.in_use(), precision(self._device, self._tf32):
            yield

    @contextmanager
    def on_stream(self, *, is_awaited: bool = True) -> Iterator[None]:
        """The loop's stream, after what the caller's has to do.

        The caller's waits in turn if ``is_awaited``. After an enqueue it does not: loops that take turns would wait
        for each other.
        """
        if self.stream is None:
            yield
            return
        callers = torch.cuda.current_stream(self._device)
        self.stream.wait_stream(callers)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            if is_awaited:
                callers.wait_stream(self.stream)

    def join(self) -> None:
        """Let the caller's stream wait for the loop's."""
        if self.stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self.stream)
