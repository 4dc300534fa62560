"""The rule of Batch-attention: (state, loss) -> (state, decision), and the threshold that an epoch sets for the next.

Everything here is a value or a function of values. Loaders, frameworks, ranks and recorders are elsewhere.

Source: Hu, Li, Wu, "Batch-attention: a method for reconciling overfitting and underfitting in deep
learning", Science & Technology Review 41(13), 2023, section 3.
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from batch_sampler_attn.errors import NonfiniteLossError, ProtocolError
from batch_sampler_attn.options import Options
from batch_sampler_attn.summary import EpochSummary


class Decision(enum.Enum):
    """What to do after a visit: train on the same batch again, or take the next one."""

    REPEAT = "repeat"
    ADVANCE = "advance"


# Looking up an enum member takes a quarter of the time of a visit.
REPEAT, ADVANCE = Decision.REPEAT, Decision.ADVANCE


class State(NamedTuple):
    """Everything the rule remembers between two visits: twelve numbers, however long the run.

    Attributes:
        epoch: Epochs ended so far.
        threshold: K times the mean loss of the previous epoch; None before there is one, so that no batch repeats.
        strictness: The factor by which a budget raises the threshold; a value below 1 does not lower it.
        loss_sum: Sum of the losses that entered this epoch's mean, in double precision, in order of arrival.
        loss_count: Number of losses in ``loss_sum``.
        batches: Finished batches of this epoch.
        visits: Visits made to the current batch; 0 before its first.
        repeats: REPEAT decisions of this epoch.
        most_visits: Most visits to one finished batch of this epoch; 0 while none was repeated.
        capped_batches: Batches still above the threshold after ``max_visits`` visits.
        nonfinite_losses: NaN and infinite losses of this epoch, and losses that would overflow the sum.
        skipped_batches: Batches of this epoch that were skipped before their first visit.
    """

    epoch: int = 0
    threshold: float | None = None
    strictness: float = 1.0
    loss_sum: float = 0.0
    loss_count: int = 0
    batches: int = 0
    visits: int = 0
    repeats: int = 0
    most_visits: int = 0
    capped_batches: int = 0
    nonfinite_losses: int = 0
    skipped_batches: int = 0

    @property
    def position(self) -> int:
        """Position, from 0, of the current batch in its epoch."""
        return self.batches + self.skipped_batches

    @property
    def progress(self) -> int:
        """Visits and skipped batches of this epoch; 0 only at its start."""
        return self.batches + self.repeats + self.skipped_batches

    def restarted(self) -> State:
        """The state at the start of this epoch, with what earlier epochs set."""
        return State(self.epoch, self.threshold, self.strictness)


# State(...) takes twice as long.
_state_of = partial(tuple.__new__, State)


class Criterion(Protocol):
    """Decides which batches are repeated."""

    def judge(self, state: State, loss: float, batch: int) -> tuple[bool, float]:
        """Whether to repeat the current batch at once, and the strictness from now on.

        Args:
            state: The state before this visit.
            loss: The loss of this visit; NaN for a loss that does not count.
            batch: Number of batches of the epoch finished before this one; with deferred repeats, the batch's position.
        """

    def next_threshold(self, state: State, mean_loss: float | None) -> float | None:
        """The next epoch's threshold, from the mean loss of this one; that mean is None if no loss counted."""


class LossThreshold:
    """The paper's criterion: repeat above K times the mean loss of the previous epoch (section 3, steps 2 to 4)."""

    def __init__(self, k: float, warmup_epochs: int, floor: float = 0.0) -> None:
        self._k = k
        self._warmup_epochs = warmup_epochs
        self._floor = floor

    def judge(self, state: State, loss: float, batch: int) -> tuple[bool, float]:
        """Whether the loss exceeds the threshold, if there is one. NaN never does."""
        del batch
        threshold = state.threshold
        return threshold is not None and loss > threshold, state.strictness

    def next_threshold(self, state: State, mean_loss: float | None) -> float | None:
        """``floor + k * (mean - floor)``."""
        if state.epoch + 1 < self._warmup_epochs or mean_loss is None:
            return None
        threshold = self._floor + self._k * (mean_loss - self._floor)
        # With a threshold that overflows, no batch repeats.
        return threshold if math.isfinite(threshold) else None


class BudgetedThreshold(LossThreshold):
    """The paper's threshold, raised as needed to keep repeats within ``budget`` times the batches begun.

    Every visit above the raised threshold raises it, and every other visit lowers it, by factors that balance at
    ``budget`` repeats per batch. It is never below the paper's. After batches without repeats it rises only once ten
    times ``budget`` repeats were made: the budget goes to the worst batches rather than to the first ones. No repeat
    exceeds the budget for the batches begun so far.
    """

    def __init__(self, k: float, warmup_epochs: int, floor: float, budget: float) -> None:
        super().__init__(k, warmup_epochs, floor)
        self._budget = budget
        self._up, self._down, self._least = strictness_steps(budget)

    def judge(self, state: State, loss: float, batch: int) -> tuple[bool, float]:
        """Whether the loss is above the raised threshold and the budget allows a repeat."""
        del batch
        if state.threshold is None:
            return False, state.strictness
        is_above = loss > self._floor + max(1.0, state.strictness) * (state.threshold - self._floor)
        strictness = max(self._least, state.strictness * (self._up if is_above else self._down))
        return is_above and state.repeats + 1 <= self._budget * (state.batches + 1), strictness


def strictness_steps(budget: float) -> tuple[float, float, float]:
    """The factor on strictness after a visit above the raised threshold, after any other visit, and its minimum."""
    # 0.1 is large enough to adapt within some dozens of batches, and small enough to be stable against single losses.
    return math.exp(0.1), math.exp(-0.1 * budget), math.exp(-budget)


