"""A stream of random numbers for each loop, so that loops that take turns draw what they would draw alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Randomness:
    """What dropout and its like draw from while one loop trains; the user's generators stay as they were.

    Args:
        seed: Of every generator in here.
        device: The loop's device.

    Attributes:
        order: A CPU generator, for orders and augmentation of whole epochs.
        fresh: On the device, for augmentation of single visits.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.order = torch.Generator().manual_seed(seed)
        self.fresh = torch.Generator(device).manual_seed(seed + 1)
        self._cpu = torch.Generator().manual_seed(seed + 2)
        self._cuda = torch.Generator(device).manual_seed(seed + 3) if device.type == "cuda" else None

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let torch's default generators draw from here, and put them back afterwards."""
        before = torch.get_rng_state()
        torch.set_rng_state(self._cpu.get_state())
        default = None
        if self._cuda is not None:
            # The state object itself is exchanged: a captured graph goes on drawing from the one it was captured with.
            default = torch.cuda.default_generators[self._device.index or 0]
            default_state = default.graphsafe_get_state()
            default.graphsafe_set_state(self._cuda)
        try:
            yield
        finally:
            self._cpu.set_state(torch.get_rng_state())
            torch.set_rng_state(before)
            if default is not None:
                default.graphsafe_set_state(default_state)

    def state_dict(self) -> dict[str, Any]:
        """The states of all generators."""
        return {name: generator.get_state() for name, generator in self._generators().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them, in place."""
        for name, generator in self._generators().items():
            generator.set_state(state[name].cpu())

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"order": self.order, "fresh": self.fresh, "cpu": self._cpu}
        return generators if self._cuda is None else {**generators, "cuda": self._cuda}


@contextmanager
def precision(device: torch.device, tf32: bool | None) -> Iterator[None]:
    """Allow or forbid TF32 while a loop trains; None leaves PyTorch's own settings alone."""
    if tf32 is None or device.type != "cuda":
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = tf32
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
