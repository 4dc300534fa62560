"""The device loop: what a user constructs, runs and saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device import checks, saving
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.device.data import Augmentation, ResidentData
from batch_sampler_attn.device.graphs import Graphs
from batch_sampler_attn.device.guard import Guard
from batch_sampler_attn.device.host import HostSide
from batch_sampler_attn.device.pacing import Pacing
from batch_sampler_attn.device.parts import Parts, Progress, Recipe
from batch_sampler_attn.device.place import Place
from batch_sampler_attn.device.randomness import Randomness
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.device.update import Update
from batch_sampler_attn.errors import OptionError, ProtocolError
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.summary import EpochSummary


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
            take); give ``lr`` as a tensor on the device, changed in place, to change it without (SGD has to be fused
            then).
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
        graph: Capture updates as CUDA graphs; None does so on CUDA devices. What Python decides on is fixed then:
            dropout rates, attributes of model and ``loss_fn``, hooks. Parameters that are frozen, thawed, replaced or
            laid out otherwise are noticed, and have the update captured again.
        seed: Of dropout, fresh augmentation, and all else that training draws on this loop's account.
        count_visits: Keep the number of visits to each batch, for ``visit_counts``.

    Attributes:
        parts: What the loop is made of, for the modules beside this one.

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
        is_graphed = device.type == "cuda" if graph is None else graph
        host = HostSide(schedule, data.batches)
        if normalize is not None:
            normalize = (normalize[0].to(device), normalize[1].to(device))
        recipe = Recipe(loss_fn, normalize, augmentation, autocast, scaler, channels_last)
        checks.check_optimizer(optimizer, model, scaler, graph=is_graphed, may_wait=graph is False)
        if is_graphed:
            checks.check_is_alone(model)
        if channels_last:
            model.to(memory_format=torch.channels_last)

        self.model = model
        self.schedule = schedule
        self.device = device
        self.counts_visits = count_visits
        counters = DeviceCounters(
            host.schedule.options, device, data.batches, is_dealt=host.is_dealt, count_visits=count_visits
        )
        randomness = Randomness(seed, device, data.generator)
        place = Place(device, randomness, tf32)
        draws_afresh = augmentation is not None and augmentation.fresh
        graphs = Graphs(
            optimizer,
            place.stream if is_graphed else None,
            randomness,
            model,
            draws_afresh=draws_afresh,
            functions=[loss_fn] if augmentation is None else [loss_fn, augmentation.apply],
        )
        self.parts = Parts(model, optimizer, data, recipe, host, counters, randomness, place, graphs, Progress())
        if augmentation is not None and not augmentation.fresh:
            data.reserve_uniforms(augmentation.draws)
        update = Update(self.parts)
        checks.check_sample(self.parts, update.prepare)
        if is_graphed:
            # The first updates are eager on purpose, which an optimizer that was copied would warn of.
            optimizer._warned_capturable_if_run_uncaptured = True
        self._guard = Guard(self.parts)
        self._pacing = Pacing(self.parts, update, self._guard)

    @property
    def batches(self) -> int:
        """Base batches in an epoch."""
        return self.parts.data.batches

    @property
    def updates(self) -> int:
        """Updates made so far."""
        return self.parts.progress.updates

    @property
    def summary(self) -> EpochSummary:
        """The epoch in progress, up to the updates that were settled last."""
        return self.parts.host.schedule.summary

    @property
    def visit_counts(self) -> list[int]:
        """Visits to each batch of the epoch that was begun last, in order of position. Waits for the device.

        In mid-epoch, only those of batches that are done with are of this epoch.

        Raises:
            ProtocolError: If the loop was constructed without ``count_visits=True``, or updates are in flight.
        """
        if not self.counts_visits:
            raise ProtocolError("visits are not counted; construct the loop with count_visits=True")
        if self.parts.progress.in_flight:
            raise ProtocolError("updates are in flight; call settle(now=True) first")
        with self.parts.place.on_stream():
            return self.parts.counters.read_tally() or []

    @property
    def order(self) -> Tensor:
        """The samples of the epoch that was begun last, by index, in the order of its batches; on the device.

        Raises:
            ProtocolError: If a DataLoader has the order, as with ``StagedData``.
        """
        data = self.parts.data
        if not isinstance(data, ResidentData):
            raise ProtocolError("the order of StagedData is its DataLoader's; ask its sampler")
        return data.order

    def run_epoch(self) -> EpochSummary:
        """Train to the end of the epoch, from its begin or from where ``run_updates`` or a loaded state left it.

        Returns:
            The epoch's summary, with the number of times that the host waited for the cursor; with ``window``, that
            of the window that ended last.

        Until updates are captured, a shorter last batch's too, which takes some four epochs (on the CPU: until the
        cursor was first read), each call first copies model and optimizer to the host, which waits for the device.

        Raises:
            DeviceLoopError: If the update cannot be captured, or the device's memory does not suffice. Until updates
                are captured (on the CPU: until the cursor was first read), any error leaves everything as it was
                before the call; from then on, the weights are where the last update left them.
        """
        with self._guard.on():
            while True:
                self._pacing.enqueue(None)
                if (summary := self._pacing.settle(now=True)) is not None:
                    return summary

    def run_updates(self, updates: int) -> EpochSummary | None:
        """Train for so many updates, or to the end of the epoch if that comes first; then return its summary."""
        stop = self.updates + updates
        summary = None
        with self._guard.on():
            while summary is None and self.updates < stop:
                self._pacing.enqueue(stop - self.updates)
                summary = self._pacing.settle(now=True)
        return summary

    def enqueue(self, updates: int | None = None) -> None:
        """Enqueue updates that are certainly needed, at most ``updates`` of them, and return without waiting.

        Leave model and optimizer alone until ``settle(now=True)`` has returned: the updates are made on a stream of
        the loop's own. An error that leaves everything as before leaves it as before the first ``enqueue`` that has
        not been settled.
        """
        with self._guard.on():
            self._pacing.enqueue(updates)

    def settle(self, *, now: bool = False) -> EpochSummary | None:
        """Read the cursor, if all updates that are certainly needed have been enqueued, or if ``now``.

        Returns:
            The epoch's summary if it is over; None otherwise.
        """
        return self._pacing.settle(now=now)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, model and optimizer included; tensors are on the host.

        It may be taken between epochs, and in the middle of one after ``run_updates``.

        Raises:
            ProtocolError: If updates are in flight.
        """
        return saving.state_of(self.parts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; docs/what-may-change.md says what may be another here.

        Everything is loaded in place, so captured graphs stay valid, unless the optimizer has state for other
        parameters there than here, as before its first step: then updates are captured anew.

        Raises:
            StateError: If it is of another version, model, optimizer or schedule, or in mid-epoch of other data.
        """
        saving.load(self.parts, state_dict)