class RandomVisits:
    """The criterion of the equal-compute control: each epoch's ``visit_counts``, in random order."""

    def __init__(self, visit_counts: Sequence[Sequence[int]], seed: int) -> None:
        self._visit_counts = visit_counts
        self._seed = seed
        self._drawn_epoch: int | None = None
        self._drawn: list[int] = []

    def judge(self, state: State, loss: float, batch: int) -> tuple[bool, float]:
        """Whether the batch has visits left, whatever its loss."""
        del loss
        drawn = self.draw(state.epoch)
        if batch >= len(drawn):
            raise ProtocolError(
                f"epoch {state.epoch} has more batches than the {len(drawn)} of visit_counts[{state.epoch}]"
            )
        return state.visits + 1 < drawn[batch], state.strictness

    def next_threshold(self, state: State, mean_loss: float | None) -> None:
        """Return None, since this criterion has no threshold."""
        del mean_loss
        batches = len(self.draw(state.epoch))
        if state.position < batches:
            raise ProtocolError(
                f"epoch {state.epoch} ended after {state.batches} batches, but visit_counts[{state.epoch}] has "
                f"{batches}; use the data and the batch size of the run that the counts come from"
            )

    def draw(self, epoch: int) -> list[int]:
        """The number of visits to each batch of an epoch."""
        if epoch != self._drawn_epoch:
            if epoch >= len(self._visit_counts):
                raise ProtocolError(f"epoch {epoch} began, but visit_counts has {len(self._visit_counts)} epochs")
            self._drawn = [*self._visit_counts[epoch]]
            # A string seeds the same on every platform and Python version.
            random.Random(f"{self._seed}/{epoch}").shuffle(self._drawn)
            self._drawn_epoch = epoch
        return self._drawn


def criterion_of(options: Options) -> LossThreshold:
    """The criterion that a schedule's options describe."""
    if options.budget is None:
        return LossThreshold(options.k, options.warmup_epochs, options.floor)
    return BudgetedThreshold(options.k, options.warmup_epochs, options.floor, options.budget)


def step(options: Options, state: State, loss: float) -> tuple[State, Decision]:
    """The paper's rule for one visit, from the state before it and the loss computed before its update."""
    return visit(options, criterion_of(options), state, loss, state.batches)


def visit(options: Options, criterion: Criterion, state: State, loss: float, batch: int) -> tuple[State, Decision]:
    """``step`` with any criterion; ``batch`` is as ``Criterion.judge`` takes it."""
    epoch, threshold, _, loss_sum, loss_count, batches, visits, repeats, most_visits, capped, nonfinite, skipped = state
    visits += 1
    total = loss_sum + loss
    # The sum before is always finite. A loss that would make it infinite cannot count.
    counts = math.isfinite(total)
    if not counts:
        if options.nonfinite == "raise":
            raise NonfiniteLossError(
                f"the loss is {loss} in epoch {epoch}, batch {state.position}, visit {visits}. Lower the learning "
                "rate, clip gradients or look at this batch; nonfinite='advance' skips such losses"
            )
        loss = math.nan
        nonfinite += 1
    is_wanted, strictness = criterion.judge(state, loss, batch)
    is_repeated = is_wanted and (options.max_visits is None or visits < options.max_visits)
    reading = options.epoch_loss
    if counts and (visits == 1 if reading == "first" else reading == "all" or not is_repeated):
        loss_sum = total
        loss_count += 1
    if is_repeated:
        repeats += 1
        decision = REPEAT
    else:
        batches += 1
        capped += is_wanted
        if visits > 1:
            most_visits = max(most_visits, visits)
        visits = 0
        decision = ADVANCE
    after = (
        epoch, threshold, strictness, loss_sum, loss_count, batches, visits, repeats, most_visits, capped, nonfinite,
        skipped,
    )  # fmt: skip
    return _state_of(after), decision


def skip(state: State) -> State:
    """The state after the current batch is skipped, without a visit or a loss.

    A batch that was visited before ends with its visits so far. Its last REPEAT counted the skipped visit, which is
    subtracted.
    """
    if state.visits == 0:
        return state._replace(skipped_batches=state.skipped_batches + 1)
    # With epochs of fixed length, the previous epoch may have counted this batch's visits.
    is_counted_here = state.repeats > 0
    return state._replace(
        repeats=state.repeats - is_counted_here,
        batches=state.batches + is_counted_here,
        most_visits=max(state.most_visits, state.visits),
        visits=0,
    )


def summarize(state: State) -> EpochSummary:
    """The summary of the epoch in progress so far."""
    mean_loss = state.loss_sum / state.loss_count if state.loss_count else math.inf
    return EpochSummary(
        epoch=state.epoch,
        batches=state.batches,
        visits=state.batches + state.repeats,
        repeats=state.repeats,
        overhead=state.repeats / state.batches if state.batches else 0.0,
        # A sum computed on a device may be infinite.
        mean_loss=mean_loss if math.isfinite(mean_loss) else None,
        threshold=state.threshold,
        capped_batches=state.capped_batches,
        nonfinite_losses=state.nonfinite_losses,
        most_visits=max(state.most_visits, state.visits, min(state.batches, 1)),
    )


def end_epoch(criterion: Criterion, state: State) -> tuple[State, EpochSummary]:
    """The state at the start of the next epoch, with its threshold, and the summary of this epoch."""
    summary = summarize(state)
    threshold = criterion.next_threshold(state, summary.mean_loss)
    return State(state.epoch + 1, threshold, state.strictness), summary
