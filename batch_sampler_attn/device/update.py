"""One update, as a function of what lies on the device: the thing that is run eagerly or captured as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from batch_sampler_attn.device.data import Batch
from batch_sampler_attn.device.parts import Parts


class Update:
    """Gather the batch at the cursor, forward, loss, backward, optimizer, and the schedule's visit.

    The model is trained in the modes that its modules are in now; in training mode, if none is.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        is_in_training = any(module.training for module in parts.model.modules())
        self._modes = {module: module.training or not is_in_training for module in parts.model.modules()}

    def set_modes(self) -> None:
        """Put every module in the mode that it is trained in, whatever was done to the model in between."""
        for module, is_training in self._modes.items():
            module.training = is_training

    @property
    def kinds(self) -> list[Callable[[], None]]:
        """The updates that an epoch of this data consists of."""
        data = self._parts.data
        return [self.full_batch] * (data.full_batches > 0) + [self.tail_batch] * (data.tail_size > 0)

    def full_batch(self) -> None:
        """Train once on the full batch at the cursor."""
        self._train(self._parts.data.batch(self._parts.counters.cursor))

    def tail_batch(self) -> None:
        """Train once on the last, shorter batch."""
        self._train(self._parts.data.tail())

    def prepare(self, batch: Batch) -> Tensor:
        """The batch's inputs as the model gets them."""
        inputs, recipe = batch.inputs, self._parts.recipe
        if inputs.dtype is torch.uint8:
            inputs = inputs.float().div(255)
        if recipe.normalize is not None:
            mean, deviation = recipe.normalize
            inputs = (inputs - mean) / deviation
        if recipe.augmentation is not None:
            uniforms = batch.uniforms
            if uniforms is None:
                shape = (len(inputs), recipe.augmentation.draws)
                uniforms = torch.rand(shape, generator=self._parts.randomness.fresh, device=inputs.device)
            inputs = recipe.augmentation.apply(inputs, uniforms[: len(inputs)])
        if recipe.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _train(self, batch: Batch) -> None:
        model, optimizer, scaler = self._parts.trained
        recipe, inputs = self._parts.recipe, self.prepare(batch)
        # Gradients that are None before a capture are written, not added to, by every replay.
        optimizer.zero_grad(set_to_none=True)
        autocast = recipe.autocast
        # A cast of a weight that a capture finds in the cache would be missing from the graph.
        with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None, cache_enabled=False):
            loss = recipe.loss_fn(model(inputs), batch.targets)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            with _whole_step(scaler, optimizer):
                scaler.step(optimizer)
                scaler.update()
        self._parts.counters.visit(loss)


@contextmanager
def _whole_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have a step that does not come to its end leave nothing that the next one would take for its own."""
    try:
        yield
    except BaseException:
        # On a fused optimizer for the time of its step; the next multiplies its scale by what it finds here.
        for name in ("grad_scale", "found_inf"):
            vars(optimizer).pop(name, None)
        # Whether the gradients are unscaled, or the step is made: those of the next update are not, and it is not.
        getattr(scaler, "_per_optimizer_states", {}).clear()
        raise
