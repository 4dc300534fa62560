"""The mean loss of a batch that is trained on."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.errors import LossError


def weighted_mean(losses: Any, weights: list[float] | None) -> Any:
    """The mean of a tensor or an array, in its own framework.

    Args:
        losses: (batch,), of PyTorch or NumPy.
        weights: (batch,); None where all are 1.

    Raises:
        LossError: If it has no mean.
    """
    if not callable(getattr(losses, "mean", None)):
        raise LossError(
            f"got losses of type {type(losses).__name__}; weigh() takes the mean of a tensor of PyTorch or an array of "
            "NumPy. Take the mean yourself, with the weights that report(losses) returns"
        )
    if weights is None:
        return losses.mean()
    return (losses * (losses.new_tensor(weights) if hasattr(losses, "new_tensor") else weights)).mean()
