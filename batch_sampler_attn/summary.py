"""Summaries of one epoch, each printed as one line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batch_sampler_attn.errors import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSummary:
    """Summary of one epoch of Batch-attention, printed as one line.

    Attributes:
        epoch: The epoch's number, from 0.
        batches: Base batches, each visited at least once.
        visits: All updates, one per visit: ``batches + repeats``.
        repeats: Extra updates.
        overhead: Extra updates divided by base updates, ``repeats / batches``.
        mean_loss: Mean of the losses that ``epoch_loss`` selects; None if none of them was finite.
        threshold: The epoch's threshold; None if no batch could repeat.
        capped_batches: Batches that reached ``max_visits`` while still above the threshold.
        nonfinite_losses: NaN and infinite losses, and losses that would overflow the sum.
        most_visits: The most visits to one batch.
        host_reads: How often a device loop waited for the device; None without a device loop.
    """

    epoch: int
    batches: int
    visits: int
    repeats: int
    overhead: float
    mean_loss: float | None
    threshold: float | None
    capped_batches: int
    nonfinite_losses: int
    most_visits: int
    host_reads: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        batches, repeats = plural(self.batches, "batch", "batches"), plural(self.repeats, "repeat", "repeats")
        return f"epoch {self.epoch}: {batches}, {repeats} (overhead {self.overhead:.0%}), {_mean(self.mean_loss)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSummary:
    """Summary of one epoch of attention to samples, printed as one line.

    Attributes:
        epoch: The epoch's number, from 0.
        updates: Batches trained on, including extra ones.
        extra_updates: Batches made of pooled samples.
        pruned: Samples pruned from passes over the data.
        passes: Number of passes over the data that began.
        mean_loss: Weighted mean over the samples of base batches; None if no loss was finite.
        threshold: Loss above which samples were pooled; None if no sample could be pooled.
        nonfinite_losses: NaN and infinite losses, and losses that would overflow the sum.
        is_full: Whether the epoch trained on all data, as at the end of training.
    """

    epoch: int
    updates: int
    extra_updates: int
    pruned: int
    passes: int
    mean_loss: float | None
    threshold: float | None
    nonfinite_losses: int
    is_full: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        nonfinite = f", {plural(self.nonfinite_losses, 'loss', 'losses')} not finite" if self.nonfinite_losses else ""
        return (
            f"epoch {self.epoch}: {plural(self.updates, 'update', 'updates')}, {self.extra_updates} of them extra, "
            f"{plural(self.pruned, 'sample', 'samples')} pruned, {_mean(self.mean_loss)}{nonfinite}"
        )


def _mean(loss: float | None) -> str:
    return "no finite loss" if loss is None else f"mean loss {loss:.3f}"
