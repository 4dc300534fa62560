"""The rule's state as tensors, and a visit as arithmetic on them: no branch, no word to the host."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.device.transfer import copy_in, copy_out
from batch_sampler_attn.errors import OptionError, ProtocolError
from batch_sampler_attn.rule import Options, State
from batch_sampler_attn.schedule import BatchAttentionSchedule

# In the order in which they lie in the packed tensor, behind the cursor.
COUNTS = ("batches", "visits", "loss_count", "repeats", "most_visits", "capped_batches", "nonfinite_losses")


class DeviceCounters:
    """What ``rule.State`` holds, as 0-d tensors on a device, plus the cursor.

    The state at an epoch's (or window's) end is worked out by ``rule.end_epoch`` on the host, where it is known
    anyway; only what changes with every visit happens here.

    Args:
        options: The rule's options.
        device: Where the tensors live.
        tallied_batches: Base batches in an epoch, to keep each one's number of visits; 0 keeps none.

    Attributes:
        cursor: int64, 0-d: base batches of the data's epoch that are done with, which is the position of the next.

    Raises:
        OptionError: If ``nonfinite="raise"``: nothing is raised on a device.
    """

    def __init__(self, options: Options, device: torch.device, *, tallied_batches: int = 0) -> None:
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
        self._positions = torch.arange(tallied_batches, device=device)
        self._tally = torch.zeros_like(self._positions) if tallied_batches else None
        self.write(self._state, cursor=0)

    def begin_epoch(self, state: State) -> None:
        """Set the tensors for the begin of an epoch of the data."""
        self.write(state, cursor=0)

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

    def read_tally(self) -> list[int] | None:
        """The visits to each batch so far, in order of position; None if none are kept. Waits for the device."""
        return None if self._tally is None else copy_out(self._tally).tolist()

    def write_tally(self, visits: list[int]) -> None:
        """Set the visits to each batch, in place."""
        assert self._tally is not None
        copy_in(self._tally, torch.tensor(visits, dtype=torch.int64))

    def visit(self, loss: Tensor) -> None:
        """``rule.visit``, for a loss on the device: the same comparisons and sums, in double precision."""
        loss = loss.detach().reshape(())
        if self._tally is not None:
            # Written everywhere or nowhere: an indexed write has no deterministic form that can be captured.
            self._tally.copy_(torch.where(self._positions == self.cursor, self._count["visits"] + 1, self._tally))
        if self._kernel is not None:
            self._kernel(loss, self._floats, self._integers, self._max_visits, self._options.epoch_loss)
            return
        loss = loss.to(torch.float64)
        finite = torch.isfinite(loss)
        visits = self._count["visits"] + 1
        above = self._wants_repeat(loss, finite, visits)
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

    def _wants_repeat(self, loss: Tensor, finite: Tensor, visits: Tensor) -> Tensor:
        del visits
        return finite & (loss > self._threshold)


class DealtCounters(DeviceCounters):
    """The counters of an ``EqualComputeControl``: a batch repeats as often as was dealt to it, whatever its loss.

    Args:
        control: Deals the visits.
        device: Where the tensors live.
        batches: Base batches in an epoch.
        tallied_batches: As for ``DeviceCounters``.
    """

    def __init__(
        self, control: EqualComputeControl, device: torch.device, batches: int, *, tallied_batches: int = 0
    ) -> None:
        super().__init__(control.options, device, tallied_batches=tallied_batches)
        self._kernel = None  # it knows thresholds only
        self._control = control
        self._dealt = torch.ones(batches, dtype=torch.int64, device=device)

    def begin_epoch(self, state: State) -> None:
        """Deal the epoch's visits.

        Raises:
            ProtocolError: If the control has none for this epoch, or for another number of batches.
        """
        dealt = self._control._deal(state.epoch)
        if len(dealt) != len(self._dealt):
            raise ProtocolError(
                f"visit_counts[{state.epoch}] has {len(dealt)} batches, and there are {len(self._dealt)} in an epoch "
                "here; use the data and the batch size of the run that the counts are of"
            )
        copy_in(self._dealt, torch.tensor(dealt, dtype=torch.int64))
        super().begin_epoch(state)

    def _wants_repeat(self, loss: Tensor, finite: Tensor, visits: Tensor) -> Tensor:
        del loss, finite
        return visits < self._dealt.index_select(0, self.cursor.reshape(1))[0]


def make_counters(
    schedule: BatchAttentionSchedule, device: torch.device, batches: int, *, count_visits: bool
) -> DeviceCounters:
    """The counters that decide as ``schedule`` does."""
    tallied_batches = batches if count_visits else 0
    if isinstance(schedule, EqualComputeControl):
        return DealtCounters(schedule, device, batches, tallied_batches=tallied_batches)
    return DeviceCounters(schedule.options, device, tallied_batches=tallied_batches)


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
