"""Everything the rule remembers between two visits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class State:
    """Twelve numbers, however long the run.

    Attributes:
        epoch: Epochs ended so far.
        threshold: K times the mean loss of the epoch before; None while there is none, and no batch repeats.
        strictness: By how much a budget has raised the threshold, as a factor, where it is above 1; 1 without a budget.
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

    def clear_epoch(self) -> None:
        """Forget the epoch in progress. What was learned before it, and the epoch's number, stay."""
        # Called as a constructor, it sets every number back in place.
        State.__init__(self, epoch=self.epoch, threshold=self.threshold, strictness=self.strictness)

    @property
    def position(self) -> int:
        """Batches of this epoch that were taken and are behind, which is the position of the one in progress."""
        return self.batches + self.skipped_batches

    @property
    def progress(self) -> int:
        """How much has happened in the epoch: 0 if and only if nothing has."""
        return self.batches + self.repeats + self.skipped_batches
