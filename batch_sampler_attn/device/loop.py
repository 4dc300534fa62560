"""The device loop: enqueue as many updates as are certainly needed, read the cursor once, and go on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn import checkpoint
from batch_sampler_attn.device import checks, snapshot
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.device.data import Augmentation, ResidentData, StagedData
from batch_sampler_attn.device.graphs import Graphed, Runner
from batch_sampler_attn.device.randomness import Randomness, precision
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
        model: Any module, on the data's device.
        optimizer: Of its parameters; on CUDA constructed with ``capturable=True``, unless ``graph=False``.
        loss_fn: From (outputs, targets) to the mean loss of the batch.
        data: ``ResidentData`` or ``StagedData``.
        schedule: Decides about repeats, and holds the state between epochs: a run may go on with the same schedule in a
            hand-written loop, or the other way round. None is plain training. Recorders are told of epochs, not
            of visits, which the host does not see.
        normalize: Mean and standard deviation of the inputs' channels, of shapes that broadcast against a batch.
        augmentation: Random augmentation on the device.
        autocast: The type for autocast, such as ``torch.bfloat16``; None for no autocast.
        scaler: A ``torch.amp.GradScaler``, for float16.
        channels_last: Lay out model and images with their channels last. The model is converted in place.
        tf32: Allow TF32 in this loop, or forbid it; None leaves PyTorch's settings alone.
        graph: Capture updates as CUDA graphs; None does so on CUDA devices.
        seed: Of dropout, fresh augmentation, and all else that training draws on this loop's account.

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
    ) -> None:
        device = checks.check_devices(model, data)
        if graph and device.type != "cuda":
            raise OptionError(f"graph=True needs a CUDA device, and the model is on {device}; leave graph at None")
        self._is_graphed = device.type == "cuda" if graph is None else graph
        checks.check_schedule(schedule)
        checks.check_optimizer(optimizer, scaler, graph=self._is_graphed)
        if normalize is not None:
            normalize = (normalize[0].to(device), normalize[1].to(device))
        recipe = Recipe(normalize, augmentation, autocast, scaler, channels_last)
        checks.check_recipe(recipe)
        if channels_last:
            model.to(memory_format=torch.channels_last)

        self.model = model
        self.schedule = schedule
        self.device = device
        self._optimizer = optimizer
        self._data = data
        self._tf32 = tf32
        # Without a schedule there is still a loss to average and an epoch to count.
        self._bookkeeping = schedule or BatchAttentionSchedule(max_visits=1, warmup_epochs=sys.maxsize)
        self._randomness = Randomness(seed, device)
        self._counters = DeviceCounters(self._bookkeeping.options, device)
        self._update = Update(model, optimizer, loss_fn, data, self._counters, recipe, self._randomness.fresh)
        if augmentation is not None and not augmentation.fresh:
            data.reserve_uniforms(augmentation.draws)
        self._check_sample(loss_fn)

        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._full_batch: Runner = self._update.full_batch
        self._tail_batch: Runner = self._update.tail_batch
        if self._is_graphed:
            assert self._stream is not None
            pool = torch.cuda.graph_pool_handle()
            generators = [self._randomness.fresh]
            self._full_batch = Graphed(self._update.full_batch, self._stream, pool, generators)
            self._tail_batch = Graphed(self._update.tail_batch, self._stream, pool, generators)

        self._cursor = 0
        self._staged = 0
        self._in_flight_updates = 0
        self._is_in_epoch = False
        self._host_reads = 0
        self._updates = 0
        self._has_warned = False
        self._epoch_randomness: dict[str, Any] | None = None
        self._is_proven = False
        self._before_first: dict[str, Any] | None = None

    @property
    def batches(self) -> int:
        """Base batches in an epoch."""
        return self._data.full_batches + (self._data.tail_size > 0)

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self._updates

    def run_epoch(self) -> EpochSummary:
        """Train to the end of the epoch, from its begin or from where ``run_updates`` or a loaded state left it.

        Returns:
            The epoch's summary, with the number of times that the host waited for the cursor; with ``window``, that
            of the window that ended last.

        Raises:
            DeviceLoopError: If the update cannot be captured, or the device's memory does not suffice. The model's
                weights are then as they were before the call.
        """
        while (summary := self._enqueue_and_settle(None)) is None:
            pass
        return summary

    def run_updates(self, updates: int) -> EpochSummary | None:
        """Train for so many updates, or to the end of the epoch if that comes first; then return its summary."""
        stop = self._updates + updates
        summary = None
        while summary is None and self._updates < stop:
            summary = self._enqueue_and_settle(stop - self._updates)
        return summary

    def enqueue(self, updates: int | None = None) -> None:
        """Enqueue updates that are certainly needed, at most ``updates`` of them, and return without waiting."""
        self._guard(lambda: self._enqueue(updates))

    def settle(self, *, now: bool = False) -> EpochSummary | None:
        """Read the cursor, if all updates that are certainly needed have been enqueued, or if ``now``.

        Returns:
            The epoch's summary if it is over; None otherwise.
        """
        if not self._in_flight_updates or (self._room() > 0 and not now):
            return None
        with self._in_use():
            state, self._cursor = self._counters.read()
        self._host_reads += 1
        self._updates += self._in_flight_updates
        self._in_flight_updates = 0
        if not isinstance(self._full_batch, Graphed) or self._full_batch.is_captured:
            self._is_proven, self._before_first = True, None
        self._bookkeeping._state = state
        if state.visits >= MANY_VISITS and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"batch {self._cursor} of epoch {state.epoch} has taken {state.visits} visits and is still above the "
                "threshold; set max_visits, or look at that batch",
                BatchAttentionWarning,
                stacklevel=3,
            )
        return self._end_what_is_over()

    # Saving and loading --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, model and optimizer included; tensors are on the host.

        It may be taken between epochs, and in the middle of one after ``run_updates``.
        """
        return {
            "version": checkpoint.VERSION,
            **snapshot.take(self.model, self._optimizer, self._update.recipe.scaler),
            "schedule": self._bookkeeping.state_dict(),
            "cursor": self._cursor,
            "staged": self._staged,
            "updates": self._updates,
            "host_reads": self._host_reads,
            "is_in_epoch": self._is_in_epoch,
            "randomness": self._all_randomness(),
            "epoch_randomness": self._epoch_randomness,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Everything is loaded in place, so captured graphs stay valid.

        Raises:
            StateError: If it is of another version, model, optimizer or schedule.
        """
        fields = checkpoint.check_keys("the loop's state", state_dict, _STATE_KEYS)
        checkpoint.check_version(fields["version"])
        checkpoint.unpack_schedule(self._bookkeeping.options, fields["schedule"])
        cursor = checkpoint.check_count("cursor", fields["cursor"])
        staged = checkpoint.check_count("staged", fields["staged"], least=cursor if fields["is_in_epoch"] else 0)
        before = snapshot.take(self.model, self._optimizer, self._update.recipe.scaler)
        try:
            snapshot.put_back(fields, self.model, self._optimizer, self._update.recipe.scaler)
        except Exception:
            snapshot.put_back(before, self.model, self._optimizer, self._update.recipe.scaler)
            raise
        self._bookkeeping.load_state_dict(fields["schedule"])
        self._cursor = cursor
        self._staged = staged
        self._updates = fields["updates"]
        self._host_reads = fields["host_reads"]
        self._is_in_epoch = fields["is_in_epoch"]
        self._in_flight_updates = 0
        self._epoch_randomness = fields["epoch_randomness"]
        with self._in_use():
            self._counters.write(self._bookkeeping._state, cursor=self._cursor)
            if self._is_in_epoch:
                self._load_all_randomness(fields["epoch_randomness"])
                self._data.resume_epoch(cursor, staged)
        self._load_all_randomness(fields["randomness"])

    # Enqueueing ----------------------------------------------------------------------------------------

    def _enqueue_and_settle(self, updates: int | None) -> EpochSummary | None:
        self.enqueue(updates)
        return self.settle(now=True)

    def _enqueue(self, updates: int | None) -> None:
        if not self.model.training:
            self.model.train()
        if not self._is_in_epoch:
            self._begin_epoch()
        with self._in_use():
            self._staged = self._data.stage(self._cursor)
            room = self._room()
            for _ in range(room if updates is None else min(updates, room)):
                runner = self._full_batch if self._cursor < self._data.full_batches else self._tail_batch
                runner()
                self._in_flight_updates += 1

    def _room(self) -> int:
        """How many more updates are certainly needed, whatever is decided about those in flight."""
        data = self._data
        if self._cursor == data.full_batches and data.tail_size:
            needed = 1
        else:
            needed = min(self._staged, data.full_batches) - self._cursor
        window = self._bookkeeping.options.window
        if window is not None:
            # A window ends on the host, so nothing may be enqueued past its end.
            needed = min(needed, window - self._bookkeeping.batches)
        return needed - self._in_flight_updates

    def _begin_epoch(self) -> None:
        if self._bookkeeping.options.window is None and (self._bookkeeping.batches or self._bookkeeping.visits):
            raise ProtocolError(
                f"the schedule is in the middle of an epoch, after {self._bookkeeping.batches} batches of another "
                "loop; end that epoch there, or forget it with schedule.abandon_epoch()"
            )
        self._epoch_randomness = self._all_randomness()
        self._host_reads = 0
        self._has_warned = False
        self._cursor = 0
        self._is_in_epoch = True
        with self._in_use():
            self._data.begin_epoch()
            self._counters.write(self._bookkeeping._state, cursor=0)

    def _end_what_is_over(self) -> EpochSummary | None:
        bookkeeping, is_over = self._bookkeeping, self._cursor == self.batches
        window = bookkeeping.options.window
        if bookkeeping.batches == window or (is_over and window is None):
            bookkeeping._end_epoch(host_reads=self._host_reads)
            with self._in_use():
                self._counters.write(bookkeeping._state, cursor=self._cursor)
        if not is_over:
            return None
        self._is_in_epoch = False
        return bookkeeping.summary if window is not None and bookkeeping.epoch == 0 else bookkeeping.last_summary

    # Being where the loop needs to be -------------------------------------------------------------------

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """The loop's stream, generators and precision, for the time of one call."""
        with ExitStack() as stack:
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream(self.device))
                stack.enter_context(torch.cuda.stream(self._stream))
            stack.enter_context(self._randomness.in_use())
            stack.enter_context(precision(self.device, self._tf32))
            yield

    def _guard(self, call: Callable[[], None]) -> None:
        """Until training has been shown to work here, an error leaves everything as it was."""
        if not self._is_proven and self._before_first is None:
            self._before_first = self.state_dict()
        try:
            call()
        except (DeviceLoopError, torch.OutOfMemoryError) as error:
            before = self._before_first
            if before is not None:
                self._in_flight_updates = 0
                self.load_state_dict(before)
                self._before_first = None
            if isinstance(error, DeviceLoopError):
                raise
            raise DeviceLoopError(
                f"the device's memory does not suffice: {str(error).splitlines()[0]}. Use a smaller batch, keep the "
                "data off the device with StagedData, or run fewer loops at once"
            ) from error

    def _check_sample(self, loss_fn: Callable[[Any, Tensor], Tensor]) -> None:
        if not isinstance(self._data, ResidentData):
            return
        data, few = self._data, min(2, len(self._data.inputs))
        augmentation = self._update.recipe.augmentation
        uniforms = None if augmentation is None else torch.full((few, augmentation.draws), 0.5, device=self.device)
        batch = self._data.sample(few)._replace(uniforms=uniforms)
        autocast = self._update.recipe.autocast
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            checks.check_targets(self.model, loss_fn, self._update.prepare(batch), batch.targets, data.targets)

    def _all_randomness(self) -> dict[str, Any]:
        data = self._data.generator
        return {
            "loop": self._randomness.state_dict(),
            "data": None if data is None else data.get_state(),
        }

    def _load_all_randomness(self, saved: dict[str, Any]) -> None:
        self._randomness.load_state_dict(saved["loop"])
        if self._data.generator is not None and saved["data"] is not None:
            self._data.generator.set_state(saved["data"])


_STATE_KEYS = {
    "version",
    "model",
    "optimizer",
    "scaler",
    "schedule",
    "cursor",
    "staged",
    "updates",
    "host_reads",
    "is_in_epoch",
    "randomness",
    "epoch_randomness",
}
