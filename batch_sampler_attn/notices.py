"""What a schedule warns of: training goes on, but the losses or the loop deserve a look."""

from __future__ import annotations

import warnings

from batch_sampler_attn.errors import BatchAttentionWarning


def nonfinite_loss(loss: float, epoch: int, *, stacklevel: int) -> None:
    """A loss is NaN or infinite."""
    warnings.warn(
        f"a loss of {loss} in epoch {epoch} is not finite: its batch is not repeated and the loss is "
        "kept out of the mean (said once an epoch; EpochSummary.nonfinite_losses counts them)",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )


def negative_mean(mean_loss: float, epoch: int, *, stacklevel: int) -> None:
    """K times the mean of negative losses is below the mean."""
    warnings.warn(
        f"the mean loss of epoch {epoch} is {mean_loss}: with negative losses, k times the mean is below the mean, "
        "and most batches repeat. Shift the loss above 0, or use k below 1",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )


def epochs_left_early(*, stacklevel: int) -> None:
    """A loop that leaves every epoch early never gets a threshold."""
    warnings.warn(
        "two epochs in a row were left before their end. An epoch that is left sets no threshold, so nothing will "
        "ever repeat. To train on n batches an epoch, give attend() no more: "
        "schedule.attend(itertools.islice(loader, n)); for epochs of n batches of a stream, use window=n",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )
