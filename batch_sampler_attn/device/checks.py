"""What a device loop refuses before it trains, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.data import Batch, ResidentData
from batch_sampler_attn.device.parts import Parts
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.errors import OptionError

# The default ignore_index of torch's classification losses.
IGNORED_TARGET = -100


def check_devices(model: nn.Module, data: ResidentData | StagedData) -> torch.device:
    """The one device that model and data are on.

    Raises:
        OptionError: If there is none, or more than one.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if not devices:
        raise OptionError("the model has no parameters; there is nothing to train")
    if len(devices) > 1:
        raise OptionError(f"the model is on {sorted(map(str, devices))}; a device loop needs it on one device")
    device = devices.pop()
    if data.device != device:
        raise OptionError(f"the data is on {data.device} and the model on {device}; move both to one device")
    return device


def check_is_alone(model: nn.Module) -> None:
    """Refuse a model that exchanges gradients with other processes, for updates that are captured.

    Raises:
        OptionError: If it does: a capture takes other preparations then, and all processes equally many updates.
    """
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise OptionError(
                "the model has a DistributedDataParallel, and a device loop trains in one process: with ranks, write "
                "the loop by hand (examples/ddp.py), or pass graph=False for plain training"
            )


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    scaler: torch.amp.GradScaler | None,
    *,
    graph: bool,
    may_wait: bool = False,
) -> None:
    """Refuse optimizers of other parameters, and those whose step needs a closure, or cannot be captured if ``graph``.

    The host may be asked in every update if ``may_wait``, as with ``graph=False``.

    Raises:
        OptionError: If so.
    """
    name = type(optimizer).__name__
    parameters = {parameter: parameter.device for parameter in model.parameters()}
    if any(parameter not in parameters for group in optimizer.param_groups for parameter in group["params"]):
        raise OptionError(
            f"{name} has parameters that the model has not; construct it with those of this model, and make one module "
            "of the model and a loss that has parameters"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptionError("LBFGS evaluates the loss several times a step; use an optimizer that takes one gradient")
    if scaler is not None and scaler.is_enabled() and not may_wait and not _scales_by_itself(optimizer):
        raise OptionError(
            f"with a gradient scaler the step of {name} asks the host whether to skip; construct it with fused=True, "
            "use bfloat16 autocast without a scaler, or pass graph=False"
        )
    if not graph:
        return
    if any(group.get("capturable") is False for group in optimizer.param_groups):
        raise OptionError(
            f"{name} was made with capturable=False, so its step reads values on the host; construct it with "
            "capturable=True (and fused=True, which is faster), or pass graph=False"
        )
    if any(
        isinstance(group.get("lr"), Tensor) and _reads_its_rate(optimizer, group) for group in optimizer.param_groups
    ):
        raise OptionError(
            f"lr of {name} is a tensor, which its step reads on the host; construct {name} with fused=True if it takes "
            "that, without foreach=False, or make lr a number"
        )
    devices = set(parameters.values())
    for group in optimizer.param_groups:
        for option, value in group.items():
            if isinstance(value, Tensor) and value.device not in devices:
                raise OptionError(
                    f"{option} of {name} is a tensor on {value.device}, where a captured step cannot read it; "
                    f"make it a number, or a tensor on {devices.pop()}"
                )


def _reads_its_rate(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether a step makes a number of a rate that is a tensor."""
    if isinstance(optimizer, torch.optim.SGD):
        return not group.get("fused")
    return isinstance(optimizer, torch.optim.RMSprop) and group.get("foreach") is False


def _scales_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step finds out on the device whether to skip: a fused one, in every group."""
    is_fused = all(group.get("fused", True) for group in optimizer.param_groups)
    return is_fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def check_sample(parts: Parts, prepare: Callable[[Batch], Tensor]) -> None:
    """Look at the loss of a few samples, where they are at hand, in evaluation mode: nothing of the model changes.

    Args:
        parts: The loop's; the modes of the model's modules are as before afterwards.
        prepare: Makes a batch's inputs what the model gets.

    Raises:
        OptionError: If the loss is not one number, or class targets are out of the outputs' range.
    """
    data, recipe, model = parts.data, parts.recipe, parts.model
    if not isinstance(data, ResidentData):
        return
    few, augmentation = min(2, len(data.inputs)), recipe.augmentation
    uniforms = None if augmentation is None else torch.full((few, augmentation.draws), 0.5, device=data.device)
    batch = data.sample(few, uniforms)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(data.device.type, dtype=recipe.autocast, enabled=recipe.autocast is not None),
        ):
            outputs = model(prepare(batch))
            if _are_classes(outputs, batch.targets):
                _check_classes(data.targets, outputs.shape[1])
            loss = recipe.loss_fn(outputs, batch.targets)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise OptionError(f"loss_fn returned {shape}; it must return one number a batch, such as the mean")


def _check_classes(targets: Tensor, classes: int) -> None:
    # What cross-entropy ignores by default may stand among the classes.
    lowest, highest = int(torch.where(targets == IGNORED_TARGET, 0, targets).min()), int(targets.max())
    if lowest < 0 or highest >= classes:
        raise OptionError(
            f"targets are {lowest} to {highest}, but the model has {classes} outputs; class targets must be 0 to "
            f"{classes - 1}"
        )


def _are_classes(outputs: object, targets: Tensor) -> bool:
    return (
        isinstance(outputs, Tensor)
        and outputs.dim() == 2
        and targets.dim() == 1
        and not (targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool)
    )
