"""The rule of Batch-attention as a step from (state, loss) to (state, decision).

Nothing here knows of loaders, frameworks or recorders; whatever drives training calls this.

Source: Hu, Li, Wu, "Batch-attention: a method for reconciling overfitting and underfitting in deep
learning", Science & Technology Review 41(13), 2023, section 3.
"""

from __future__ import annotations

import copy
import enum
from math import inf, isfinite, nan

from batch_sampler_attn.criteria import Criterion, threshold_of
from batch_sampler_attn.errors import NonfiniteLossError
from batch_sampler_attn.options import Options
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary

# What ``step`` takes, and what epochs come to, are looked for here.
__all__ = ["Decision", "EpochSummary", "Options", "State", "end_epoch", "skip", "step", "summarize", "visit"]


class Decision(enum.Enum):
    """What to do after a visit: train on the same batch again, or go on to the next."""

    REPEAT = "repeat"
    ADVANCE = "advance"


# Looking a member up in its enum takes as long as a quarter of a visit.
REPEAT, ADVANCE = Decision.REPEAT, Decision.ADVANCE


def step(options: Options, state: State, loss: float) -> tuple[State, Decision]:
    """The paper's rule as a pure function: one visit's loss in, the next state and the decision out.

    Args:
        options: The options; never changed.
        state: The state before the visit; never changed.
        loss: The batch loss of this visit, computed before this visit's update.

    Raises:
        NonfiniteLossError: If the loss is NaN or infinite and ``nonfinite="raise"``.
    """
    after = copy.copy(state)
    return after, visit(options, threshold_of(options), after, loss, state.batches)


def visit(options: Options, criterion: Criterion, state: State, loss: float, batch: int) -> Decision:
    """``step`` in place, with any criterion, for callers that own their state.

    Args:
        options: The options.
        criterion: Says whether the batch wants another visit.
        state: The state before the visit, and after it.
        loss: The batch loss of this visit.
        batch: As a ``Criterion`` takes it.

    Raises:
        NonfiniteLossError: If the loss is NaN or infinite and ``nonfinite="raise"``.
        ProtocolError: As the criterion raises it. Nothing has changed if anything is raised.
    """
    visits = state.visits + 1
    total = state.loss_sum + loss
    # The sum is finite before, always. A loss that would make it infinite cannot count.
    counts = isfinite(total)
    if not counts and options.nonfinite == "raise":
        raise NonfiniteLossError(
            f"the loss is {loss} in epoch {state.epoch}, batch {state.position}, visit {visits}. Lower the "
            "learning rate, clip gradients or look at this batch; nonfinite='advance' skips such losses"
        )
    is_wanted = criterion.wants_repeat(state, loss if counts else nan, batch)
    repeats = is_wanted and (options.max_visits is None or visits < options.max_visits)
    if counts and _enters_mean(options.epoch_loss, visits, repeats=repeats):
        state.loss_sum = total
        state.loss_count += 1
    state.nonfinite_losses += not counts
    if repeats:
        state.visits = visits
        state.repeats += 1
        return REPEAT
    state.visits = 0
    state.batches += 1
    state.capped_batches += is_wanted
    if visits > 1:
        state.most_visits = max(state.most_visits, visits)
    return ADVANCE


def _enters_mean(epoch_loss: str, visits: int, *, repeats: bool) -> bool:
    if epoch_loss == "first":
        return visits == 1
    return epoch_loss == "all" or not repeats


def skip(state: State) -> None:
    """Leave the batch in progress, in place: no visit, no loss.

    One that was visited is done with the visits it had: what its REPEAT decisions counted as repeats to come is one
    less, and its visits stay as many as were made.
    """
    if state.visits == 0:
        state.skipped_batches += 1
        return
    # Where a window cut a deferred repeat off from its first visit, that window has counted the visits.
    if state.repeats:
        state.repeats -= 1
        state.batches += 1
    state.most_visits = max(state.most_visits, state.visits)
    state.visits = 0


def summarize(state: State) -> EpochSummary:
    """The summary of the epoch in progress, up to now."""
    return EpochSummary(
        epoch=state.epoch,
        batches=state.batches,
        visits=state.batches + state.repeats,
        repeats=state.repeats,
        overhead=state.repeats / state.batches if state.batches else 0.0,
        mean_loss=_mean_loss(state),
        threshold=state.threshold,
        capped_batches=state.capped_batches,
        nonfinite_losses=state.nonfinite_losses,
        most_visits=max(state.most_visits, state.visits, min(state.batches, 1)),
    )


def end_epoch(criterion: Criterion, state: State) -> EpochSummary:
    """Close the epoch in place: its mean sets the threshold of the next one.

    Raises:
        ProtocolError: As the criterion raises it. Nothing has changed then.
    """
    summary = summarize(state)
    state.threshold = criterion.next_threshold(state, summary.mean_loss)
    state.epoch += 1
    state.clear_epoch()
    return summary


def _mean_loss(state: State) -> float | None:
    mean_loss = state.loss_sum / state.loss_count if state.loss_count else inf
    # A sum that was made elsewhere, on a device, may have become infinite.
    return mean_loss if isfinite(mean_loss) else None
