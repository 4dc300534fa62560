"""The rule's state as tensors, and a visit as arithmetic on them: no branch, no word to the host."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from batch_sampler_attn.device.transfer import copy_in, copy_out
from batch_sampler_attn.errors import OptionError
from batch_sampler_attn.rule import Options, State

# In the order in which they lie in the packed tensor, behind the cursor.
COUNTS = ("batches", "visits", "loss_count", "repeats", "most_visits", "capped_batches", "nonfinite_losses")


class DeviceCounters:
    """What ``rule.State`` holds, as 0-d tensors on a device, plus the cursor.

    The state at an epoch's (or window's) end is worked out by ``rule.end_epoch`` on the host, where it is known
    anyway; only what changes with every visit happens here.

    Args:
        options: The rule's options.
        device: Where the tensors live.

    Attributes:
        cursor: int64, 0-d: base batches of the data's epoch that are done with, which is the position of the next.

    Raises:
        OptionError: If ``nonfinite="raise"``: nothing is raised on a device.
    """

    def __init__(self, options: Options, device: torch.device) -> None:
        if options.nonfinite != "advance":
            raise OptionError(
                f"nonfinite is {options.nonfinite!r}; a device cannot raise, so it must be 'advance' here. "
                "EpochSummary.nonfinite_losses tells how many there were"
            )
        self._options = options
        self._state = State()
        self._floats = torch.zeros(2, dtype=torch.float64, device=device)
        self._integers = torch.zeros(1 + len(COUNTS), dtype=torch.int64, device=device)
        # Views: what is added in place to one of them is added to the packed tensor that is read as a whole.
        self._loss_sum, self._threshold = self._floats.unbind()
        self.cursor, *counts = self._integers.unbind()
        self._count = dict(zip(COUNTS, counts, strict=True))
        max_visits = sys.maxsize if options.max_visits is None else options.max_visits
        self._max_visits = torch.tensor(max_visits, device=device)
        self._nothing = torch.zeros((), dtype=torch.float64, device=device)
        self._kernel = _find_kernel(device, options.epoch_loss)
        self.write(self._state, cursor=0)

    def write(self, state: State, *, cursor: int) -> None:
        """Set the tensors, in place."""
        self._state = state.copy()
        threshold = float("inf") if state.threshold is None else state.threshold
        copy_in(self._floats, torch.tensor([state.loss_sum, threshold], dtype=torch.float64))
        counts = [getattr(state, name) for name in COUNTS]
        copy_in(self._integers, torch.tensor([cursor, *counts], dtype=torch.int64))

    def read(self) -> tuple[State, int]:
        """The state and the cursor. Waits for the device."""
        # One copy for all: the bits of a double travel as an integer of the same size.
        numbers = copy_out(torch.cat([self._integers, self._loss_sum.view(torch.int64).reshape(1)]))
        cursor, *counts, _ = numbers.tolist()
        state = self._state.copy()
        state.loss_sum = numbers[-1:].view(torch.float64).item()
        for name, count in zip(COUNTS, counts, strict=True):
            setattr(state, name, count)
        return state, cursor

    def visit(self, loss: Tensor) -> None:
        """``rule.visit``, for a loss on the device: the same comparisons and sums, in double precision."""
        loss = loss.detach().reshape(())
        if self._kernel is not None:
            self._kernel(loss, self._floats, self._integers, self._max_visits, self._options.epoch_loss)
            return
        loss = loss.to(torch.float64)
        finite = torch.isfinite(loss)
        visits = self._count["visits"] + 1
        above = finite & (loss > self._threshold)
        repeat = above & (visits < self._max_visits)
        advance = ~repeat
        if self._options.epoch_loss == "first":
            enters = finite & (visits == 1)
        else:
            enters = finite & advance if self._options.epoch_loss == "last" else finite
        self._loss_sum.add_(torch.where(enters, loss, self._nothing))
        self._count["loss_count"].add_(enters)
        self._count["repeats"].add_(repeat)
        self._count["capped_batches"].add_(above & advance)
        self._count["nonfinite_losses"].add_(~finite)
        finished_after = visits * (advance & (visits > 1))
        torch.maximum(self._count["most_visits"], finished_after, out=self._count["most_visits"])
        torch.mul(visits, repeat, out=self._count["visits"])
        self._count["batches"].add_(advance)
        self.cursor.add_(advance)


def _find_kernel(device: torch.device, epoch_loss: str) -> Callable[..., None] | None:
    """The kernel, if it runs here: Triton comes with torch, the C compiler that it calls does not."""
    if device.type != "cuda":
        return None
    try:
        from batch_sampler_attn.device import kernel

        with torch.cuda.device(device):
            floats = torch.zeros(2, dtype=torch.float64, device=device)
            integers = torch.zeros(1 + len(COUNTS), dtype=torch.int64, device=device)
            kernel.visit(torch.zeros((), device=device), floats, integers, torch.ones_like(integers[0]), epoch_loss)
    except Exception:  # whatever keeps it from running, the tensor arithmetic does the same
        return None
    return kernel.visit
