"""What one epoch of attention to samples came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, counted, shown
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
        nonfinite_losses: NaN and infinite losses, and those too large to be added up.
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
        nonfinite = f", {counted(self.nonfinite_losses, 'loss', 'losses')} not finite" if self.nonfinite_losses else ""
        return (
            f"epoch {self.epoch}: {counted(self.updates, 'update', 'updates')}, {self.extra_updates} of them extra, "
            f"{counted(self.left_out, 'sample', 'samples')} left out, {mean_loss}{nonfinite}"
        )


def unpack_summary(packed: object) -> SampleSummary | None:
    """The summary that was saved as a dictionary, or that none was.

    Raises:
        StateError: If it is damaged.
    """
    if packed is None:
        return None
    fields = checkpoint.check_keys("the last summary", packed, {field.name for field in fields_of(SampleSummary)})
    return SampleSummary(**{name: _unpack_field(name, value) for name, value in fields.items()})


def _unpack_field(name: str, value: object) -> Any:
    if name == "is_plain":
        if not isinstance(value, bool):
            raise StateError(f"is_plain is {shown(value)} in the last summary; it must be true or false")
        return value
    if name in ("mean_loss", "threshold"):
        return None if value is None else checkpoint.check_number(name, value, "the last summary")
    return checkpoint.check_count(name, value)
