"""The rule of Batch-attention as a step from (options, state, loss) to (state, decision).

Nothing here knows of loaders, frameworks or recorders; whatever drives training calls this.

Source: Hu, Li, Wu, "Batch-attention: a method for reconciling overfitting and underfitting in deep
learning", Science & Technology Review 41(13), 2023, section 3.
"""

from __future__ import annotations

import enum
import math
from typing import Literal, get_args

from batch_sampler_attn import option_values
from batch_sampler_attn.errors import NonfiniteLossError
from batch_sampler_attn.fields import Fields
from batch_sampler_attn.summary import EpochSummary as EpochSummary

EpochLoss = Literal["first", "last", "all"]
NonfinitePolicy = Literal["advance", "raise"]

EPOCH_LOSSES = get_args(EpochLoss)
NONFINITE_POLICIES = get_args(NonfinitePolicy)

# No batch with clean labels was seen to need as many, at any learning rate, and of those with wrong labels
# few did (benchmarks/README.md, "How many visits a batch takes").
DEFAULT_MAX_VISITS = 100


class Decision(enum.Enum):
    """What to do after a visit: train on the same batch again, or go on to the next."""

    REPEAT = "repeat"
    ADVANCE = "advance"


_REPEAT = Decision.REPEAT
_ADVANCE = Decision.ADVANCE


class Options(Fields):
    """The options of the rule. ``BatchAttentionSchedule`` documents each."""

    __slots__ = (
        "k",
        "warmup_epochs",
        "epoch_loss",
        "max_visits",
        "nonfinite",
        "window",
    )

    def __init__(
        self,
        k: float = 1.2,
        *,
        warmup_epochs: int = 1,
        epoch_loss: str = "first",
        max_visits: int | None = DEFAULT_MAX_VISITS,
        nonfinite: str = "advance",
        window: int | None = None,
    ) -> None:
        self.k = k
        self.warmup_epochs = warmup_epochs
        self.epoch_loss = epoch_loss
        self.max_visits = max_visits
        self.nonfinite = nonfinite
        self.window = window

    def check(self) -> None:
        """Make every option a plain number or string; raise ``OptionError`` unless each has an allowed value."""
        self.k = option_values.positive_number("k", self.k, "The paper advises 1.1 to 1.5; larger values repeat less")
        self.warmup_epochs = option_values.count(
            "warmup_epochs", self.warmup_epochs, "epoch 1 has no epoch before it to take a mean from"
        )
        if self.max_visits is not None:
            hint = "1 never repeats; None, as in the paper, sets no limit"
            self.max_visits = option_values.count("max_visits", self.max_visits, hint)
        if self.window is not None:
            self.window = option_values.count(
                "window", self.window, "it counts batches; None ends epochs with the loader"
            )
        self.epoch_loss = option_values.word("epoch_loss", self.epoch_loss, EPOCH_LOSSES)
        self.nonfinite = option_values.word("nonfinite", self.nonfinite, NONFINITE_POLICIES)


class State(Fields):
    """Everything the rule remembers: eleven numbers, however long the run.

    Attributes:
        epoch: Epochs ended so far.
        threshold: K times the mean loss of the epoch before; None while there is none, and no batch repeats.
        loss_sum: Sum of the losses that entered this epoch's mean, in double precision, in order of arrival.
        loss_count: How many losses that is.
        batches: Batches of this epoch that are done with.
        visits: Visits made to the current batch; 0 before its first.
        repeats: REPEAT decisions of this epoch.
        most_visits: Most visits to one finished batch of this epoch; 0 while none was repeated.
        capped_batches: Batches left above the threshold because they had taken ``max_visits``.
        nonfinite_losses: NaN and infinite losses of this epoch, and those too large to be added up.
        skipped_batches: Batches of this epoch that were left out before a first visit.
    """

    __slots__ = (
        "epoch",
        "threshold",
        "loss_sum",
        "loss_count",
        "batches",
        "visits",
        "repeats",
        "most_visits",
        "capped_batches",
        "nonfinite_losses",
        "skipped_batches",
    )

    def __init__(self) -> None:
        self.epoch: int = 0
        self.threshold: float | None = None
        self.clear_epoch()

    def clear_epoch(self) -> None:
        """Forget the epoch in progress. The threshold in force and the epoch's number stay."""
        self.loss_sum: float = 0.0
        self.loss_count: int = 0
        self.batches: int = 0
        self.visits: int = 0
        self.repeats: int = 0
        self.most_visits: int = 0
        self.capped_batches: int = 0
        self.nonfinite_losses: int = 0
        self.skipped_batches: int = 0

    @property
    def position(self) -> int:
        """Batches of this epoch that were taken and are behind, which is the position of the one in progress."""
        return self.batches + self.skipped_batches

    def copy(self) -> State:
        """An independent state with the same numbers."""
        twin = State.__new__(State)
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin


def step(options: Options, state: State, loss: float) -> tuple[State, Decision]:
    """The rule as a pure function: one visit's loss in, the next state and the decision out.

    Args:
        options: The options; never changed.
        state: The state before the visit; never changed.
        loss: The batch loss of this visit, computed before this visit's update.

    Raises:
        NonfiniteLossError: If the loss is NaN or infinite and ``nonfinite="raise"``.
    """
    after = state.copy()
    return after, visit(options, after, loss)


def visit(options: Options, state: State, loss: float) -> Decision:
    """``step`` in place, for callers that own their state.

    Paper, section 3, steps 2 to 4: the batch is repeated while ``loss > threshold``.
    """
    visits = state.visits + 1
    total = state.loss_sum + loss
    # NaN for NaN, infinities and a sum too large for a double, 0 for all others; math.isfinite costs three times as
    # much. The sum is finite before, always.
    if total - total != 0.0:
        if options.nonfinite == "raise":
            raise NonfiniteLossError(
                f"the loss is {loss} in epoch {state.epoch}, batch {state.position}, visit {visits}. Lower the "
                "learning rate, clip gradients or look at this batch; nonfinite='advance' skips such losses"
            )
        state.nonfinite_losses += 1
    else:
        threshold = state.threshold
        if threshold is not None and loss > threshold:
            if options.max_visits is None or visits < options.max_visits:
                if options.epoch_loss == "all" or (visits == 1 and options.epoch_loss == "first"):
                    state.loss_sum = total
                    state.loss_count += 1
                state.visits = visits
                state.repeats += 1
                return _REPEAT
            state.capped_batches += 1
        if visits == 1 or options.epoch_loss != "first":
            state.loss_sum = total
            state.loss_count += 1
    if visits > 1:
        state.visits = 0
        if visits > state.most_visits:
            state.most_visits = visits
    state.batches += 1
    return _ADVANCE


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


def end_epoch(options: Options, state: State) -> EpochSummary:
    """Close the epoch in place: its mean sets the threshold of the next one."""
    summary = summarize(state)
    state.epoch += 1
    state.threshold = _next_threshold(options, state.epoch, summary.mean_loss)
    state.clear_epoch()
    return summary


def _mean_loss(state: State) -> float | None:
    mean_loss = state.loss_sum / state.loss_count if state.loss_count else math.inf
    # A sum that was made elsewhere, on a device, may have become infinite.
    return mean_loss if math.isfinite(mean_loss) else None


def _next_threshold(options: Options, epochs_done: int, mean_loss: float | None) -> float | None:
    """Paper, section 3, step 3: K times (E / N). Another criterion would stand here."""
    if epochs_done < options.warmup_epochs or mean_loss is None:
        return None
    threshold = options.k * mean_loss
    # Nothing is above a product too large for a double.
    return threshold if math.isfinite(threshold) else None
