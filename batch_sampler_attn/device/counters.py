"""The rule's state as tensors, which a visit changes in place: no branch, no word to the host."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from batch_sampler_attn.criteria import strictness_steps
from batch_sampler_attn.device.arithmetic import COUNTS, FLOATS, INTEGERS, after_visit, is_above
from batch_sampler_attn.device.transfer import copy_in, copy_out
from batch_sampler_attn.options import Options
from batch_sampler_attn.state import State


class DeviceCounters:
    """What ``rule.State`` holds, as 0-d tensors on a device, plus the cursor.

    The state at an epoch's (or window's) end is worked out by ``rule.end_epoch`` on the host, where it is known
    anyway; only what changes with every visit happens here.

    Args:
        options: The rule's options.
        device: Where the tensors live.
        batches: Base batches in an epoch.
        is_dealt: Whether each batch repeats as often as was dealt to it, whatever its loss.
        count_visits: Whether to keep each batch's number of visits.

    Attributes:
        cursor: int64, 0-d: base batches of the data's epoch that are done with, which is the position of the next.
        floats: float64 (3,), as ``arithmetic.FLOATS`` names them.
        integers: int64 (8,), as ``arithmetic.INTEGERS`` names them.
        max_visits: int64, 0-d.
        kernel: Makes a visit at once, where there is a GPU with Triton; None elsewhere.
    """

    def __init__(
        self,
        options: Options,
        device: torch.device,
        batches: int,
        *,
        is_dealt: bool = False,
        count_visits: bool = False,
    ) -> None:
        self._epoch_loss = options.epoch_loss
        self._state = State()
        self.floats = torch.zeros(len(FLOATS), dtype=torch.float64, device=device)
        self.integers = torch.zeros(len(INTEGERS), dtype=torch.int64, device=device)
        # Views: what is written to the packed tensors is seen through them.
        self._loss_sum, self._threshold, self._strictness = self.floats.unbind()
        self.cursor, self._batches, self._visits, _, self._repeats, *_ = self.integers.unbind()
        self.max_visits = torch.tensor(sys.maxsize if options.max_visits is None else options.max_visits, device=device)
        self._nothing = torch.zeros((), dtype=torch.float64, device=device)
        self._dealt = torch.ones(batches, dtype=torch.int64, device=device) if is_dealt else None
        self._budget, self._floor = options.budget, options.floor
        up, down, self._least_strictness = strictness_steps(options.budget or 0.0)
        self._up, self._down = torch.tensor([up, down], dtype=torch.float64, device=device).unbind()
        # It knows thresholds only, and no budget.
        knows_how = not is_dealt and options.budget is None
        self.kernel = _find_kernel(device, self._epoch_loss) if knows_how else None
        self._positions = torch.arange(batches if count_visits else 0, device=device)
        self._tally = torch.zeros_like(self._positions) if count_visits else None
        self.write(self._state, cursor=0)

    def begin_epoch(self, state: State, dealt: list[int] | None) -> None:
        """Set the tensors for the begin of an epoch of the data, with the visits to each batch if they are dealt."""
        if self._dealt is not None:
            copy_in(self._dealt, torch.tensor(dealt, dtype=torch.int64))
        self.write(state, cursor=0)

    def write(self, state: State, *, cursor: int) -> None:
        """Set the tensors, in place."""
        self._state = dataclasses.replace(state)
        threshold = float("inf") if state.threshold is None else state.threshold
        copy_in(self.floats, torch.tensor([state.loss_sum, threshold, state.strictness], dtype=torch.float64))
        counts = [getattr(state, name) for name in COUNTS]
        copy_in(self.integers, torch.tensor([cursor, *counts], dtype=torch.int64))

    def read(self) -> tuple[State, int]:
        """The state and the cursor. Waits for the device."""
        # One copy for all: the bits of a double travel as an integer of the same size.
        numbers = copy_out(torch.cat([self.integers, self.floats.view(torch.int64)]))
        cursor, *counts = numbers[: len(INTEGERS)].tolist()
        state = dataclasses.replace(self._state)
        state.loss_sum, _, state.strictness = numbers[len(INTEGERS) :].view(torch.float64).tolist()
        for name, count in zip(COUNTS, counts, strict=True):
            setattr(state, name, count)
        return state, cursor

    def read_tally(self) -> list[int] | None:
        """The visits to each batch so far, in order of position; None if none are kept. Waits for the device."""
        return None if self._tally is None else copy_out(self._tally).tolist()

    def write_tally(self, visits: list[int] | None) -> None:
        """Set the visits to each batch, in place, if they are kept and known."""
        if self._tally is not None and visits is not None:
            copy_in(self._tally, torch.tensor(visits, dtype=torch.int64))

    def visit(self, loss: Tensor) -> None:
        """``rule.visit``, for a loss on the device: the same comparisons and sums, in double precision."""
        loss = loss.detach().reshape(())
        if self._tally is not None:
            # Written everywhere or nowhere: an indexed write has no deterministic form that can be captured.
            self._tally.copy_(torch.where(self._positions == self.cursor, self._visits + 1, self._tally))
        if self.kernel is not None:
            self.kernel(loss, self.floats, self.integers, self.max_visits, self._epoch_loss)
            return
        loss = loss.to(torch.float64)
        if self._dealt is not None:
            wants_repeat = self._visits + 1 < self._dealt.index_select(0, self.cursor.reshape(1))[0]
        elif self._budget is not None:
            wants_repeat = self._fits_budget(loss, self._budget)
        else:
            wants_repeat = is_above(loss, self._threshold)
        enters, *numbers = after_visit(loss, wants_repeat, self.max_visits, self._epoch_loss, *self.integers.unbind())
        self._loss_sum.add_(torch.where(enters, loss, self._nothing))
        torch.stack(numbers, out=self.integers)

    def _fits_budget(self, loss: Tensor, budget: float) -> Tensor:
        """``criteria.BudgetedThreshold.wants_repeat``, and what it makes of strictness."""
        raised = self._floor + self._strictness.clamp(min=1.0) * (self._threshold - self._floor)
        above = is_above(loss, raised)
        moved = (self._strictness * torch.where(above, self._up, self._down)).clamp(min=self._least_strictness)
        # Without a threshold, which is infinite here, nothing is learned.
        self._strictness.copy_(torch.where(torch.isfinite(self._threshold), moved, self._strictness))
        fits: Tensor = self._repeats + 1 <= budget * (self._batches + 1).to(torch.float64)
        wanted: Tensor = above & fits
        return wanted


def _find_kernel(device: torch.device, epoch_loss: str) -> Callable[..., None] | None:
    """The kernel, if it runs here: Triton comes with torch, the C compiler that it calls does not."""
    if device.type != "cuda":
        return None
    try:
        from batch_sampler_attn.device import kernel

        with torch.cuda.device(device):
            floats = torch.zeros(len(FLOATS), dtype=torch.float64, device=device)
            integers = torch.zeros(len(INTEGERS), dtype=torch.int64, device=device)
            kernel.visit(torch.zeros((), device=device), floats, integers, torch.ones_like(integers[0]), epoch_loss)
    except Exception:  # whatever keeps it from running, the tensor arithmetic does the same
        return None
    return kernel.visit
