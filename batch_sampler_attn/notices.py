"""What a schedule warns of: training goes on, but the losses or the loop deserve a look."""

from __future__ import annotations

import warnings

from batch_sampler_attn.errors import BatchAttentionWarning


def nonfinite_loss(loss: float, epoch: int, *, stacklevel: int) -> None:
    """A loss is NaN or infinite, or makes the sum of the epoch's losses so."""
    what = "not finite" if loss - loss != 0.0 else "too large to be averaged"
    warnings.warn(
        f"a loss of {loss} in epoch {epoch} is {what}: its batch is not repeated and the loss is "
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
        "schedule.attend(itertools.islice(loader, n)), or BatchAttentionSampler(..., batches_per_epoch=n); for epochs "
        "of n batches of a stream, use window=n",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )


def changed_in_place(*, stacklevel: int) -> None:
    """The loop changes its batches in place, which it had better learn before the first repeat is refused."""
    warnings.warn(
        "the loop changed tensors of its batch in place. Once such a batch is to be repeated, that is refused, since a "
        "repeat would train on something else. Change a copy instead: images = images.clone() first, or operations "
        "without a final underscore",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )


def epoch_without_end(batches: int, *, stacklevel: int) -> None:
    """An epoch that never ends gives no threshold."""
    warnings.warn(
        f"the first epoch has reached {batches:,} batches without an end. Nothing repeats before an epoch has ended; "
        "for an endless loader or sampler, use BatchAttentionSchedule(window=N): every N batches are an epoch then",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )


def other_total_after_resume(batches: int, last: int, resumed_at: int, *, stacklevel: int) -> None:
    """A resumed epoch should be as long as the one before."""
    warnings.warn(
        f"the epoch that was gone on with after {resumed_at} batches had {batches} batches in all, and the one before "
        f"had {last}. After load_state_dict() in mid-epoch, give attend() the remaining batches, just once: "
        "schedule.attend(itertools.islice(loader, schedule.batch_index, None))",
        BatchAttentionWarning,
        stacklevel=stacklevel + 1,
    )
