"""Whether a saved model, optimizer or scaler fits the one that is here, found out before anything is loaded."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.checkpoint import check_keys
from batch_sampler_attn.errors import StateError

# How a step is computed, not what it comes to: these stay as they are here.
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
# Learning-rate schedulers put these into the groups.
_SCHEDULED = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"})
# Releases of torch that came later have these besides; they have a value that stands for their absence.
_ADDED = IMPLEMENTATION | {"maximize", "nesterov", "decoupled_weight_decay", "param_names"}
# A step of 1e30 leaves single precision; a whole number of this size leaves a double's exactness.
_MOST = 1e30
_MOST_WHOLE = 2**53
_MANY_STEPS = 1_000_000


def check_model(saved: object, model: nn.Module) -> None:
    """Refuse the state of another model.

    Raises:
        StateError: If so.
    """
    here = model.state_dict()
    fields = check_keys("the model's state", saved, set(here))
    for name, value in here.items():
        _check_entry(f"{name} of the model", fields[name], value)


def check_scaler(saved: object, scaler: torch.amp.GradScaler | None) -> None:
    """Refuse the state of another scaler.

    Raises:
        StateError: If so.
    """
    if (saved is None) != (scaler is None):
        raise StateError("the state was saved with a gradient scaler and there is none here, or the other way round")
    if scaler is None:
        return
    ranges = {
        "scale": (0.0, _MOST),
        "growth_factor": (1.0, _MOST),
        "backoff_factor": (0.0, 1.0),
        "growth_interval": (0, 2**31),
        "_growth_tracker": (-1, 2**31),
    }
    fields = check_keys("the gradient scaler's state", saved, set(scaler.state_dict()))
    for name, (low, high) in ranges.items():
        if name not in fields:
            continue
        value, is_whole = fields[name], isinstance(low, int)
        number = None if isinstance(value, Tensor) else _as_number(value)
        if number is None or not low < number < high or (is_whole and not isinstance(number, int)):
            raise StateError(
                f"{name} of the gradient scaler is {value!r} in the state; it must be a {'whole ' * is_whole}number "
                f"above {low} and below {high}"
            )


def fit_optimizer(saved: object, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The saved state as it is to be loaded here: with this optimizer's ways to compute a step, and no empty entries.

    Raises:
        StateError: If it is of another optimizer, of other parameters or of other options that change its state.
    """
    fields = check_keys("the optimizer's state", saved, {"state", "param_groups"})
    here, groups = optimizer.state_dict(), fields["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(here["param_groups"]):
        raise StateError(
            f"the state is of an optimizer with other parameter groups than the {len(here['param_groups'])} here; "
            "construct the optimizer as it was"
        )
    fitted = [_fit_group(group, ours, optimizer) for group, ours in zip(groups, here["param_groups"], strict=True)]
    entries = fields["state"]
    indices = {index for group in here["param_groups"] for index in group["params"]}
    if not isinstance(entries, dict) or any(type(index) is not int or index not in indices for index in entries):
        raise StateError(
            "the state is of an optimizer with other parameters; construct model and optimizer as they were"
        )
    examples = _expect_entries(optimizer)
    state = {}
    for index, entry in entries.items():
        kept = _fit_entry(index, entry, examples.get(index))
        if kept:
            state[index] = kept
    return {"state": state, "param_groups": fitted}


def without_none(entry: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer keeps for a parameter, less what it does not keep yet."""
    return {name: value for name, value in entry.items() if value is not None}


# Groups ---------------------------------------------------------------------------------------------------


def _fit_group(saved: object, ours: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    kind = type(optimizer).__name__
    indices = saved.get("params") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or not _are_whole(indices) or indices != ours["params"]:
        raise StateError(f"a group of {kind} has other parameters in the state; construct the optimizer as it was")
    extra = [name for name in saved if name not in ours and name not in _SCHEDULED | _ADDED]
    missing = [name for name in ours if name not in saved and name not in _SCHEDULED | _ADDED]
    if extra or missing:
        raise StateError(
            f"the state is of another optimizer than {kind}: it lacks {missing} and has {extra} besides; construct the "
            "optimizer as it was"
        )
    fitted = {
        name: _fit_option(f"{name} of {kind}", value, ours[name]) if name in ours else value
        for name, value in saved.items()
        if name not in IMPLEMENTATION | {"params", "param_names"}
    }
    if "momentum" in ours and bool(fitted["momentum"]) != bool(ours["momentum"]):
        raise StateError(
            f"the state was saved with momentum={fitted['momentum']}, and here it is {ours['momentum']}; construct the "
            "optimizer as it was"
        )
    if _is_accepted(optimizer, ours) and not _is_accepted(optimizer, fitted):
        raise StateError(f"{kind} can make no steps with the options in the state: {fitted}")
    return {**ours, **fitted}


def _fit_option(name: str, value: object, ours: object) -> Any:
    if isinstance(value, (bool, int, float, str)) and type(value) is type(ours) and value == ours:
        return value
    if isinstance(ours, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(ours):
            raise StateError(f"{name} is {value!r:.80} in the state; it must be {len(ours)} numbers")
        return type(ours)(_fit_option(name, each, our) for each, our in zip(value, ours, strict=True))
    if isinstance(ours, (bool, str)):
        raise StateError(f"{name} is {value!r:.80} in the state, and here {ours!r}; construct the optimizer as it was")
    if ours is None and value is None:
        return value
    number = _as_number(value)
    if number is None or not abs(number) < (_MOST_WHOLE if isinstance(number, int) else _MOST):
        if type(value) is type(ours) and not isinstance(ours, (int, float, Tensor)):
            return value
        raise StateError(f"{name} is {value!r:.80} in the state; it must be a finite number")
    return float(number) if isinstance(ours, float) else number


def _is_accepted(optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> bool:
    """Whether the optimizer can be made and make steps with these options; others than torch's are not asked."""
    kind: Any = type(optimizer)
    if not f"{kind.__module__}.".startswith("torch.optim."):
        return True
    names = set(inspect.signature(kind).parameters) - IMPLEMENTATION - {"params", "lr"}
    # Schedulers may bring a learning rate to where no constructor would.
    asked = {name: value for name, value in options.items() if name in names}
    parameter = nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.zeros_like(parameter)
    try:
        twin = kind([parameter], lr=1e-3, **asked)
        twin.step()
        # Powers of the number of steps leave a float's range only later.
        for entry in twin.state.values():
            if "step" in entry:
                entry["step"] = entry["step"] + _MANY_STEPS
        twin.step()
    except Exception:  # whatever is wrong with them
        return False
    return True


# State of single parameters ---------------------------------------------------------------------------------


def _expect_entries(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What the optimizer keeps, or will keep, for each parameter; nothing where that cannot be known."""
    here = {index: without_none(entry) for index, entry in optimizer.state_dict()["state"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len([entry for entry in here.values() if entry]) == len(parameters):
        return here
    expected: dict[int, dict[str, Any]] = {}
    for device in ("meta", "cpu"):
        with contextlib.suppress(Exception):  # some read their tensors, which takes data; some need more than a step
            expected = _rehearse(optimizer, device)
            break
    return {**expected, **{index: entry for index, entry in here.items() if entry}}


def _rehearse(optimizer: torch.optim.Optimizer, device: str) -> dict[int, dict[str, Any]]:
    """The state after a first step, made by a twin on tensors of zeros."""
    groups = []
    for group in optimizer.param_groups:
        options = {name: value.item() if isinstance(value, Tensor) else value for name, value in group.items()}
        twins = [nn.Parameter(torch.zeros_like(parameter, device=device)) for parameter in group["params"]]
        for parameter in twins:
            parameter.grad = torch.zeros_like(parameter)
        groups.append({**options, **dict.fromkeys(IMPLEMENTATION & group.keys(), False), "params": twins})
    twin = type(optimizer).__new__(type(optimizer))
    twin.__setstate__({"defaults": optimizer.defaults, "state": defaultdict(dict), "param_groups": groups})
    twin.step()
    return {index: without_none(entry) for index, entry in twin.state_dict()["state"].items()}


def _fit_entry(index: int, saved: object, example: dict[str, Any] | None) -> dict[str, Any]:
    what = f"what the optimizer keeps for parameter {index}"
    if not isinstance(saved, dict):
        raise StateError(f"{what} is {type(saved).__name__} in the state; it must be a dictionary")
    kept = without_none(saved)
    if example is not None and kept and kept.keys() != example.keys():
        raise StateError(
            f"the state is of another optimizer: for parameter {index} it has {sorted(map(str, kept))}, and here there "
            f"are {sorted(example)}"
        )
    for name, value in kept.items():
        expected = None if example is None else example[name]
        number = None if isinstance(value, Tensor) else _as_number(value)
        if isinstance(expected, Tensor) and expected.numel() == 1 and number is not None and abs(number) < _MOST:
            # Older releases of torch kept a number.
            kept[name] = value = (
                torch.tensor(float(number), dtype=torch.float64).to(expected.dtype).view(expected.shape)
            )
        if example is not None:
            _check_entry(f"{name} for parameter {index} of the optimizer", value, expected)
        steps = _as_number(value) if name == "step" else 0
        if steps is None or not 0 <= steps < _MOST:
            raise StateError(
                f"step for parameter {index} of the optimizer is {value!r:.80} in the state; it counts steps"
            )
    return kept


def _check_entry(what: str, value: object, ours: object) -> None:
    if not isinstance(ours, Tensor):
        if type(value) is not type(ours):
            raise StateError(f"{what} is {type(value).__name__} in the state, and here {type(ours).__name__}")
        return
    if not isinstance(value, Tensor) or not _is_at_hand(value):
        raise StateError(f"{what} is {type(value).__name__} in the state; it must be a tensor with data")
    if value.shape != ours.shape or _kind(value) != _kind(ours):
        raise StateError(
            f"{what} has shape {tuple(value.shape)} and type {value.dtype} in the state, and here {tuple(ours.shape)} "
            f"and {ours.dtype}; construct model and optimizer as they were"
        )


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype is torch.bool


def _is_at_hand(value: object) -> bool:
    return not isinstance(value, Tensor) or (value.layout is torch.strided and not value.is_meta)


def _as_number(value: object) -> int | float | None:
    """A finite number, from a number or a tensor of one element; None for anything else."""
    if isinstance(value, Tensor) and value.numel() == 1 and _is_at_hand(value):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _are_whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)
