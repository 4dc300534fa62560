"""How well a model does on the test set."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.schema import Precision

# As many as a thousand of CIFAR's images have; some operations sum in another order for other numbers of images.
PIXELS_AT_ONCE = 1000 * 32 * 32

_TF32: dict[Precision, bool | None] = {"default": None, "fp32": False, "tf32": True, "bf16": None, "fp16": None}
_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def tf32_of(precision: Precision) -> bool | None:
    """Whether TF32 is allowed; None leaves it to PyTorch."""
    return _TF32[precision]


class Numerics(NamedTuple):
    """How images become numbers, and how these are computed with; the same in training and in evaluation.

    Attributes:
        mean: Of each channel of the training images, scaled to [0, 1]; (3, 1, 1).
        deviation: Their standard deviation; (3, 1, 1).
        precision: As in ``schema.Configuration``.
        channels_last: Whether images are laid out with their channels last.
    """

    mean: Tensor
    deviation: Tensor
    precision: Precision
    channels_last: bool

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of autocast; None for no autocast."""
        return _AUTOCAST.get(self.precision)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 images as the model gets them."""
        prepared = (images.float().div(255) - self.mean) / self.deviation
        return prepared.contiguous(memory_format=torch.channels_last) if self.channels_last else prepared


def measure_numerics(images: Tensor, precision: Precision, channels_last: bool) -> Numerics:
    """The numerics for training images, uint8, (images, 3, height, width)."""
    # In slices: as floats all at once they would take four times the memory.
    count = images.numel() / images.shape[1]
    sums, squares = torch.zeros(2, images.shape[1], dtype=torch.float64).unbind()
    for part in images.split(5000):
        scaled = part.cpu().double().div(255)
        sums += scaled.sum(dim=(0, 2, 3))
        squares += scaled.square().sum(dim=(0, 2, 3))
    mean = sums / count
    # Where a channel is the same everywhere there is nothing to scale.
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    shape = (images.shape[1], 1, 1)
    device = images.device
    return Numerics(
        mean.float().view(shape).to(device), deviation.float().view(shape).to(device), precision, channels_last
    )


class Evaluation(NamedTuple):
    """Results on the test set.

    Attributes:
        loss: Mean cross-entropy; None where it is not finite.
        accuracy: Share of images that are classified rightly.
        macro_f1: Mean F1 over the classes.
        confusion: Images by true class (row) and predicted class (column).
    """

    loss: float | None
    accuracy: float
    macro_f1: float
    confusion: NDArray[np.int64]


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, classes: int, numerics: Numerics) -> Evaluation:
    """Evaluate, and leave the model in evaluation mode.

    Args:
        model: On the images' device.
        images: uint8, (images, 3, height, width).
        labels: int64, (images,), on the same device.
        classes: How many there are.
        numerics: As in training.
    """
    model.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=images.device)
    predictions: list[Tensor] = []
    autocast = numerics.autocast
    at_once = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
    with (
        torch.no_grad(),
        torch.autocast(images.device.type, dtype=autocast, enabled=autocast is not None),
    ):
        for part, targets in zip(images.split(at_once), labels.split(at_once), strict=True):
            outputs = model(numerics.prepare(part)).float()
            loss_sum += functional.cross_entropy(outputs, targets, reduction="sum").double()
            predictions.append(outputs.argmax(dim=1))
    loss = loss_sum.item() / len(images)
    true, predicted = labels.cpu().numpy(), torch.cat(predictions).cpu().numpy()
    every_class = np.arange(classes)
    return Evaluation(
        loss=loss if math.isfinite(loss) else None,
        accuracy=float(np.mean(true == predicted)),
        macro_f1=float(f1_score(true, predicted, labels=every_class, average="macro", zero_division=0)),
        confusion=confusion_matrix(true, predicted, labels=every_class),
    )
