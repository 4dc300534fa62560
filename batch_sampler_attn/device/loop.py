"""The device loop: enqueue as many updates as are certainly needed, read the cursor once, and go on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device import checks, saving
from batch_sampler_attn.device.counters import make_counters
from batch_sampler_attn.device.data import Augmentation, ResidentData
from batch_sampler_attn.device.graphs import Graphs
from batch_sampler_attn.device.place import Place
from batch_sampler_attn.device.randomness import Randomness
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.device.update import Recipe, Update
from batch_sampler_attn.errors import BatchAttentionWarning, DeviceLoopError, OptionError, ProtocolError
from batch_sampler_attn.rule import EpochSummary
from batch_sampler_attn.schedule import BatchAttentionSchedule

# A batch that was visited so often is worth a word, where no max_visits stops it.
MANY_VISITS = 1000


class DeviceLoop:
    """Trains a model with Batch-attention decided on the device.

    Every batch needs at least one visit. So with the cursor at batch c of N, N - c more updates are certainly needed,
    and are enqueued without a word from the device; each of them finds out there which batch it is for. Then the
    cursor is read once, and so on: about log N / log(1 / r) reads an epoch at a share r of repeats, with the very
    decisions of ``BatchAttentionSchedule`` in a hand-written loop. On a CUDA device an update is one captured graph.

    Args:
        model: Any module, on the data's device. Its modules are trained in the modes that they are in now, so that
            those in evaluation mode stay frozen; all in training mode, if none is now.
        optimizer: Of its parameters; on CUDA constructed with ``capturable=True``, unless ``graph=False``. A number
            that changes, as ``lr`` under a scheduler, has the update captured again (about as long as a few updates
            take); give ``lr`` as a tensor on the device, changed in place, to change it without.
        loss_fn: From (outputs, targets) to the mean loss of the batch.
        data: ``ResidentData`` or ``StagedData``.
        schedule: Decides about repeats, and holds the state between epochs: a run may go on with the same schedule in a
            hand-written loop, or the other way round. None is plain training, and an ``EqualComputeControl`` its
            repeats at random. Recorders are told of epochs, not of visits, which the host does not see.
        normalize: Mean and standard deviation of the inputs' channels, of shapes that broadcast against a batch.
        augmentation: Random augmentation on the device.
        autocast: The type for autocast, such as ``torch.bfloat16``; None for no autocast.
        scaler: A ``torch.amp.GradScaler``, for float16. The optimizer has to be fused then, since any other asks the
            host in every step whether to skip it; ``graph=False`` says that it may.
        channels_last: Lay out model and images with their channels last. The model is converted in place.
        tf32: Allow TF32 in this loop, or forbid it; None leaves PyTorch's settings alone.
        graph: Capture updates as CUDA graphs; None does so on CUDA devices.
        seed: Of dropout, fresh augmentation, and all else that training draws on this loop's account.
        count_visits: Keep the number of visits to each batch, for ``visit_counts``.

    Raises:
        OptionError: If the parts do not fit each other, or cannot be trained with here.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Tensor], Tensor],
        data: ResidentData | StagedData,
        *,
        schedule: BatchAttentionSchedule | None = None,
        normalize: tuple[Tensor, Tensor] | None = None,
        augmentation: Augmentation | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        channels_last: bool = False,
        tf32: bool | None = None,
        graph: bool | None = None,
        seed: int = 0,
        count_visits: bool = False,
    ) -> None:
        device = checks.check_devices(model, data)
        if graph and device.type != "cuda":
            raise OptionError(f"graph=True needs a CUDA device, and the model is on {device}; leave graph at None")
        self._is_graphed = device.type == "cuda" if graph is None else graph
        checks.check_schedule(schedule)
        if normalize is not None:
            normalize = (normalize[0].to(device), normalize[1].to(device))
        recipe = Recipe(normalize, augmentation, autocast, scaler, channels_last)
        checks.check_recipe(recipe)
        checks.check_optimizer(optimizer, model, scaler, graph=self._is_graphed, may_wait=graph is False)
        if channels_last:
            model.to(memory_format=torch.channels_last)

        self.model = model
        self.schedule = schedule
        self.device = device
        self._optimizer = optimizer
        self._data = data
        # Without a schedule there is still a loss to average and an epoch to count.
        self._bookkeeping = schedule or BatchAttentionSchedule(max_visits=1, warmup_epochs=sys.maxsize)
        self._randomness = Randomness(seed, device)
        self._generators = saving.Generators(self._randomness, data.generator)
        self.counts_visits = count_visits
        self._counters = make_counters(self._bookkeeping, device, self.batches, count_visits=count_visits)
        self._update = Update(model, optimizer, loss_fn, data, self._counters, recipe, self._randomness)
        if augmentation is not None and not augmentation.fresh:
            data.reserve_uniforms(augmentation.draws)
        checks.check_sample(self._update)

        self._place = Place(device, self._randomness, tf32)
        self._graphs: Graphs | None = None
        if self._is_graphed:
            assert self._place.stream is not None
            self._graphs = Graphs(optimizer, self._place.stream, self._randomness)
            # The first updates are eager on purpose, which an optimizer that was copied would warn of.
            optimizer._warned_capturable_if_run_uncaptured = True

        self._progress = saving.Progress()
        self._in_flight_updates = 0
        self._has_warned = False
        self._is_proven = False
        self._before: dict[str, Any] | None = None

    @property
    def batches(self) -> int:
        """Base batches in an epoch."""
        return self._data.full_batches + (self._data.tail_size > 0)

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._progress.updates

    @property
    def summary(self) -> EpochSummary:
        """The epoch in progress, up to the updates that were settled last."""
        return self._bookkeeping.summary

    @property
    def visit_counts(self) -> list[int]:
        """Visits to each batch of the epoch that was begun last, in order of position. Waits for the device.

        In mid-epoch, only those of batches that are done with are of this epoch.

        Raises:
            ProtocolError: If the loop was constructed without ``count_visits=True``, or updates are in flight.
        """
        if not self.counts_visits:
            raise ProtocolError("visits are not counted; construct the loop with count_visits=True")
        if self._in_flight_updates:
            raise ProtocolError("updates are in flight; call settle(now=True) first")
        with self._place.on_stream():
            return self._counters.read_tally() or []

    @property
    def order(self) -> Tensor:
        """The samples of the epoch that was begun last, by index, in the order of its batches; on the device.

        Raises:
            ProtocolError: If a DataLoader has the order, as with ``StagedData``.
        """
        if not isinstance(self._data, ResidentData):
            raise ProtocolError("the order of StagedData is its DataLoader's; ask its sampler")
        return self._data.order

    def run_epoch(self) -> EpochSummary:
        """Train to the end of the epoch, from its begin or from where ``run_updates`` or a loaded state left it.

        Returns:
            The epoch's summary, with the number of times that the host waited for the cursor; with ``window``, that
            of the window that ended last.

        Until updates are captured (on the CPU: until the cursor was first read), each call first copies model and
        optimizer to the host, which waits for the device.

        Raises:
            DeviceLoopError: If the update cannot be captured, or the device's memory does not suffice. Until updates
                are captured (on the CPU: until the cursor was first read), any error leaves everything as it was
                before the call; from then on, the weights are where the last update left them.
        """
        with self._guard():
            while True:
                self._enqueue(None)
                if (summary := self.settle(now=True)) is not None:
                    return summary

    def run_updates(self, updates: int) -> EpochSummary | None:
        """Train for so many updates, or to the end of the epoch if that comes first; then return its summary."""
        stop = self.updates + updates
        summary = None
        with self._guard():
            while summary is None and self.updates < stop:
                self._enqueue(stop - self.updates)
                summary = self.settle(now=True)
        return summary

    def enqueue(self, updates: int | None = None) -> None:
        """Enqueue updates that are certainly needed, at most ``updates`` of them, and return without waiting.

        Leave model and optimizer alone until ``settle(now=True)`` has returned: the updates are made on a stream of
        the loop's own. An error that leaves everything as before leaves it as before the first ``enqueue`` that has
        not been settled.
        """
        with self._guard():
            self._enqueue(updates)

    def settle(self, *, now: bool = False) -> EpochSummary | None:
        """Read the cursor, if all updates that are certainly needed have been enqueued, or if ``now``.

        Returns:
            The epoch's summary if it is over; None otherwise.
        """
        if not self._in_flight_updates or (self._room() > 0 and not now):
            return None
        progress = self._progress
        with self._place.in_use():
            state, progress.cursor = self._counters.read()
        progress.host_reads += 1
        progress.updates += self._in_flight_updates
        self._in_flight_updates = 0
        if self._graphs is None or self._graphs.is_captured(self._update.full_batch):
            self._is_proven, self._before = True, None
        self._bookkeeping._state = state
        if state.visits >= MANY_VISITS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"batch {progress.cursor} of epoch {state.epoch} has taken {state.visits} visits and is still above "
                "the threshold; set max_visits, or look at that batch",
                BatchAttentionWarning,
                stacklevel=3,
            )
        return self._end_what_is_over()

    # Saving and loading --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, model and optimizer included; tensors are on the host.

        It may be taken between epochs, and in the middle of one after ``run_updates``.

        Raises:
            ProtocolError: If updates are in flight.
        """
        return saving.state_of(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Everything is loaded in place, so captured graphs stay valid, unless the optimizer has state for other
        parameters there than here, as before its first step: then updates are captured anew.

        Raises:
            StateError: If it is of another version, model, optimizer or schedule.
        """
        saving.load(self, state_dict)

    # Enqueueing ----------------------------------------------------------------------------------------

    def _enqueue(self, updates: int | None) -> None:
        self._update.set_modes()
        if not self._progress.is_in_epoch:
            self._begin_epoch()
        progress, data = self._progress, self._data
        with self._place.in_use(is_awaited=False):
            if self._graphs is not None:
                self._graphs.follow_optimizer()
            if progress.staged <= progress.cursor:
                progress.staged = data.stage(progress.cursor)
            room = self._room()
            if room <= 0 and not self._in_flight_updates:
                raise DeviceLoopError(
                    f"batch {progress.cursor} of {self.batches} is next, and there is no update to be made: the "
                    f"schedule was changed in mid-epoch, to batch {self._bookkeeping.batches}. Leave it alone until "
                    "the epoch is over"
                )
            for _ in range(room if updates is None else min(updates, room)):
                # Counted first: an interrupt in between makes one update too many in the count, which costs a read.
                self._in_flight_updates += 1
                update = self._update.full_batch if progress.cursor < data.full_batches else self._update.tail_batch
                if self._graphs is None:
                    update()
                else:
                    self._graphs.run(update)
            # While the device trains.
            progress.staged = data.stage(progress.cursor)

    def _room(self) -> int:
        """How many more updates are certainly needed, whatever is decided about those in flight."""
        data, cursor = self._data, self._progress.cursor
        if cursor == data.full_batches and data.tail_size:
            needed = 1
        else:
            needed = min(self._progress.staged, data.full_batches) - cursor
        window = self._bookkeeping.options.window
        if window is not None:
            # A window ends on the host, so nothing may be enqueued past its end.
            needed = min(needed, window - self._bookkeeping.batches)
        return needed - self._in_flight_updates

    def _begin_epoch(self) -> None:
        with self._place.in_use():
            # First, since it may refuse.
            self._counters.begin_epoch(self._bookkeeping._state)
        self._has_warned = False
        self._progress = saving.Progress(
            updates=self.updates, is_in_epoch=True, epoch_randomness=self._generators.state_dict()
        )
        with self._place.in_use():
            self._data.begin_epoch()

    def _end_what_is_over(self) -> EpochSummary | None:
        bookkeeping, is_over = self._bookkeeping, self._progress.cursor == self.batches
        window = bookkeeping.options.window
        if bookkeeping.batches == window or (is_over and window is None):
            bookkeeping._end_epoch(host_reads=self._progress.host_reads)
            with self._place.in_use():
                self._counters.write(bookkeeping._state, cursor=self._progress.cursor)
        if not is_over:
            return None
        self._progress.is_in_epoch = False
        return bookkeeping.summary if window is not None and bookkeeping.epoch == 0 else bookkeeping.last_summary

    # Errors --------------------------------------------------------------------------------------------

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Until training has been shown to work here, an error leaves everything as it was."""
        if not self._progress.is_in_epoch:
            checks.check_is_between_epochs(self._bookkeeping)
        if not self._is_proven and not self._in_flight_updates:
            self._before = self.state_dict()
        try:
            yield
        except Exception as error:
            self._undo()
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise DeviceLoopError(
                f"the device's memory does not suffice: {str(error).splitlines()[0]}. Use a smaller batch, keep the "
                "data off the device with StagedData, or run fewer loops at once"
            ) from error

    def _undo(self) -> None:
        before, self._before = self._before, None
        if before is None:
            self._place.join()
            return
        self._reset_graphs()
        if self._is_graphed:
            self._randomness.renew()
        saving.restore(self, before)

    def _reset_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.reset()
