"""What one epoch came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batch_sampler_attn.errors import counted
from batch_sampler_attn.tables import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSummary:
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
        nonfinite_losses: NaN and infinite losses, and those too large to be added up.
        most_visits: The most visits to one batch.
        host_reads: How often a device loop waited for the device; None where the host decides.
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
        """The attributes by name."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return html_table([self.as_dict()])

    def __str__(self) -> str:
        mean_loss = "no finite loss" if self.mean_loss is None else f"mean loss {self.mean_loss:.3f}"
        batches, repeats = counted(self.batches, "batch", "batches"), counted(self.repeats, "repeat", "repeats")
        return f"epoch {self.epoch}: {batches}, {repeats} (overhead {self.overhead:.0%}), {mean_loss}"
