"""Segmentation: does attention help a tiny U-Net with a class that is rare and small?

Images of 20 x 20 pixels show a disc, a rectangle and noise. One image in five also shows a small cross; crosses are one
pixel in a hundred. All shapes are equally bright. A sample is an image, and its loss is the mean over its pixels. The
scores are the mean intersection over union (IoU) of the four classes, with the background, and the IoU of crosses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from examples.paired_arms import Task, compare
else:
    from paired_arms import Task, compare

SIZE = 20
BACKGROUND, DISC, RECTANGLE, CROSS = range(4)
CLASSES = 4
SHARE_OF_CROSSES = 0.2
NOISE = 0.1


def draw(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, SIZE, SIZE) and the class of each pixel (n, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(images, 1, 1, generator=generator)

    def offsets() -> tuple[torch.Tensor, torch.Tensor]:
        """Distances of each pixel from a random center, vertical and horizontal."""
        positions = torch.arange(SIZE)
        return (positions[:, None] - uniform(4, SIZE - 4)).abs(), (positions - uniform(4, SIZE - 4)).abs()

    classes = torch.full((images, SIZE, SIZE), BACKGROUND)
    down, across = offsets()
    classes[down**2 + across**2 <= uniform(3, 6) ** 2] = DISC
    down, across = offsets()
    classes[(down <= uniform(2, 6)) & (across <= uniform(2, 6))] = RECTANGLE
    down, across = offsets()
    is_on_cross = (torch.minimum(down, across) <= 1) & (torch.maximum(down, across) <= 3)
    classes[is_on_cross & (uniform(0, 1) < SHARE_OF_CROSSES)] = CROSS
    noise = NOISE * torch.randn(images, SIZE, SIZE, generator=generator)
    return ((classes != BACKGROUND) + noise).unsqueeze(1), classes


def convolutions(channels_in: int, channels: int) -> nn.Sequential:
    """Two 3 x 3 convolutions with batch normalization."""
    layers: list[nn.Module] = []
    for width in (channels_in, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Two levels down, two levels up, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.middle, self.coarse = convolutions(1, 8), convolutions(8, 16), convolutions(16, 32)
        self.middle_up, self.fine_up = convolutions(32 + 16, 16), convolutions(16 + 8, 8)
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, CLASSES, SIZE, SIZE)."""
        fine = self.fine(images)
        middle = self.middle(nn.functional.max_pool2d(fine, 2))
        coarse = self.coarse(nn.functional.max_pool2d(middle, 2))
        middle = self.middle_up(torch.cat([nn.functional.interpolate(coarse, scale_factor=2), middle], dim=1))
        fine = self.fine_up(torch.cat([nn.functional.interpolate(middle, scale_factor=2), fine], dim=1))
        scores: torch.Tensor = self.head(fine)
        return scores


def overlap(predicted: torch.Tensor, classes: torch.Tensor) -> tuple[float, float]:
    """The mean IoU of all classes, and the IoU of crosses, over all pixels."""
    pairs = torch.bincount((CLASSES * classes + predicted).flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
    common = pairs.diag()
    shares = common / (pairs.sum(dim=0) + pairs.sum(dim=1) - common)
    return shares.mean().item(), shares[CROSS].item()


def main() -> None:
    images, classes = draw(320, seed=0)
    test_images, test_classes = draw(400, seed=1)

    def losses(model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        loss_of_pixel = nn.functional.cross_entropy(model(images[indices]), classes[indices], reduction="none")
        return loss_of_pixel.mean(dim=(1, 2))

    @torch.no_grad()
    def test(model: nn.Module) -> tuple[float, float]:
        return overlap(model.eval()(test_images).argmax(dim=1), test_classes)

    task = Task(
        samples=len(images),
        make_model=UNet,
        losses=losses,
        test=test,
        scores=("mean IoU", "IoU of crosses"),
        constant=overlap(torch.full_like(test_classes, BACKGROUND), test_classes),
        is_low_good=False,
        batch_size=8,
        learning_rate=1e-2,
    )
    compare(task, __doc__, seeds=8, epochs=12)


if __name__ == "__main__":
    main()
