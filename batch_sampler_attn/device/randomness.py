"""A stream of random numbers for each loop, so that loops that take turns draw what they would draw alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from batch_sampler_attn.checkpoint import check_keys
from batch_sampler_attn.errors import StateError


class Randomness:
    """What dropout and its like draw from while one loop trains; the user's generators stay as they were.

    Args:
        seed: Of every generator that is made here.
        device: The loop's device.
        data: The data's generator, if there is one: saved and loaded with the others.

    Attributes:
        fresh: On the device, for augmentation of single visits.
    """

    def __init__(self, seed: int, device: torch.device, data: torch.Generator | None) -> None:
        self._device = device
        self._data = data
        # Nothing draws from it any more, but it is in every saved state.
        self._order = torch.Generator().manual_seed(seed)
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

    def renew(self, state: dict[str, Any]) -> None:
        """Replace the device's generators, which a capture that failed leaves unusable, by new ones in this state."""
        if self._cuda is not None:
            self.fresh = torch.Generator(self._device)
            self.fresh.set_state(state["loop"]["fresh"])
            self._cuda = torch.Generator(self._device)
            self._cuda.set_state(state["loop"]["cuda"])

    def state_dict(self) -> dict[str, Any]:
        """The states of all generators."""
        return {
            "loop": {name: generator.get_state() for name, generator in self._generators().items()},
            "data": None if self._data is None else self._data.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], *, with_data: bool = True) -> None:
        """Set them, in place; the data's too, if ``with_data``."""
        for name, generator in self._generators().items():
            generator.set_state(state["loop"][name].cpu())
        if self._data is not None and with_data:
            self._data.set_state(state["data"])

    def check(self, state: object) -> None:
        """Refuse what ``load_state_dict`` could not load.

        Raises:
            StateError: If so.
        """
        saved = check_keys("the state's randomness", state, {"loop", "data"})
        ours, theirs = self._generators(), saved["loop"]
        if isinstance(theirs, dict) and ("cuda" in theirs) != ("cuda" in ours):
            there, here = ("CUDA", "CPU") if "cuda" in theirs else ("CPU", "CUDA")
            raise StateError(
                f"the state was saved on a {there} device and this loop is on a {here} device, whose random numbers "
                "are others; load it where it was saved, or begin a new loop with its model and optimizer"
            )
        theirs = check_keys("the state's randomness", theirs, set(ours))
        for name, generator in ours.items():
            _check_generator_state(name, generator, theirs[name])
        if (saved["data"] is None) != (self._data is None):
            raise StateError(
                "the state was saved with a generator in the data and there is none here, or the other way round; "
                "construct the data as it was"
            )
        if self._data is not None:
            _check_generator_state("the data's generator", self._data, saved["data"])

    def _generators(self) -> dict[str, torch.Generator]:
        generators = {"order": self._order, "fresh": self.fresh, "cpu": self._cpu}
        return generators if self._cuda is None else {**generators, "cuda": self._cuda}


def _check_generator_state(name: str, generator: torch.Generator, state: object) -> None:
    """Refuse what is not the state of such a generator.

    Raises:
        StateError: If so.
    """
    try:
        torch.Generator(generator.device).set_state(cast("Tensor", state))
    except Exception as error:  # of whatever type the generator refuses it with
        raise StateError(f"{name} is not a generator's state: {error}") from error


@contextmanager
def precision(device: torch.device, tf32: bool | None) -> Iterator[None]:
    """Allow or forbid TF32 while a loop trains; None leaves PyTorch's own settings alone."""
    if tf32 is None or device.type != "cuda":
        yield
        return
    before = [(backend, name, getattr(backend, name)) for backend, name in precision_settings()]
    for backend, name, _ in before:
        setattr(backend, name, tf32 if name == "allow_tf32" else "tf32" if tf32 else "ieee")
    try:
        yield
    finally:
        for backend, name, setting in before:
            setattr(backend, name, setting)


def precision_settings() -> list[tuple[Any, str]]:
    """The attributes of torch that allow TF32, each with what has it."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):
        return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    # Where there is the new setting, the old one raises an error if the user has set the new one.
    return [(operation, "fp32_precision") for operation in (matmul, cudnn.conv, cudnn.rnn)]
