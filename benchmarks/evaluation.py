"""How a model computes with images, and how well it does on the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.schema import ConfusionMatrix, Precision

# As many as a thousand of CIFAR's images have; some operations sum in another order for other numbers of images.
_PIXELS_AT_ONCE = 1000 * 32 * 32
# Others leave it to PyTorch.
TF32: dict[Precision, bool] = {"fp32": False, "tf32": True}
_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Allow or forbid CUDA's TF32 in matrix products and cuDNN for a while; None leaves PyTorch's settings alone."""
    cudnn: Any = torch.backends.cudnn
    operations = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [operation.fp32_precision for operation in operations]
    try:
        for operation in [] if allowed is None else operations:
            operation.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for operation, setting in zip(operations, before, strict=True):
            operation.fp32_precision = setting


class Numerics(NamedTuple):
    """How images become the model's inputs, in training and in evaluation."""

    mean: Tensor  # of each channel of the training images, scaled to [0, 1]; (3, 1, 1)
    deviation: Tensor  # (3, 1, 1)
    precision: Precision
    channels_last: bool

    @property
    def autocast(self) -> torch.dtype | None:
        """The type of autocast; None for no autocast."""
        return _AUTOCAST.get(self.precision)

    def prepare(self, images: Tensor) -> Tensor:
        """The model's inputs, from uint8 images."""
        prepared = (images.float().div(255) - self.mean) / self.deviation
        return prepared.contiguous(memory_format=torch.channels_last) if self.channels_last else prepared


def measure_numerics(images: Tensor, precision: Precision, channels_last: bool) -> Numerics:
    """The numerics for training images, uint8, (images, 3, height, width)."""
    # In parts: as floats all at once they would take four times the memory.
    count, (sums, squares) = images.numel() / 3, torch.zeros(2, 3, dtype=torch.float64)
    for part in images.split(5000):
        scaled = part.cpu().double().div(255)
        sums += scaled.sum(dim=(0, 2, 3))
        squares += scaled.square().sum(dim=(0, 2, 3))
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    # A channel that is the same everywhere is not scaled.
    deviation[deviation <= 1e-6] = 1.0
    mean, deviation = (each.float().view(-1, 1, 1).to(images.device) for each in (mean, deviation))
    return Numerics(mean, deviation, precision, channels_last)


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, classes: int, numerics: Numerics
) -> tuple[dict[str, float | None], ConfusionMatrix]:
    """Evaluate on uint8 images, on the model's device, and leave the model in evaluation mode.

    The results are fields of ``schema.Epoch``; the loss is None where it is not finite.
    """
    model.eval()
    loss_sum, predictions = torch.zeros((), dtype=torch.float64, device=images.device), []
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].numel())
    with torch.no_grad(), torch.autocast(images.device.type, numerics.autocast, enabled=bool(numerics.autocast)):
        for part, targets in zip(images.split(at_once), labels.split(at_once), strict=True):
            outputs = model(numerics.prepare(part)).float()
            loss_sum += functional.cross_entropy(outputs, targets, reduction="sum").double()
            predictions.append(outputs.argmax(dim=1))
    loss = loss_sum.item() / len(images)
    pairs = (labels * classes + torch.cat(predictions)).cpu().numpy()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right = confusion.diagonal()
    # A class that is neither there nor predicted has an F1 of 0.
    f1 = 2 * right / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1)
    results = {
        "test_loss": loss if math.isfinite(loss) else None,
        "accuracy": float(right.sum() / len(images)),
        "macro_f1": float(f1.mean()),
    }
    return results, confusion.tolist()
