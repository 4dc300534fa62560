"""Saved states: plain JSON types with a version, checked whole before anything is assigned."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from dataclasses import fields as fields_of
from typing import Any

from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.options import Options
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary

VERSION = 1

# What every program that reads and writes JSON holds, and every tensor.
_LARGEST_COUNT = 2**63 - 1

# Not in states that were saved before these were counted, nor in those in which they are what they begin as.
_OPTIONAL_NUMBERS = {"skipped_batches": 0, "strictness": 1.0}


def pack_schedule(
    options: dict[str, Any], state: State, last_summary: EpochSummary | None, ranks: int
) -> dict[str, Any]:
    """A schedule as a dictionary."""
    numbers = {name: value for name, value in asdict(state).items() if value != _OPTIONAL_NUMBERS.get(name, ...)}
    packed = {
        "version": VERSION,
        "options": options,
        "state": numbers,
        "last_summary": None if last_summary is None else last_summary.as_dict(),
    }
    return {**packed, "ranks": ranks} if ranks > 1 else packed


def unpack_schedule(
    options: Options, packed: object, saved_options: dict[str, Any] | None = None, ranks: int = 1
) -> tuple[State, EpochSummary | None]:
    """The parts of ``pack_schedule``'s dictionary, checked against ``options``, and more of them if there are more.

    Raises:
        StateError: If it is of another version or of other options, or does not hold together.
    """
    fields = check_keys("the schedule's state", packed, {"version", "options", "state", "last_summary"}, {"ranks"})
    check_version(fields["version"])
    check_options(options.to_save() if saved_options is None else saved_options, fields["options"])
    state, summary = _unpack_state(options, fields["state"]), _unpack_summary(fields["last_summary"])
    if (-1 if summary is None else summary.epoch) != state.epoch - 1:
        raise StateError(
            f"the state is in epoch {state.epoch}, and its last summary is that of "
            f"{'none' if summary is None else summary.epoch}; pass what state_dict() returned, unchanged"
        )
    saved_ranks = check_count("ranks", fields.get("ranks", 1), least=1)
    if state.progress and saved_ranks != ranks:
        raise StateError(
            f"the state was saved in the middle of an epoch of {saved_ranks} ranks, and there are {ranks} here. Load "
            "one that was saved between two epochs, or go on with as many ranks"
        )
    return state, summary


def check_keys(what: str, packed: object, expected: set[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """``packed``, if it is a dictionary with just these keys, or these and some of the optional ones."""
    if not isinstance(packed, dict):
        raise StateError(f"{what} is {type(packed).__name__}, not a dictionary; pass what state_dict() returned")
    missing, extra = expected - set(packed), set(packed) - expected - {*optional}
    if missing or extra:
        raise StateError(
            f"{what} lacks {sorted(missing)} and has {shown(sorted(map(shown, extra)))} besides; "
            "pass what state_dict() returned, unchanged"
        )
    return packed


def check_version(version: object) -> None:
    """Refuse every version but this one."""
    if not _are_same(version, VERSION):
        raise StateError(
            f"the state is of version {shown(version)}; this release reads version {VERSION}. "
            "Load it with the release that saved it, or start the epoch anew without it"
        )


def check_options(ours: dict[str, Any], saved: object) -> None:
    """Refuse a state that was saved under other options."""
    fields = check_keys("the state's options", saved, set(ours))
    differing = [
        f"{name} (saved {shown(fields[name])}, here {shown(ours[name])})"
        for name in ours
        if not _are_same(fields[name], ours[name])
    ]
    if differing:
        raise StateError(
            f"the state was saved with other options: {', '.join(differing)}. "
            "Construct with the saved options to go on, or start anew without the state"
        )


def check_count(name: str, value: object, *, least: int = 0) -> int:
    """``value``, if it is a whole number of at least ``least``, and of at most 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _LARGEST_COUNT:
        size = "" if not isinstance(value, int) or value <= _LARGEST_COUNT else " and below 2**63"
        raise StateError(f"{name} is {shown(value)} in the state; it must be a whole number of at least {least}{size}")
    return value


def check_number(name: str, value: object, where: str) -> float:
    """``value`` as a float, if it is a finite number. Some writers of JSON turn 2.0 into 2.

    Raises:
        StateError: If it is anything else.
    """
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise StateError(f"{name} is {shown(value)} in {where}; it must be a number, and finite")
    return number


def _are_same(saved: object, ours: object) -> bool:
    """Equality of JSON values, whatever the saved one may be: a tensor is equal to nothing, and ``True`` is not 1."""
    if isinstance(ours, (int, float)) and not isinstance(ours, bool):
        return isinstance(saved, (int, float)) and not isinstance(saved, bool) and saved == ours
    return isinstance(saved, type(ours)) and saved == ours


def _unpack_state(options: Options, packed: object) -> State:
    required = {field.name for field in fields_of(State)} - set(_OPTIONAL_NUMBERS)
    fields = check_keys("the state's numbers", packed, required, _OPTIONAL_NUMBERS)
    state = State()
    for name, value in fields.items():
        if name in ("loss_sum", "strictness") or (name == "threshold" and value is not None):
            setattr(state, name, check_number(name, value, "the state"))
        elif name != "threshold":
            setattr(state, name, check_count(name, value))
    _check_consistency(options, state)
    return state


def _check_consistency(options: Options, state: State) -> None:
    broken = []
    if options.max_visits is not None and state.visits >= options.max_visits:
        broken.append(f"{state.visits} visits to an unfinished batch, but max_visits is {options.max_visits}")
    if state.strictness <= 0 or (state.strictness != 1 and options.budget is None):
        broken.append(f"a strictness of {state.strictness}, with budget={options.budget}")
    if options.window is not None and state.batches >= options.window:
        broken.append(f"{state.batches} batches, but window is {options.window}")
    if state.loss_count > state.batches + state.repeats:
        broken.append(f"{state.loss_count} losses from {state.batches + state.repeats} visits")
    if state.loss_sum and not state.loss_count:
        broken.append(f"a sum of losses of {state.loss_sum}, but no loss")
    if state.threshold is not None and state.epoch < options.warmup_epochs:
        broken.append(f"a threshold in epoch {state.epoch}, within {options.warmup_epochs} warm-up epochs")
    if broken:
        raise StateError(f"the state does not hold together: {'; '.join(broken)}. It was changed after it was saved")


def _unpack_summary(packed: object) -> EpochSummary | None:
    if packed is None:
        return None
    fields = check_keys("the last summary", packed, {field.name for field in fields_of(EpochSummary)})
    return EpochSummary(**{name: _unpack_summary_field(name, value) for name, value in fields.items()})


def _unpack_summary_field(name: str, value: object) -> Any:
    if value is None and name in ("threshold", "mean_loss", "host_reads"):
        return None
    if name in ("threshold", "mean_loss", "overhead"):
        return check_number(name, value, "the last summary")
    return check_count(name, value)
