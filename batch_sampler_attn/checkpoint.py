"""Saved states: plain JSON types with a version, checked whole before anything is assigned."""

from __future__ import annotations

import math

from batch_sampler_attn.errors import StateError
from batch_sampler_attn.rule import EpochSummary, Options, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1


def pack_schedule(options: dict[str, Any], state: State, last_summary: EpochSummary | None) -> dict[str, Any]:
    """A schedule as a dictionary."""
    return {
        "version": VERSION,
        "options": options,
        "state": state.as_dict(),
        "last_summary": None if last_summary is None else last_summary.as_dict(),
    }


def unpack_schedule(
    options: Options, packed: object, saved_options: dict[str, Any] | None = None
) -> tuple[State, EpochSummary | None]:
    """The parts of ``pack_schedule``'s dictionary, checked against ``options``, and more of them if there are more.

    Raises:
        StateError: If it is of another version or of other options, or does not hold together.
    """
    fields = check_keys("the schedule's state", packed, {"version", "options", "state", "last_summary"})
    check_version(fields["version"])
    check_options(options.as_dict() if saved_options is None else saved_options, fields["options"])
    return _unpack_state(options, fields["state"]), _unpack_summary(fields["last_summary"])


def check_keys(what: str, packed: object, expected: set[str]) -> dict[str, Any]:
    """``packed``, if it is a dictionary with just these keys."""
    if not isinstance(packed, dict):
        raise StateError(f"{what} is {type(packed).__name__}, not a dictionary; pass what state_dict() returned")
    if set(packed) != expected:
        missing, extra = sorted(expected - set(packed)), sorted(map(str, set(packed) - expected))
        raise StateError(f"{what} lacks {missing} and has {extra} besides; pass what state_dict() returned, unchanged")
    return packed


def check_version(version: object) -> None:
    """Refuse every version but this one."""
    if version != VERSION:
        raise StateError(
            f"the state is of version {version!r}; this release reads version {VERSION}. "
            "Load it with the release that saved it, or start the epoch anew without it"
        )


def check_options(ours: dict[str, Any], saved: object) -> None:
    """Refuse a state that was saved under other options."""
    fields = check_keys("the state's options", saved, set(ours))
    differing = [f"{name} (saved {fields[name]!r}, here {ours[name]!r})" for name in ours if fields[name] != ours[name]]
    if differing:
        raise StateError(
            f"the state was saved with other options: {', '.join(differing)}. "
            "Construct with the saved options to go on, or start anew without the state"
        )


def check_count(name: str, value: object, *, least: int = 0) -> int:
    """``value``, if it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StateError(f"{name} is {value!r} in the state; it must be a whole number of at least {least}")
    return value


def _unpack_state(options: Options, packed: object) -> State:
    fields = check_keys("the state's numbers", packed, set(State.__slots__))
    state = State()
    for name, value in fields.items():
        if name not in ("threshold", "loss_sum"):
            check_count(name, value)
        elif name != "threshold" or value is not None:
            # Some writers of JSON turn 2.0 into 2.
            if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
                raise StateError(f"{name} is {value!r} in the state; it must be a number")
            value = float(value)
        setattr(state, name, value)
    _check_consistency(options, state)
    return state


def _check_consistency(options: Options, state: State) -> None:
    broken = []
    if options.max_visits is not None and state.visits >= options.max_visits:
        broken.append(f"{state.visits} visits to an unfinished batch, but max_visits is {options.max_visits}")
    if options.window is not None and state.batches >= options.window:
        broken.append(f"{state.batches} batches, but window is {options.window}")
    if state.loss_count > state.batches + state.repeats:
        broken.append(f"{state.loss_count} losses from {state.batches + state.repeats} visits")
    if state.threshold is not None and state.epoch < options.warmup_epochs:
        broken.append(f"a threshold in epoch {state.epoch}, within {options.warmup_epochs} warm-up epochs")
    if broken:
        raise StateError(f"the state does not hold together: {'; '.join(broken)}. It was changed after it was saved")


def _unpack_summary(packed: object) -> EpochSummary | None:
    if packed is None:
        return None
    fields = check_keys("the last summary", packed, set(EpochSummary.__slots__))
    for name, value in fields.items():
        if name in ("threshold", "mean_loss"):
            valid = value is None or isinstance(value, float)
        elif name == "host_reads":
            valid = value is None or check_count(name, value) == value
        elif name == "overhead":
            valid = isinstance(value, float)
        else:
            valid = check_count(name, value) == value
        if not valid:
            raise StateError(f"{name} is {value!r} in the last summary; it must be a number")
    return EpochSummary(**fields)
