"""The rule of Batch-attention as a step from (options, state, loss) to (state, decision).

Nothing here knows of loaders, frameworks or recorders; whatever drives training calls this.

Source: Hu, Li, Wu, "Batch-attention: a method for reconciling overfitting and underfitting in deep
learning", Science & Technology Review 41(13), 2023, section 3.
"""

from __future__ import annotations

import enum
import math

from batch_sampler_attn.errors import NonfiniteLossError, OptionError
from batch_sampler_attn.fields import Fields

EPOCH_LOSSES = ("first", "last", "all")
NONFINITE_POLICIES = ("advance", "raise")

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
        """Raise ``OptionError`` unless every option has an allowed value."""
        if not _is_real(self.k) or not math.isfinite(self.k) or self.k <= 0:
            raise OptionError(
                f"k is {self.k!r} ({type(self.k).__name__}); it must be a finite number above 0. The paper advises 1.1 "
                "to 1.5; larger values repeat less"
            )
        _check_count("warmup_epochs", self.warmup_epochs, "epoch 1 has no epoch before it to take a mean from")
        if self.max_visits is not None:
            _check_count("max_visits", self.max_visits, "1 never repeats; None, as in the paper, sets no limit")
        if self.window is not None:
            _check_count("window", self.window, "it counts batches; None ends epochs with the loader")
        _check_word("epoch_loss", self.epoch_loss, EPOCH_LOSSES)
        _check_word("nonfinite", self.nonfinite, NONFINITE_POLICIES)


class State(Fields):
    """Everything the rule remembers: ten numbers, however long the run.

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
        nonfinite_losses: NaN and infinite losses of this epoch.
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

    def copy(self) -> State:
        """An independent state with the same numbers."""
        twin = State.__new__(State)
        for name in self.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin


class EpochSummary(Fields):
    """What one epoch came to; printed, it is one line.

    Attributes:
        epoch: The epoch's number, from 0.
        batches: Base batches, each visited at least once.
        visits: Updates in all, one a visit: ``batches + repeats``.
        repeats: Extra updates.
        overhead: Extra updates over base updates, ``repeats / batches``.
        mean_loss: Mean of the losses that ``epoch_loss`` lets in; None if none of them was finite.
        threshold: The threshold that was in force; None if no batch could repeat.
        capped_batches: Batches that hit ``max_visits`` while still above the threshold.
        nonfinite_losses: NaN and infinite losses.
        most_visits: The most visits to one batch.
        host_reads: How often a device loop waited for the device; None where the host decides.
    """

    __slots__ = (
        "epoch",
        "batches",
        "visits",
        "repeats",
        "overhead",
        "mean_loss",
        "threshold",
        "capped_batches",
        "nonfinite_losses",
        "most_visits",
        "host_reads",
    )

    def __init__(
        self,
        *,
        epoch: int,
        batches: int,
        visits: int,
        repeats: int,
        overhead: float,
        mean_loss: float | None,
        threshold: float | None,
        capped_batches: int,
        nonfinite_losses: int,
        most_visits: int,
        host_reads: int | None = None,
    ) -> None:
        self.epoch = epoch
        self.batches = batches
        self.visits = visits
        self.repeats = repeats
        self.overhead = overhead
        self.mean_loss = mean_loss
        self.threshold = threshold
        self.capped_batches = capped_batches
        self.nonfinite_losses = nonfinite_losses
        self.most_visits = most_visits
        self.host_reads = host_reads

    def __str__(self) -> str:
        mean_loss = "no finite loss" if self.mean_loss is None else f"mean loss {self.mean_loss:.3f}"
        return (
            f"epoch {self.epoch}: {self.batches} batches, {self.repeats} repeats "
            f"(overhead {self.overhead:.0%}), {mean_loss}"
        )


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
    # NaN for NaN and infinities, 0 for all others; math.isfinite costs three times as much.
    if loss - loss != 0.0:
        if options.nonfinite == "raise":
            raise NonfiniteLossError(
                f"the loss is {loss} in epoch {state.epoch}, batch {state.batches}, visit {visits}. Lower the "
                "learning rate, clip gradients or look at this batch; nonfinite='advance' skips such losses"
            )
        state.nonfinite_losses += 1
    else:
        threshold = state.threshold
        if threshold is not None and loss > threshold:
            if options.max_visits is None or visits < options.max_visits:
                if options.epoch_loss == "all" or (visits == 1 and options.epoch_loss == "first"):
                    state.loss_sum += loss
                    state.loss_count += 1
                state.visits = visits
                state.repeats += 1
                return _REPEAT
            state.capped_batches += 1
        if visits == 1 or options.epoch_loss != "first":
            state.loss_sum += loss
            state.loss_count += 1
    if visits > 1:
        state.visits = 0
        if visits > state.most_visits:
            state.most_visits = visits
    state.batches += 1
    return _ADVANCE


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
    return state.loss_sum / state.loss_count if state.loss_count else None


def _next_threshold(options: Options, epochs_done: int, mean_loss: float | None) -> float | None:
    """Paper, section 3, step 3: K times (E / N). Another criterion would stand here."""
    if epochs_done < options.warmup_epochs or mean_loss is None:
        return None
    return options.k * mean_loss


def _is_real(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_count(name: str, value: object, hint: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is {value!r} ({type(value).__name__}); it must be an int of at least 1: {hint}")


def _check_word(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
