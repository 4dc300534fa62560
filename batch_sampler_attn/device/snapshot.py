"""Everything that training changes, saved and put back in place: captured graphs hold on to addresses."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.errors import StateError


def take(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """Copies, on the host, of the model's, the optimizer's and the scaler's states."""
    return {
        "model": to_host(model.state_dict()),
        "optimizer": to_host(optimizer.state_dict()),
        "scaler": None if scaler is None else copy.deepcopy(scaler.state_dict()),
    }


def put_back(
    saved: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> None:
    """Undo everything since ``take``.

    Raises:
        StateError: If the saved states are of another model, optimizer or scaler.
    """
    if (saved["scaler"] is None) != (scaler is None):
        raise StateError("the state was saved with a gradient scaler and there is none here, or the other way round")
    try:
        model.load_state_dict(saved["model"])
        _load_optimizer(saved["optimizer"], optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise StateError(f"the state is of another model or optimizer: {error}") from error
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])


def to_host(value: Any) -> Any:
    """``value`` with every tensor in it copied to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_host(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_host(entry) for entry in value)
    return value


def _load_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    here = optimizer.state_dict()
    if here["state"].keys() != saved["state"].keys():
        # Nothing was captured with a state that does not exist yet, or that is to be forgotten.
        optimizer.load_state_dict(copy.deepcopy(saved))
        return
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({name: value for name, value in copy.deepcopy(saved_group).items() if name != "params"})
    for index, entries in saved["state"].items():
        for name, value in entries.items():
            target = here["state"][index][name]
            if isinstance(target, Tensor):
                target.copy_(value)
            else:
                here["state"][index][name] = value
