"""What a schedule warns of: training goes on, but the losses or the loop deserve a look."""

from __future__ import annotations

import sys
import warnings

from batch_sampler_attn.errors import BatchAttentionWarning

# An epoch of so many batches that hardly any data set has them.
ENDLESS = 1_000_000

_PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """A ``BatchAttentionWarning``, which names the line of the caller's code that led to it, and none of ours."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, BatchAttentionWarning, stacklevel=level)


def nonfinite_loss(loss: float, epoch: int) -> None:
    """A loss is NaN or infinite, or makes the sum of the epoch's losses so."""
    what = "not finite" if loss - loss != 0.0 else "too large to be averaged"
    warn(
        f"a loss of {loss} in epoch {epoch} is {what}: its batch is not repeated and the loss is "
        "kept out of the mean (said once an epoch; EpochSummary.nonfinite_losses counts them)"
    )


def negative_mean(mean_loss: float, epoch: int) -> None:
    """K times the mean of negative losses is below the mean."""
    warn(
        f"the mean loss of epoch {epoch} is {mean_loss}: with negative losses, k times the mean is below the mean, "
        "and most batches repeat. Set floor= to the lowest loss that there can be, or shift the loss above 0"
    )


def mean_below_floor(mean_loss: float, epoch: int, floor: float) -> None:
    """What was given as the lowest loss is not."""
    warn(
        f"the mean loss of epoch {epoch} is {mean_loss}, below floor={floor}: the threshold is below the mean then, "
        "and most batches repeat. The floor has to be the lowest mean loss that there can be"
    )


def epochs_left_early() -> None:
    """A loop that leaves every epoch early never gets a threshold."""
    warn(
        "two epochs in a row were left before their end. An epoch that is left sets no threshold, so nothing will "
        "ever repeat. To train on n batches an epoch, give attend() no more: "
        "schedule.attend(itertools.islice(loader, n)), or BatchAttentionSampler(..., batches_per_epoch=n); for epochs "
        "of n batches of a stream, use window=n"
    )


def changed_in_place() -> None:
    """The loop changes its batches in place, which it had better learn before the first repeat is refused."""
    warn(
        "the loop changed tensors of its batch in place. Once such a batch is to be repeated, that is refused, since a "
        "repeat would train on something else. Change a copy instead: images = images.clone() first, or operations "
        "without a final underscore"
    )


def epoch_without_end(batches: int) -> None:
    """An epoch that never ends gives no threshold."""
    warn(
        f"the first epoch has reached {batches:,} batches without an end. Nothing repeats before an epoch has ended; "
        "for an endless loader or sampler, use BatchAttentionSchedule(window=N): every N batches are an epoch then"
    )


def nothing_repeats(k: float, epochs: int, shares: dict[float, float] | None) -> None:
    """K is so high that nothing ever repeats; ``shares`` of batches would have been repeated by lower ones."""
    lower = ", ".join(f"k={lower} {share:.1%}" for lower, share in (shares or {}).items() if share)
    if shares is None:
        advice = "Use a lower k, or wait"
    elif lower:
        advice = f"Of the batches, a lower k would have repeated: {lower}. Use one of these, or wait"
    else:
        advice = "No lower k would have repeated any. Wait"
    warn(
        f"k={k} has repeated nothing in {epochs} epochs: no batch had a loss above {k} times the mean of the epoch "
        f"before. {advice}: batches differ more as training goes on (said once)"
    )


def budget_held_back(budget: float, epochs: int, batches: int) -> None:
    """A budget has not been enough for a single repeat."""
    warn(
        f"budget={budget} has let nothing repeat in {epochs} epochs, though {batches} batches had a loss above the "
        f"threshold: a batch can repeat once {1 / budget:.0f} batches of its epoch were begun, and these came before. "
        "Shuffle the data, or raise the budget (said once)"
    )


def costly_epoch(epoch: int, overhead: float, k: float) -> None:
    """An epoch took more than twice the updates of plain training."""
    warn(
        f"epoch {epoch} took {overhead:.0%} more updates than plain training. Set budget=0.2, say, for at most 20 %, "
        f"or max_visits, or a higher k than {k} (said once)"
    )


def long_first_epoch(batches: int) -> None:
    """A sampler's first epoch will take long to give a threshold."""
    warn(
        f"an epoch of this sampler has {batches:,} batches, and nothing repeats before the first has ended. For "
        "shorter epochs, use BatchAttentionSampler(..., batches_per_epoch=n), or let every n batches be one to the "
        "schedule: BatchAttentionSchedule(window=n)"
    )


def other_total_after_resume(batches: int, last: int, resumed_at: int) -> None:
    """A resumed epoch should be as long as the one before."""
    warn(
        f"the epoch that was gone on with after {resumed_at} batches had {batches} batches in all, and the one before "
        f"had {last}. After load_state_dict() in mid-epoch, give attend() the remaining batches, just once: "
        "schedule.attend(itertools.islice(loader, schedule.batch_index, None))"
    )
