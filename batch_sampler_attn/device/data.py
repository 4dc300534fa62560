"""Where a device loop's batches come from: tensors that live on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batch_sampler_attn.device.identity import crc_of
from batch_sampler_attn.device.transfer import copy_in
from batch_sampler_attn.errors import OptionError


class Augmentation(NamedTuple):
    """Random augmentation on the device.

    Attributes:
        apply: From images (batch, ...) and uniform numbers (batch, draws) to images of the same shape.
        draws: Uniform numbers in [0, 1) for each sample.
        fresh: Whether each visit draws its own numbers. By default they are drawn for each position of
            the epoch, so that a repeat sees the very images of the first visit.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int
    fresh: bool = False


class Batch(NamedTuple):
    """A batch as the data has it.

    Attributes:
        inputs: (batch, ...), as stored.
        targets: (batch, ...).
        uniforms: (batch, draws) for the augmentation, unless it draws afresh.
    """

    inputs: Tensor
    targets: Tensor
    uniforms: Tensor | None


class ResidentData:
    """Inputs and targets that stay on the device, visited in a new random order in every epoch.

    Args:
        inputs: (samples, ...) on the model's device. uint8 images are scaled to [0, 1] by the loop.
        targets: (samples, ...) on the same device.
        batch_size: Samples in a batch.
        drop_last: Whether the last, shorter batch is left out; otherwise it is trained on as it is.
        generator: A CPU generator that the orders are drawn from, so that they are the same on every device.
        shuffle: Whether to draw an order at all.

    Raises:
        OptionError: If the tensors do not fit each other or the batch size.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator,
        drop_last: bool = False,
        shuffle: bool = True,
    ) -> None:
        if len(inputs) != len(targets):
            raise OptionError(f"there are {len(inputs)} inputs and {len(targets)} targets; each input needs one target")
        if inputs.device != targets.device:
            raise OptionError(f"inputs are on {inputs.device} and targets on {targets.device}; move both to one device")
        check_batch_size(batch_size, len(inputs))
        self.inputs = inputs
        self.targets = targets
        self.batch_size = batch_size
        self.device = inputs.device
        self.generator = generator
        self._shuffle = shuffle
        self.full_batches = len(inputs) // batch_size
        self.tail_size = 0 if drop_last else len(inputs) % batch_size
        self.batches = self.full_batches + (self.tail_size > 0)
        self.order = torch.arange(len(inputs), device=self.device)
        self._within_batch = torch.arange(batch_size, device=self.device)
        self._uniforms: Tensor | None = None

    @property
    def read_ahead(self) -> int:
        """How many batches the order's generator is ahead: it is drawn from as an epoch begins."""
        return 0

    def reserve_uniforms(self, draws: int) -> None:
        """Keep ``draws`` numbers for every sample of an epoch, drawn with its order."""
        self._uniforms = torch.zeros(len(self.inputs), draws, device=self.device)

    def begin_epoch(self) -> None:
        """Draw a new order, into the same memory."""
        if self._shuffle:
            copy_in(self.order, self._draw_order(self.generator))
        if self._uniforms is not None:
            copy_in(self._uniforms, torch.rand(self._uniforms.shape, generator=self.generator))

    def resume_epoch(self, cursor: int, staged: int) -> None:
        """Draw the order again, from the generator's state at the epoch's begin."""
        del cursor, staged
        self.begin_epoch()

    def identity(self) -> dict[str, Any]:
        """What tells this data, in the order of the epoch that was begun last, from others."""
        return self._identity_in(self.order)

    def identity_ahead(self, randomness: Tensor) -> dict[str, Any]:
        """What ``identity`` would be in an epoch that begins with the generator in the state ``randomness``."""
        return self._identity_in(self._draw_order(torch.Generator().set_state(randomness)).to(self.device))

    def stage(self, cursor: int) -> int:
        """How many batches are at hand, counted from the epoch's begin: all of them."""
        del cursor
        return self.batches

    def batch(self, cursor: Tensor) -> Batch:
        """The full batch at ``cursor``, an int64 0-d tensor on the device."""
        return self._gather(cursor * self.batch_size + self._within_batch)

    def tail(self) -> Batch:
        """The last, shorter batch."""
        return self._gather(self.full_batches * self.batch_size + self._within_batch[: self.tail_size])

    def sample(self, samples: int, uniforms: Tensor | None) -> Batch:
        """The first few samples as stored, with uniform numbers as given."""
        return Batch(self.inputs[:samples], self.targets[:samples], uniforms)

    def _draw_order(self, generator: torch.Generator) -> Tensor:
        samples = len(self.inputs)
        return torch.randperm(samples, generator=generator) if self._shuffle else torch.arange(samples)

    def _identity_in(self, order: Tensor) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "samples": len(self.inputs),
            "batch_size": self.batch_size,
            "order": crc_of(order),
            "targets": crc_of(self.targets.index_select(0, order[: self.batch_size])),
        }

    def _gather(self, positions: Tensor) -> Batch:
        samples = self.order.index_select(0, positions)
        uniforms = None if self._uniforms is None else self._uniforms.index_select(0, positions)
        return Batch(self.inputs.index_select(0, samples), self.targets.index_select(0, samples), uniforms)


def check_batch_size(batch_size: object, samples: int | None) -> None:
    """Refuse batch sizes that no batch could have.

    Raises:
        OptionError: If it is not a whole number of at least 1, or more than ``samples``.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
    if samples is not None and batch_size > samples:
        raise OptionError(f"batch_size is {batch_size}, but there are {samples} samples; use at most {samples}")
