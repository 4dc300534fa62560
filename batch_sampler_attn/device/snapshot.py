"""Everything that training changes, saved and put back in place: captured graphs hold on to addresses."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.fitting import without_none


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
) -> bool:
    """Undo everything since ``take``.

    Args:
        saved: Of this model, this scaler and, as ``fitting.fit_optimizer`` has it, of this optimizer.
        model: The model.
        optimizer: Its optimizer.
        scaler: The gradient scaler, if there is one.

    Returns:
        Whether every tensor is still where it was. An optimizer's state is not, if it was of other parameters.
    """
    model.load_state_dict(saved["model"])
    is_in_place = _load_optimizer(saved["optimizer"], optimizer)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    return is_in_place


def to_host(value: Any) -> Any:
    """``value`` with every tensor in it copied to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: to_host(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_host(entry) for entry in value)
    return value


def _load_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    here = optimizer.state_dict()
    groups_before = [dict(group) for group in optimizer.param_groups]
    is_in_place = _names_of(here["state"]) == _names_of(saved["state"])
    if is_in_place:
        for index, entries in saved["state"].items():
            _load_entries(entries, here["state"][index])
    else:
        optimizer.load_state_dict(copy.deepcopy(saved))
    for group, before, theirs in zip(optimizer.param_groups, groups_before, saved["param_groups"], strict=True):
        for name, value in theirs.items():
            ours = before.get(name)
            if name == "params":
                continue
            if isinstance(ours, Tensor):
                group[name] = ours.copy_(torch.as_tensor(value))
            else:
                group[name] = value.item() if isinstance(value, Tensor) else copy.deepcopy(value)
    return is_in_place


def _names_of(state: dict[int, dict[str, Any]]) -> dict[int, set[str]]:
    names = {index: set(without_none(entries)) for index, entries in state.items()}
    return {index: kept for index, kept in names.items() if kept}


def _load_entries(saved: dict[str, Any], entries: dict[str, Any]) -> None:
    for name, value in without_none(saved).items():
        if isinstance(entries[name], Tensor):
            entries[name].copy_(value)
        else:
            entries[name] = value
