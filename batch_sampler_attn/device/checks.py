"""What a device loop refuses before it trains, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.device.data import ResidentData
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.device.update import Recipe, Update
from batch_sampler_attn.errors import DeviceLoopError, OptionError, ProtocolError
from batch_sampler_attn.schedule import BatchAttentionSchedule

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


def check_schedule(schedule: BatchAttentionSchedule | None) -> None:
    """Refuse what is not a schedule, or belongs to a DataLoader.

    Raises:
        OptionError: If so.
    """
    if schedule is None:
        return
    if type(schedule) not in (BatchAttentionSchedule, EqualComputeControl):
        raise OptionError(
            f"schedule is {schedule!r}; pass a BatchAttentionSchedule, an EqualComputeControl, or None for plain "
            "training"
        )
    if schedule._sampler is not None:
        raise OptionError("the schedule belongs to a BatchAttentionSampler; a device loop needs one of its own")


def check_is_between_epochs(schedule: BatchAttentionSchedule) -> None:
    """Refuse to begin an epoch in the middle of another.

    Raises:
        ProtocolError: If the schedule is in one.
    """
    if schedule.options.window is None and (schedule.batches or schedule.visits):
        raise ProtocolError(
            f"the schedule is in the middle of an epoch, after {schedule.batches} batches of another loop; end that "
            "epoch there, or forget it with schedule.abandon_epoch()"
        )


def check_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    scaler: torch.amp.GradScaler | None,
    *,
    graph: bool,
    may_wait: bool = False,
) -> None:
    """Refuse optimizers of other parameters, and those whose step cannot be captured or needs a closure.

    Args:
        optimizer: The optimizer.
        model: Whose parameters it has to have.
        scaler: The gradient scaler, if there is one.
        graph: Whether the step is to be captured.
        may_wait: Whether the host may be asked in every update, as with ``graph=False``.

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
    devices = set(parameters.values())
    for group in optimizer.param_groups:
        for option, value in group.items():
            if isinstance(value, Tensor) and value.device not in devices:
                raise OptionError(
                    f"{option} of {name} is a tensor on {value.device}, where a captured step cannot read it; "
                    f"make it a number, or a tensor on {devices.pop()}"
                )


def _scales_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step finds out on the device whether to skip: a fused one, in every group."""
    is_fused = all(group.get("fused", True) for group in optimizer.param_groups)
    return is_fused and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def has_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer has its state for every parameter that it steps, or keeps none.

    A state that is made inside a capture is made again, as zeros, by every replay.
    """
    stepped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not optimizer.state or all(parameter in optimizer.state for parameter in stepped)


def numbers_in_state(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The numbers, other than tensors, in the optimizer's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, (int, float))]


def check_optimizer_state(optimizer: torch.optim.Optimizer, device: torch.device, numbers_before: list[Any]) -> None:
    """Refuse a state that the host keeps: a captured step would use it as it was at the capture, for ever.

    Args:
        optimizer: After a few eager steps.
        device: Where the state has to be.
        numbers_before: ``numbers_in_state``, one step ago.

    Raises:
        DeviceLoopError: If there is one.
    """
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    is_elsewhere = any(tensor.device.type != device.type for tensor in tensors)
    if is_elsewhere or numbers_in_state(optimizer) != numbers_before:
        raise DeviceLoopError(
            f"{type(optimizer).__name__} keeps a part of its state on the host, which a captured step does not change; "
            "use an optimizer that takes capturable=True, such as Adam, or SGD, or pass graph=False"
        )


def check_recipe(recipe: Recipe) -> None:
    """Refuse values that no update can be made with.

    Raises:
        OptionError: If there are any.
    """
    augmentation = recipe.augmentation
    if augmentation is not None and (not callable(augmentation.apply) or augmentation.draws < 1):
        raise OptionError(f"augmentation is {augmentation!r}; it needs a callable and at least 1 draw for each sample")
    if recipe.scaler is not None and recipe.autocast is None:
        raise OptionError("a gradient scaler without autocast scales for nothing; pass autocast=torch.float16 too")


def check_sample(update: Update) -> None:
    """Look at the loss of a few samples, where they are at hand.

    Raises:
        OptionError: As ``check_targets``.
    """
    data, recipe = update.data, update.recipe
    if not isinstance(data, ResidentData):
        return
    few, augmentation = min(2, len(data.inputs)), recipe.augmentation
    uniforms = None if augmentation is None else torch.full((few, augmentation.draws), 0.5, device=data.device)
    batch = data.sample(few)._replace(uniforms=uniforms)
    with torch.autocast(data.device.type, dtype=recipe.autocast, enabled=recipe.autocast is not None):
        check_targets(update.model, update.loss_fn, update.prepare(batch), batch.targets, data.targets)


def check_targets(
    model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor], inputs: Tensor, targets: Tensor, all_targets: Tensor
) -> None:
    """Look at the loss of a few samples, in evaluation mode: nothing of the model changes.

    Args:
        model: The model; its modules' modes are as before afterwards.
        loss_fn: From (outputs, targets) to a loss.
        inputs: As the model gets them, a few samples.
        targets: Theirs.
        all_targets: Every target, to be compared with the number of outputs.

    Raises:
        OptionError: If the loss is not one number, or class targets are out of the outputs' range.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(inputs)
            if _are_classes(outputs, targets):
                # What cross-entropy ignores by default may stand among the classes.
                lowest = int(torch.where(all_targets == IGNORED_TARGET, 0, all_targets).min())
                highest = int(all_targets.max())
                if lowest < 0 or highest >= outputs.shape[1]:
                    raise OptionError(
                        f"targets are {lowest} to {highest}, but the model has {outputs.shape[1]} outputs; class "
                        f"targets must be 0 to {outputs.shape[1] - 1}"
                    )
            loss = loss_fn(outputs, targets)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise OptionError(f"loss_fn returned {shape}; it must return one number a batch, such as the mean")


def _are_classes(outputs: object, targets: Tensor) -> bool:
    return (
        isinstance(outputs, Tensor)
        and outputs.dim() == 2
        and targets.dim() == 1
        and not (targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool)
    )
