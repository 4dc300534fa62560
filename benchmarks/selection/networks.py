"""The small networks of the studies, and the augmentation of images. torch's generator is restored after each draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PEAK_LEARNING_RATE = 0.1
_LARGEST_SHIFT = 4


def convolutional(labels: int, seed: int) -> nn.Module:
    """For images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers, channels = list[nn.Module](), 3
        for width in (16, 32, 64, 128):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, labels))
    return network.to(memory_format=torch.channels_last)


def of_kind(name: str, inputs: int, outputs: int, seed: int) -> nn.Module:
    """For a kind of data, of so many features and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width, dropout = (64, 0.0) if name == "table" else (128, 0.5)
        first, second = nn.Linear(inputs, width), nn.Linear(width, width)
        layers = [first, nn.ReLU(), nn.Dropout(dropout), second, nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(width, outputs))


def augment(images: Tensor, seed: int, draw: int) -> Tensor:
    """Flip and shift images, (batch, channels, height, width), by up to 4 pixels, as the seed and the draw say."""
    samples, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    flips = torch.rand(samples, generator=generator) < 0.5
    shifts = torch.randint(0, 2 * _LARGEST_SHIFT + 1, (2, samples, 1), generator=generator)
    rows = shifts[0] + torch.arange(height)
    columns = torch.arange(width).expand(samples, width)
    columns = shifts[1] + torch.where(flips[:, None], columns.flip(1), columns)
    padded = nn.functional.pad(images, (_LARGEST_SHIFT,) * 4)
    picked = padded[torch.arange(samples)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    # The channels come last as they are picked, which is how the network has them in memory.
    return picked.permute(0, 3, 1, 2)


def mirror(inputs: Tensor, seed: int, draw: int) -> Tensor:
    """One of the two forms of each sample, (batch, 2, features) to (batch, features); others have one form."""
    if inputs.ndim < 3:
        return inputs
    generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
    return inputs[torch.arange(len(inputs)), torch.randint(0, 2, (len(inputs),), generator=generator)]
