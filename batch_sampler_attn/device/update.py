"""One update, as a function of what lies on the device: the thing that is run eagerly or captured as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.device.data import Augmentation, Batch, ResidentData
from batch_sampler_attn.device.randomness import Randomness
from batch_sampler_attn.device.staged import StagedData


class Recipe(NamedTuple):
    """How a batch becomes an update.

    Attributes:
        normalize: Mean and standard deviation of each channel, on the scale of the inputs; None for neither.
        augmentation: Random augmentation of the inputs; None for none.
        autocast: The type that autocast computes in; None for no autocast.
        scaler: A gradient scaler, for float16.
        channels_last: Whether images are laid out with their channels last.
    """

    normalize: tuple[Tensor, Tensor] | None = None
    augmentation: Augmentation | None = None
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    channels_last: bool = False


class Update:
    """Gather the batch at the cursor, forward, loss, backward, optimizer, and the schedule's visit.

    Args:
        model: Trained in the modes that its modules are in now; in training mode, if none is.
        optimizer: Of the model's parameters.
        loss_fn: From (outputs, targets) to a 0-d loss.
        data: The batches.
        counters: Told of the loss; moves the cursor.
        recipe: How a batch becomes an update.
        randomness: Fresh augmentation draws from it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Tensor], Tensor],
        data: ResidentData | StagedData,
        counters: DeviceCounters,
        recipe: Recipe,
        randomness: Randomness,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.data = data
        self.counters = counters
        self.recipe = recipe
        self.randomness = randomness
        is_in_training = any(module.training for module in model.modules())
        self._modes = {module: module.training or not is_in_training for module in model.modules()}

    def set_modes(self) -> None:
        """Put every module in the mode that it is trained in, whatever was done to the model in between."""
        for module, is_training in self._modes.items():
            module.training = is_training

    def full_batch(self) -> None:
        """Train once on the full batch at the cursor."""
        self._train(self.data.batch(self.counters.cursor))

    def tail_batch(self) -> None:
        """Train once on the last, shorter batch."""
        self._train(self.data.tail())

    def prepare(self, batch: Batch) -> Tensor:
        """The batch's inputs as the model gets them."""
        inputs = batch.inputs
        if inputs.dtype is torch.uint8:
            inputs = inputs.float().div(255)
        if self.recipe.normalize is not None:
            mean, deviation = self.recipe.normalize
            inputs = (inputs - mean) / deviation
        augmentation = self.recipe.augmentation
        if augmentation is not None:
            uniforms = batch.uniforms
            if uniforms is None:
                shape = (len(inputs), augmentation.draws)
                uniforms = torch.rand(shape, generator=self.randomness.fresh, device=inputs.device)
            inputs = augmentation.apply(inputs, uniforms[: len(inputs)])
        if self.recipe.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _train(self, batch: Batch) -> None:
        inputs = self.prepare(batch)
        # Gradients that are None before a capture are written, not added to, by every replay.
        self.optimizer.zero_grad(set_to_none=True)
        autocast = self.recipe.autocast
        # A cast of a weight that a capture finds in the cache would be missing from the graph.
        with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False):
            loss = self.loss_fn(self.model(inputs), batch.targets)
        scaler = self.recipe.scaler
        if scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
        self.counters.visit(loss)
