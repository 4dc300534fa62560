"""The device loop: how far ahead it enqueues updates, what an update does, and how it is captured and resumed."""

from __future__ import annotations

import copy
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.checkpoint import VERSION
from batch_sampler_attn.device.counters import Counters, copy_in
from batch_sampler_attn.errors import DeviceLoopError, OptionError, ProtocolError, StateError
from batch_sampler_attn.rule import RandomVisits
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of
from batch_sampler_attn.summary import EpochSummary

# CUDA's libraries initialize themselves in their first calls, which a capture does not allow.
_EAGER_UPDATES = 3
_VERSION = f"DeviceLoop {VERSION}"


class DeviceLoop:
    """Trains a model on data in its device's memory, with repeats decided on the device.

    When batch c of N is next, at least N - c updates remain. They are enqueued without synchronizing: each
    finds its batch on the device. Then the host reads the position once, and enqueues again. Decisions are those of
    ``BatchAttentionSchedule.decide`` in a hand-written loop.

    On CUDA, an update is captured as a graph after three eager updates. It is captured again if the optimizer's
    settings change, or a tensor of the model is replaced or frozen. Everything else in Python (dropout rates, hooks)
    stays as captured. The loop has its own stream and random generator, which starts as a copy of the device's.

    Args:
        model: Its modules keep their train/eval modes; if none is in training mode, all are set to it.
        optimizer: Optimizer of the model's parameters, with ``capturable=True`` for captured updates. A new ``lr``
            causes a new capture, unless it is a tensor on the device that is changed in place.
        loss_fn: Maps (outputs, targets) to the mean loss of the batch.
        inputs, targets: Tensors of shape (samples, ...), as stored, on the model's device.
        batch_size: Number of samples in a batch; the last batch of an epoch has the rest.
        schedule: Decides on repeats; None is plain training. Its recorders are notified of epochs only.
        generator: A CPU generator from which the order of each epoch is drawn; None is torch's default.
        prepare: Maps a batch of stored inputs to the model's inputs; it draws from torch's default generators. If it
            defines ``set_epoch``, that receives the epoch's number, as a tensor that the loop changes in place.
        autocast: Data type for autocast, such as ``torch.bfloat16``; None for no autocast.
        scaler: Gradient scaler for float16; captured updates then need an optimizer with ``fused=True``.
        graph: False runs every update eagerly, even on a CUDA device.

    Attributes:
        model: The model.
        schedule: The schedule; in plain training, one that never repeats.
        batches: Number of base batches in an epoch.
        order: The samples of the current epoch, in the order of its batches; int64, on the device.
        updates: Number of updates made, as of the last ``synchronize``.
        visit_counts: Visits to each batch of the current epoch, as of the last ``synchronize``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        schedule: BatchAttentionSchedule | None = None,
        generator: torch.Generator | None = None,
        prepare: Callable[[Tensor], Any] | None = None,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        graph: bool | None = None,
    ) -> None:
        device, samples = inputs.device, len(inputs)
        if any(tensor.device != device for tensor in (*model.parameters(), *model.buffers(), targets)):
            raise OptionError(f"inputs are on {device}, but targets and model are not; move all to one device")
        if len(targets) != samples or not 1 <= batch_size <= samples:
            raise OptionError(
                f"batch_size is {batch_size}, for {samples} inputs and {len(targets)} targets; give as many targets as "
                "inputs, and a batch_size from 1 to their number"
            )
        self._captures = device.type == "cuda" and graph is not False
        if self._captures and not all(group.get("capturable", True) for group in optimizer.param_groups):
            raise OptionError("the optimizer has capturable=False; construct it with True, or pass graph=False")
        self.schedule = schedule or BatchAttentionSchedule(max_visits=1, warmup_epochs=sys.maxsize, ranks=None)
        self._passes = passes = passes_of(self.schedule)
        if (passes.driver, passes.ranks.transport, passes.options.nonfinite) != (None, None, "advance"):
            raise OptionError(
                f"schedule is {schedule!r}, which has ranks=, nonfinite='raise' or a BatchAttentionSampler; leave them "
                "out for a device loop, or write the loop by hand"
            )
        self.model, self._optimizer, self._loss_fn, self._prepare = model, optimizer, loss_fn, prepare
        self._inputs, self._targets, self._generator, self._autocast = inputs, targets, generator, autocast
        self._scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
        is_in_training = any(module.training for module in model.modules())
        self._modes = {module: module.training or not is_in_training for module in model.modules()}

        self._batch_size, self._full_batches = batch_size, samples // batch_size
        self.batches = -(-samples // batch_size)
        self.order = torch.arange(samples, device=device)
        self._first, self._last = (self.order.split(batch_size)[number].clone() for number in (0, -1))
        is_random = isinstance(passes.criterion, RandomVisits)
        self._counters = Counters(passes.options, device, self.batches, is_random=is_random)
        if set_epoch := getattr(prepare, "set_epoch", None):
            set_epoch(self._counters.epoch)
        # The open pass, and the epoch's progress as the host last read it.
        self._pass: Any = None
        self._cursor = self._host_reads = self._in_flight = self.updates = 0
        self.visit_counts = [0] * self.batches

        self._device, self._stream, self._random = device, None, None
        if device.type == "cuda":
            self._stream, self._random = torch.cuda.Stream(device), torch.Generator(device)
            self._random.set_state(torch.cuda.default_generators[device.index].get_state())
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        # With the shorter last batch, and with full batches.
        self._eager_updates = [0, 0]
        self._captured_with: Any = None

    def run_epoch(self) -> EpochSummary:
        """Train to the end of the epoch and return its summary; raises ``DeviceLoopError`` if a capture fails."""
        return self.run_updates(sys.maxsize)  # type: ignore[return-value]

    def run_updates(self, updates: int) -> EpochSummary | None:
        """Train for ``updates`` updates. If the epoch ends first, stop there and return its summary."""
        stop, summary = self.updates + updates, None
        while summary is None and self.updates < stop:
            self.enqueue(stop - self.updates)
            summary = self.synchronize()
        return summary

    def enqueue(self, updates: int | None = None) -> int:
        """Enqueue at most ``updates`` updates that are sure to be needed, without waiting; return how many.

        Do not change model or optimizer until ``synchronize`` has returned, even after an error.
        """
        if self._pass is None or self._pass is not self._passes.active:
            self._open_epoch(torch.randperm(len(self.order), generator=self._generator), 0, [0] * self.batches, 0)
        for module, is_training in self._modes.items():
            module.training = is_training
        # A shorter last batch has its own graph.
        is_full = self._cursor < self._full_batches
        needed = self._full_batches - self._cursor if is_full else 1
        if (length := self._passes.options.epoch_length) is not None:
            # Such an epoch ends on the host.
            needed = min(needed, length - self._passes.state.batches)
        count = min(needed - self._in_flight, sys.maxsize if updates is None else updates)
        with self._on_device():
            if self._graphs and self._captured_values() != self._captured_with:
                self._drop_graphs()
            for _ in range(count):
                run = self._ready(is_full)
                # Counted first: if an interrupt comes in between, a count too high by one is harmless.
                self._in_flight += 1
                run()
        return count

    def synchronize(self) -> EpochSummary | None:
        """Wait for the enqueued updates and read their results; return the epoch's summary if the epoch has ended."""
        if self._pass is None:
            return None
        passes, before = self._passes, self._passes.state
        with self._on_device():
            state, self._cursor, self.visit_counts = self._counters.read(before)
        self._in_flight = 0
        self._host_reads += 1
        self._pass.take_over(state)
        self.updates += state.progress - before.progress
        if state.batches == passes.options.epoch_length:
            passes.end_epoch(self._host_reads)
            with self._on_device():
                self._counters.write(passes.state, self._cursor, self.visit_counts)
        if self._cursor < self.batches:
            return None
        ended, self._pass = self._pass, None
        ended.close(finished=True, host_reads=self._host_reads)
        return passes.run.last_summary or self.schedule.summary

    def _open_epoch(self, order: Tensor, cursor: int, visit_counts: list[int], host_reads: int) -> None:
        """Begin an epoch of the data, or resume one whose state the schedule has."""
        passes, state, criterion = self._passes, self._passes.state, self._passes.criterion
        if state.batches != cursor and passes.options.epoch_length is None:
            raise ProtocolError(
                f"the schedule is in the middle of an epoch, after {state.batches} batches of another loop; end that "
                "epoch there, or discard it with schedule.abandon_epoch()"
            )
        drawn = criterion.draw(state.epoch) if isinstance(criterion, RandomVisits) else None
        if drawn and len(drawn) != self.batches:
            raise ProtocolError(f"visit_counts has {len(drawn)} batches in epoch {state.epoch}; give it {self.batches}")
        opened = passes.open()
        with self._on_device():
            copy_in(self.order, order.cpu())
            self._counters.write(state, cursor, visit_counts, drawn)
        self._pass, self._cursor, self.visit_counts = opened, cursor, visit_counts
        self._host_reads, self._in_flight = host_reads, 0

    def _train(self, is_full: bool) -> None:
        """Train once on the full batch at the cursor, or on the last one; decide on a repeat."""
        positions = self._counters.cursor * self._batch_size + self._first if is_full else self._last
        samples = self.order.index_select(0, positions)
        inputs, targets = self._inputs.index_select(0, samples), self._targets.index_select(0, samples)
        prepared = inputs if self._prepare is None else self._prepare(inputs)
        # Gradients that are None before a capture are written by each replay, not added to.
        self._optimizer.zero_grad(set_to_none=True)
        is_on, scaler = self._autocast is not None, self._scaler
        # Without a cache, in which a replay would find weights as they were cast at the capture.
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=is_on, cache_enabled=False):
            loss = self._loss_fn(self.model(prepared), targets)
        scaler.scale(loss).backward()
        scaler.step(self._optimizer)
        scaler.update()
        self._counters.visit(loss)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """On CUDA, use the loop's stream, after the caller's work, and the loop's random generator."""
        if self._stream is None or self._random is None:
            yield
            return
        default = torch.cuda.default_generators[self._device.index]
        # The state object itself is exchanged: a graph draws from the object that it was captured with.
        callers = default.graphsafe_get_state()
        default.graphsafe_set_state(self._random)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            default.graphsafe_set_state(callers)

    def _ready(self, is_full: bool) -> Callable[[], object]:
        """The function that makes an update: ``_train`` at first, later the replay of a graph of it."""
        if not self._captures or self._eager_updates[is_full] < _EAGER_UPDATES:
            self._eager_updates[is_full] += 1
            return lambda: self._train(is_full)
        if is_full not in self._graphs:
            self._graphs[is_full] = self._capture(is_full)
        return self._graphs[is_full].replay

    def _capture(self, is_full: bool) -> torch.cuda.CUDAGraph:
        """Capture a graph of the update, without training."""
        assert self._random is not None
        graph, before, random = torch.cuda.CUDAGraph(), self._captured_values(), self._random.get_state()
        # Graphs share memory, since they never run at the same time.
        pool, reason = next((other.pool() for other in self._graphs.values()), None), ""
        try:
            # Only this thread is watched: another one, of a DataLoader, may pin memory.
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    self._train(is_full)
                except RuntimeError as error:
                    # The end of a broken capture raises another, less specific error.
                    reason = str(error).splitlines()[0]
                    raise
            self._captured_with = self._captured_values()
            if self._captured_with != before:
                raise RuntimeError(f"each step of {type(self._optimizer).__name__} changes its state on the host")
        except BaseException as error:
            self._drop_graphs()
            # The old generator stays in the capture that failed.
            self._random = torch.Generator(self._device).set_state(random)
            if not isinstance(error, RuntimeError):
                raise
            raise DeviceLoopError(
                f"the update cannot be captured as a CUDA graph: {reason or error}. Model, loss_fn, prepare and the "
                "optimizer must not read values on the host (.item(), .cpu(), if tensor > 0); or pass graph=False"
            ) from error
        return graph

    def _drop_graphs(self) -> None:
        """Return to eager updates."""
        if self._stream is not None:
            # Replays in flight use the graphs' memory, and the gradients lie in it.
            self._stream.synchronize()
        self._optimizer.zero_grad(set_to_none=True)
        self._graphs.clear()
        self._eager_updates = [0, 0]

    def _captured_values(self) -> Any:
        """What graphs depend on in model and optimizer: numbers by value, tensors by address."""
        groups = [{**group, "params": ()} for group in self._optimizer.param_groups]
        return _by_value([*self.model.parameters(), *self.model.buffers(), *groups, *self._optimizer.state.values()])

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, including model and optimizer; tensors are copies on the device.

        Dropout on a CPU and orders without ``generator`` draw from torch's default generator: save its state as well.
        """
        if self._in_flight:
            raise ProtocolError(f"{self._in_flight} updates are in flight; call synchronize() before state_dict()")
        return copy.deepcopy(
            {
                "version": _VERSION,
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "schedule": self.schedule.state_dict(),
                "generator": self._generator and self._generator.get_state(),
                "random": self._random and self._random.get_state(),
                "data": self._data_fingerprint(),
                "updates": self.updates,
                "epoch": self._pass and [self.order.cpu(), self._cursor, self.visit_counts, self._host_reads],
            }
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state that ``state_dict`` returned; updates are captured again.

        Raises:
            StateError: If schedule or version differ, or it is from mid-epoch of other data. Torch raises other errors.
        """
        if state_dict.get("version") != _VERSION:
            raise StateError("this is not the state of a DeviceLoop of this release; pass what state_dict() returned")
        if state_dict["epoch"] and state_dict["data"] != self._data_fingerprint():
            raise StateError("the state was saved in mid-epoch of other data; construct the loop with the same data")
        run = self._passes.unpack(state_dict["schedule"])
        self._drop_graphs()
        self.model.load_state_dict(state_dict["model"])
        # Otherwise the optimizer would change the state's own tensors in training.
        self._optimizer.load_state_dict(copy.deepcopy(state_dict["optimizer"]))
        self._scaler.load_state_dict(state_dict["scaler"])
        if self._generator is not None:
            self._generator.set_state(state_dict["generator"].cpu())
        if self._random is not None and state_dict["random"] is not None:
            self._random.set_state(state_dict["random"].cpu())
        self._passes.assign(run)
        self._pass, self._in_flight, self.updates = None, 0, state_dict["updates"]
        if state_dict["epoch"]:
            self._open_epoch(*state_dict["epoch"])

    def _data_fingerprint(self) -> list[int]:
        first = self._targets.reshape(-1)[:1024].tolist()
        return [len(self._inputs), self._batch_size, zlib.crc32(repr(first).encode())]


def _by_value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.data_ptr(), value.stride(), value.requires_grad) if value.is_cuda else value.tolist()
    if isinstance(value, dict):
        return {name: _by_value(entry) for name, entry in value.items()}
    return [*map(_by_value, value)] if isinstance(value, (list, tuple)) else value
