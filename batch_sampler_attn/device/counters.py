"""The rule's state as tensors on the device. A visit changes them in place, without branches or synchronizing."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import State, strictness_steps

# The integers of ``rule.State`` that a visit changes, in the order in which they are stored here.
_COUNTS = ("batches", "visits", "loss_count", "repeats", "most_visits", "capped_batches", "nonfinite_losses")
# How many doubles, and how many numbers in all, are stored before the visits to each batch.
_FLOATS, _NUMBERS = 3, 3 + 2 + len(_COUNTS)


class Counters:
    """``rule.visit`` on tensors: the same comparisons and sums, in double precision and in the same order.

    ``rule.end_epoch`` runs on the host, which knows when an epoch ends. Only what a visit changes is here. ``cursor``
    (int64, 0-d) counts the finished batches of the data's epoch, so it is the position of the next one. With
    ``is_random``, each batch is repeated as often as was drawn for it, whatever its loss.
    """

    def __init__(self, options: Options, device: torch.device, batches: int, *, is_random: bool = False) -> None:
        self._epoch_loss, self._budget, self._floor = options.epoch_loss, options.budget, options.floor
        # One tensor, moved by one copy, and views of it, in which a captured graph finds what is copied in.
        self._numbers = torch.zeros(_NUMBERS + batches, dtype=torch.int64, device=device)
        self._threshold, self._loss_sum, self._strictness = self._numbers[:_FLOATS].view(torch.float64).unbind()
        self.epoch, self._integers = self._numbers[_FLOATS], self._numbers[_FLOATS + 1 : _NUMBERS]
        self.cursor, *self._counts = self._integers.unbind()
        self._visit_counts, self._positions = self._numbers[_NUMBERS:], torch.arange(batches, device=device)
        self._drawn = torch.ones(batches, dtype=torch.int64, device=device) if is_random else None
        self._max_visits = torch.tensor(options.max_visits or sys.maxsize, device=device)
        up, down, self._least_strictness = strictness_steps(options.budget or 0.0)
        self._up, self._down = torch.tensor([up, down], dtype=torch.float64, device=device).unbind()

    def write(self, state: State, cursor: int, visit_counts: list[int], drawn: list[int] | None = None) -> None:
        """Set the tensors in place; ``drawn`` is the number of visits to each batch, if it is random."""
        threshold = float("inf") if state.threshold is None else state.threshold
        floats = torch.tensor([threshold, state.loss_sum, state.strictness], dtype=torch.float64)
        counts = [getattr(state, name) for name in _COUNTS]
        integers = torch.tensor([state.epoch, cursor, *counts, *visit_counts])
        copy_in(self._numbers, torch.cat([floats.view(torch.int64), integers]))
        if drawn is not None and self._drawn is not None:
            copy_in(self._drawn, torch.tensor(drawn))

    def read(self, before: State) -> tuple[State, int, list[int]]:
        """Wait for the device; return the state that follows ``before``, the cursor, and each batch's visits."""
        numbers = copy_out(self._numbers)
        _, loss_sum, strictness = numbers[:_FLOATS].view(torch.float64).tolist()
        _, cursor, *counts = numbers[_FLOATS:].tolist()
        changed = {**dict(zip(_COUNTS, counts, strict=False)), "loss_sum": loss_sum, "strictness": strictness}
        return before._replace(**changed), cursor, counts[len(_COUNTS) :]

    def visit(self, loss: Tensor) -> None:
        """Decide on a visit and count it; ``loss`` is its batch loss, one number of any floating-point type."""
        loss = loss.detach().reshape(()).double()
        batches, visits, loss_count, repeats, most_visits, capped_batches, nonfinite_losses = self._counts
        # All elements are written: a write to one index is not deterministic, or cannot be captured.
        self._visit_counts.add_(self._positions == self.cursor)
        visits = visits + 1
        total = self._loss_sum + loss
        # NaN and infinity do not count, nor does a loss that makes the sum infinite.
        counts = torch.isfinite(total)
        is_wanted = self._wants_repeat(loss, counts)
        repeat = is_wanted & (visits < self._max_visits)
        advance = ~repeat
        enters = counts
        if self._epoch_loss != "all":
            enters = counts & (advance if self._epoch_loss == "last" else visits == 1)
        self._loss_sum.copy_(torch.where(enters, total, self._loss_sum))
        numbers = (
            self.cursor + advance,
            batches + advance,
            visits * repeat,
            loss_count + enters,
            repeats + repeat,
            torch.where(advance & (visits > 1), torch.maximum(most_visits, visits), most_visits),
            capped_batches + (is_wanted & advance),
            nonfinite_losses + ~counts,
        )
        torch.stack(numbers, out=self._integers)

    def _wants_repeat(self, loss: Tensor, counts: Tensor) -> Tensor:
        """The decision of ``rule``'s criteria; with a budget, also updates the strictness."""
        batches, visits, _, repeats, *_ = self._counts
        if self._drawn is not None:
            return visits + 1 < self._drawn.index_select(0, self.cursor.reshape(1))[0]
        # Without a threshold it is infinite here, and no loss is above it.
        if self._budget is None:
            return counts & (loss > self._threshold)
        raised = self._floor + self._strictness.clamp(min=1.0) * (self._threshold - self._floor)
        is_above = counts & (loss > raised)
        moved = (self._strictness * torch.where(is_above, self._up, self._down)).clamp(min=self._least_strictness)
        self._strictness.copy_(torch.where(torch.isfinite(self._threshold), moved, self._strictness))
        return is_above & (repeats + 1 <= self._budget * (batches + 1).double())


def copy_in(destination: Tensor, source: Tensor) -> None:
    """Copy a host tensor to the device in the order of the current stream, without waiting."""
    destination.copy_(source.pin_memory() if destination.is_cuda else source, non_blocking=True)


def copy_out(source: Tensor) -> Tensor:
    """Return a device tensor on the host, after waiting until the device has computed it."""
    if not source.is_cuda:
        return source
    copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    copy.copy_(source, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(source.device))
    arrived.synchronize()
    return copy
