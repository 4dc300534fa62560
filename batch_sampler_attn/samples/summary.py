"""What one epoch of attention to samples came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from batch_sampler_attn.tables import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSummary:
    """What one epoch of attention to samples came to; printed, it is one line.

    Attributes:
        epoch: The epoch's number, from 0.
        updates: Batches trained on, extra ones included.
        extra_updates: Batches made of pooled samples.
        left_out: Samples that passes over the data left out.
        passes: Passes over the data that were begun.
        mean_loss: Mean over the samples of base batches, by weight; None if no loss was finite.
        threshold: Loss above which samples were pooled; None if none could be.
        nonfinite_losses: NaN and infinite losses.
        is_plain: Whether all data was seen plainly, as in the last share of training.
    """

    epoch: int
    updates: int
    extra_updates: int
    left_out: int
    passes: int
    mean_loss: float | None
    threshold: float | None
    nonfinite_losses: int
    is_plain: bool

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return html_table([self.as_dict()])

    def __str__(self) -> str:
        mean_loss = "no finite loss" if self.mean_loss is None else f"mean loss {self.mean_loss:.3f}"
        return (
            f"epoch {self.epoch}: {self.updates} updates, {self.extra_updates} of them extra, "
            f"{self.left_out} samples left out, {mean_loss}"
        )
