"""A device loop's schedule, which stays on the host: the one place here that drives it."""

from __future__ import annotations

import copy
import sys

from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.criteria import DealtVisits
from batch_sampler_attn.errors import DeviceLoopError, OptionError, ProtocolError, StateError
from batch_sampler_attn.passes import Pass
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary


class HostSide:
    """What a loop asks of its schedule, and tells it.

    Args:
        schedule: The loop's; None for plain training, where there still are losses to average and epochs to count.
        batches: Base batches in an epoch of the loop.

    Attributes:
        schedule: The same, or a schedule that never repeats.

    Raises:
        OptionError: If it is not a schedule, belongs to a DataLoader, or would raise on a device.
    """

    def __init__(self, schedule: BatchAttentionSchedule | None, batches: int) -> None:
        if schedule is None:
            schedule = BatchAttentionSchedule(max_visits=1, warmup_epochs=sys.maxsize, reduce=None)
        if type(schedule) not in (BatchAttentionSchedule, EqualComputeControl):
            raise OptionError(
                f"schedule is {schedule!r}; pass a BatchAttentionSchedule, an EqualComputeControl, or None for plain "
                "training"
            )
        if schedule.driver is not None:
            raise OptionError("the schedule belongs to a BatchAttentionSampler; a device loop needs one of its own")
        if schedule.agreement.reduce is not None:
            raise OptionError(
                "the schedule has reduce=, and a device loop trains in one process: with ranks, write the loop by hand "
                "(examples/ddp.py)"
            )
        if schedule.options.nonfinite != "advance":
            raise OptionError(
                f"nonfinite is {schedule.options.nonfinite!r}; a device cannot raise, so it must be 'advance' here. "
                "EpochSummary.nonfinite_losses tells how many there were"
            )
        self.schedule = schedule
        self._batches = batches
        self._pass: Pass | None = None

    @property
    def state(self) -> State:
        """The rule's state, as it was read last."""
        return self.schedule.epochs.state

    @state.setter
    def state(self, state: State) -> None:
        if self._pass is None or self._pass is not self.schedule.active_pass:
            raise DeviceLoopError(
                f"the schedule was changed in mid-epoch, to batch {self.schedule.batches} of epoch "
                f"{self.schedule.epoch}. Leave it alone until the epoch is over"
            )
        self._pass.take_over(state)

    @property
    def is_dealt(self) -> bool:
        """Whether visits are dealt, and do not depend on losses."""
        return isinstance(self.schedule.epochs.criterion, DealtVisits)

    @property
    def left_in_window(self) -> int:
        """How many batches may be done with before the host has to end a window."""
        window = self.schedule.options.window
        return sys.maxsize if window is None else window - self.schedule.batches

    def check_is_between_epochs(self) -> None:
        """Refuse to begin an epoch in the middle of another.

        Raises:
            ProtocolError: If the schedule is in one.
        """
        schedule = self.schedule
        if schedule.options.window is None and (schedule.batches or schedule.visits):
            raise ProtocolError(
                f"the schedule is in the middle of an epoch, after {schedule.batches} batches of another loop; end "
                "that epoch there, or forget it with schedule.abandon_epoch()"
            )

    def open_pass(self) -> None:
        """Begin an epoch of the data, or go on in one that was loaded."""
        # Windows go on from what another loop left.
        self.schedule.epochs.account()
        self._pass = self.schedule.open_pass()

    def deal(self) -> list[int] | None:
        """The visits to each batch of the epoch that begins, if they are dealt.

        Raises:
            ProtocolError: If there are none for this epoch, or for another number of batches.
        """
        criterion, epoch = self.schedule.epochs.criterion, self.schedule.epoch
        if not isinstance(criterion, DealtVisits):
            return None
        dealt = criterion.deal(epoch)
        if len(dealt) != self._batches:
            raise ProtocolError(
                f"visit_counts[{epoch}] has {len(dealt)} batches, and there are {self._batches} in an epoch here; use "
                "the data and the batch size of the run that the counts are of"
            )
        return dealt

    def end_what_is_over(self, *, is_over: bool, host_reads: int) -> bool:
        """End the window that is full, or the epoch if the data's ``is_over``; tell whether there was one to end."""
        assert self._pass is not None
        window = self.schedule.options.window
        is_full = window is not None and self.schedule.batches == window
        if is_full:
            self.schedule.epochs.end(host_reads)
        if is_over:
            self._pass.close(finished=True, host_reads=host_reads)
        return is_full or (is_over and window is None)

    @property
    def last_summary(self) -> EpochSummary:
        """That of the epoch or window that ended last; where the data ended before the first window, up to there."""
        schedule = self.schedule
        is_in_first_window = schedule.options.window is not None and schedule.epoch == 0
        return schedule.summary if is_in_first_window else schedule.last_summary

    # Saved states --------------------------------------------------------------------------------------

    def check_state(self, saved: object, cursor: int | None) -> State:
        """The rule's state in a schedule's state, checked.

        Args:
            saved: What ``schedule.state_dict()`` returned.
            cursor: Base batches that the loop had done with in its epoch; None between epochs.

        Raises:
            StateError: If it cannot be loaded, or the loop and the schedule were at different places.
        """
        state, _ = self.schedule.unpack(saved)
        batches = cursor or 0
        is_apart = state.batches != batches or state.position != batches or (state.visits and cursor is None)
        if is_apart and self.schedule.options.window is None:
            raise StateError(
                f"the loop is at batch {batches} of its epoch in the state, and its schedule at batch "
                f"{state.position}, after {state.visits} visits; it was changed after it was saved"
            )
        criterion = self.schedule.epochs.criterion
        if isinstance(criterion, DealtVisits) and cursor is not None:
            try:
                # A copy, since it remembers what it dealt last.
                dealt = copy.copy(criterion).deal(state.epoch)
            except ProtocolError as error:
                raise StateError(f"the state is of another control: {error}") from error
            if len(dealt) != self._batches or state.visits >= dealt[cursor]:
                raise StateError(
                    f"the state is at batch {cursor} of epoch {state.epoch}, after {state.visits} visits, which "
                    "visit_counts does not come to; construct the control and the data as they were"
                )
        return state
