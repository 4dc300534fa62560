"""How far a loop goes without a word from the device: enqueue what is certainly needed, then read the cursor."""

from __future__ import annotations

import warnings

from batch_sampler_attn.device.guard import Guard
from batch_sampler_attn.device.parts import Parts, Progress
from batch_sampler_attn.device.update import Update
from batch_sampler_attn.errors import BatchAttentionWarning, DeviceLoopError
from batch_sampler_attn.summary import EpochSummary

# A batch that was visited so often is worth a word, where no max_visits stops it.
MANY_VISITS = 1000


class Pacing:
    """Enqueues a loop's updates and settles them, and with that begins and ends its epochs."""

    def __init__(self, parts: Parts, update: Update, guard: Guard) -> None:
        self._parts = parts
        self._update = update
        self._guard = guard
        self._has_warned = False

    def enqueue(self, updates: int | None) -> None:
        """``DeviceLoop.enqueue``, unguarded."""
        parts, update, data = self._parts, self._update, self._parts.data
        update.set_modes()
        if not parts.progress.is_in_epoch:
            self._begin_epoch()
        progress = parts.progress
        with parts.place.in_use(is_awaited=False):
            parts.graphs.follow_changes()
            if progress.staged <= progress.cursor:
                progress.staged = data.stage(progress.cursor)
            room = self._room()
            if room <= 0 and not progress.in_flight:
                raise DeviceLoopError(
                    f"batch {progress.cursor} of {data.batches} is next, and there is no update to be made: the "
                    f"schedule was changed in mid-epoch, to batch {parts.host.schedule.batches}. Leave it alone until "
                    "the epoch is over"
                )
            for _ in range(room if updates is None else min(updates, room)):
                # Counted first: an interrupt in between makes one update too many in the count, which costs a read.
                progress.in_flight += 1
                parts.graphs.run(update.full_batch if progress.cursor < data.full_batches else update.tail_batch)
            # While the device trains.
            progress.staged = data.stage(progress.cursor)

    def settle(self, *, now: bool) -> EpochSummary | None:
        """``DeviceLoop.settle``."""
        parts, progress = self._parts, self._parts.progress
        if not progress.in_flight or (self._room() > 0 and not now):
            return None
        with parts.place.in_use():
            state, progress.cursor = parts.counters.read()
        progress.host_reads += 1
        progress.updates += progress.in_flight
        progress.in_flight = 0
        if all(map(parts.graphs.is_warm, self._update.kinds)):
            self._guard.stand_down()
        parts.host.state = state
        if state.visits >= MANY_VISITS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"batch {progress.cursor} of epoch {state.epoch} has taken {state.visits} visits and is still above "
                "the threshold; set max_visits, or look at that batch",
                BatchAttentionWarning,
                stacklevel=3,
            )
        return self._end_what_is_over()

    def _room(self) -> int:
        """How many more updates are certainly needed, whatever is decided about those in flight."""
        data, progress = self._parts.data, self._parts.progress
        if progress.cursor == data.full_batches and data.tail_size:
            needed = 1
        else:
            needed = min(progress.staged, data.full_batches) - progress.cursor
        # A window ends on the host, so nothing may be enqueued past its end.
        return min(needed, self._parts.host.left_in_window) - progress.in_flight

    def _begin_epoch(self) -> None:
        parts = self._parts
        # First, since it may refuse.
        dealt = parts.host.deal()
        parts.host.open_pass()
        with parts.place.in_use():
            parts.counters.begin_epoch(parts.host.state, dealt)
        self._has_warned = False
        parts.progress = Progress(
            updates=parts.progress.updates, is_in_epoch=True, epoch_randomness=parts.randomness.state_dict()
        )
        with parts.place.in_use():
            parts.data.begin_epoch()

    def _end_what_is_over(self) -> EpochSummary | None:
        parts, progress = self._parts, self._parts.progress
        is_over = progress.cursor == parts.data.batches
        if parts.host.end_what_is_over(is_over=is_over, host_reads=progress.host_reads):
            with parts.place.in_use():
                parts.counters.write(parts.host.state, cursor=progress.cursor)
        if not is_over:
            return None
        progress.is_in_epoch = False
        return parts.host.last_summary
