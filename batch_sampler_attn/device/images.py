"""Ready-made ``prepare`` functions for images: uint8 or float, (batch, channels, height, width), on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Normalize:
    """Scale uint8 images to [0, 1]; subtract ``mean`` and divide by ``std``, both (channels,) on the images' device."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._mean, self._std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize images."""
        return ((images.float().div(255) if images.dtype is torch.uint8 else images) - self._mean) / self._std


class RandomCropFlip:
    """Shift each image at random by up to ``padding`` pixels, with zeros around it, and mirror half of the images.

    Args:
        padding: The largest shift, in pixels.
        then: What is applied next, such as ``Normalize``.
        per_visit: Whether each visit draws. By default the draws depend on the image, the epoch and ``seed`` alone, so
            that all visits of a batch see the same images.
        seed: Of these draws.
    """

    def __init__(
        self, padding: int, then: Callable[[Tensor], Tensor] | None = None, *, per_visit: bool = False, seed: int = 0
    ) -> None:
        self._padding, self._then, self._per_visit, self._seed = padding, then, per_visit, seed
        self._epoch: Tensor | int = 0

    def set_epoch(self, epoch: Tensor | int) -> None:
        """Receive the epoch's number; ``DeviceLoop`` gives a tensor on the device, which it changes in place."""
        self._epoch = epoch

    def __call__(self, images: Tensor) -> Tensor:
        """Crop and mirror images."""
        samples, channels, height, width = (torch.arange(size, device=images.device) for size in images.shape)
        down, right, mirror = self._draw(images).unbind(1)
        rows = height + down[:, None] % (2 * self._padding + 1)
        columns = torch.where(mirror[:, None] % 2 == 1, width.flip(0), width) + right[:, None] % (2 * self._padding + 1)
        padded = torch.nn.functional.pad(images, [self._padding] * 4)
        at = samples[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        return padded[at] if self._then is None else self._then(padded[at])

    def _draw(self, images: Tensor) -> Tensor:
        """Three whole numbers for each image: (batch, 3)."""
        if self._per_visit:
            return torch.randint(2**31, (len(images), 3), device=images.device)
        content = images.flatten(1).view(torch.uint8).long()
        weights = _mix(torch.arange(1, content.shape[1] + 1, device=images.device))
        draws = _mix(torch.arange(3, device=images.device) + 3 * self._epoch + (self._seed << 32))
        return _mix((content * weights).sum(1)[:, None] ^ draws)


def _mix(numbers: Tensor) -> Tensor:
    """Numbers that look random, each a function of one in ``numbers``: the end of splitmix64."""
    numbers = (numbers ^ (numbers >> 30)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ (numbers >> 27)) * -0x6B2FB644ECCEEE15
    return numbers ^ (numbers >> 31)
