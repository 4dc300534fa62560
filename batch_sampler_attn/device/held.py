"""What a captured update holds on to: addresses of tensors and values of numbers, as they were at the capture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def settings_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What a graph knows of each parameter group: numbers by value, tensors by address."""
    return [
        {name: _as_captured(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """What a graph knows of every tensor of the model and of the optimizer: where and how it lies, if it is trained."""
    return _held([*model.parameters(), *model.buffers()]) + stepped_tensors_of(optimizer)


def stepped_tensors_of(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The same, of the optimizer's parameters and of what it keeps for them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [value for parameter in parameters for value in optimizer.state.get(parameter, {}).values()]
    return _held([*parameters, *(value for value in kept if isinstance(value, Tensor))])


def attributes_of(parts: Iterable[object]) -> list[Tensor]:
    """The tensors that modules among ``parts`` have as attributes: plain ones, and but for the model's own all others.

    Args:
        parts: The model first, then what else an update calls.
    """
    found: list[Tensor] = []
    for number, part in enumerate(parts):
        if isinstance(part, nn.Module):
            found += [
                value for module in part.modules() for value in vars(module).values() if isinstance(value, Tensor)
            ]
            found += [*part.parameters(), *part.buffers()] if number else []
    # Without what they were computed from.
    return [value.detach() for value in found]


def numbers_in_state(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The numbers, other than tensors, in the optimizer's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in values if isinstance(value, (int, float))]


def _held(tensors: Iterable[Tensor]) -> list[Any]:
    return [
        (id(tensor), tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.requires_grad)
        if tensor.layout is torch.strided
        else id(tensor)
        for tensor in tensors
    ]


def _as_captured(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "tensor", value.data_ptr()
    return tuple(map(_as_captured, value)) if isinstance(value, (tuple, list)) else value
