"""Everything that training changes, saved and put back in place: captured graphs hold on to addresses."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.fitting import without_none

# What training changes, beside counters and generators.
Trained: TypeAlias = tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler | None]


def take(trained: Trained) -> dict[str, Any]:
    """Copies, on the host, of the model's, the optimizer's and the scaler's states."""
    model, optimizer, scaler = trained
    return {
        "model": _to_host(model.state_dict()),
        "optimizer": _to_host(optimizer.state_dict()),
        "scaler": None if scaler is None else copy.deepcopy(scaler.state_dict()),
    }


def put_back(saved: dict[str, Any], trained: Trained) -> bool:
    """Undo everything since ``take``; of the optimizer, ``saved`` has what ``fitting.fit_optimizer`` makes of a state.

    Returns:
        Whether every tensor is still where it was. An optimizer's state is not, if it was of other parameters.
    """
    model, optimizer, scaler = trained
    model.load_state_dict(saved["model"])
    is_in_place = _load_optimizer(saved["optimizer"], optimizer)
    if scaler is not None:
        scaler.load_state_dict(saved["scaler"])
    return is_in_place


def _to_host(value: Any) -> Any:
    """``value`` with every tensor in it copied to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_host(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_host(entry) for entry in value)
    return value


def _load_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    here = optimizer.state_dict()
    groups_before = [dict(group) for group in optimizer.param_groups]
    is_in_place = _names_of(here["state"]) == _names_of(saved["state"])
    if is_in_place:
        for index, entries in saved["state"].items():
            for name, value in without_none(entries).items():
                if isinstance(here["state"][index][name], Tensor):
                    here["state"][index][name].copy_(value)
                else:
                    here["state"][index][name] = value
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
