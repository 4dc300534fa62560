"""Saved states: plain JSON types with a version and a fingerprint, fully checked before anything is assigned."""

from __future__ import annotations

import contextlib
import json
import operator
import zlib
from collections.abc import Sequence
from typing import Any

from batch_sampler_attn.errors import StateError, short_repr

VERSION = 3


def seal(state: dict[str, Any]) -> dict[str, Any]:
    """Add to a state of JSON types the version and the fingerprint that ``unseal`` checks."""
    versioned = {"version": VERSION, **state}
    return {**versioned, "fingerprint": _fingerprint(versioned)}


def unseal(what: str, packed: object, keys: set[str]) -> dict[str, Any]:
    """The state that ``seal`` received, if it has these keys and no value has changed; else raise StateError.

    ``what`` is its name in messages, such as "the schedule's state".
    """
    if not isinstance(packed, dict):
        raise StateError(f"{what} is {type(packed).__name__}, not a dictionary; pass what state_dict() returned")
    version = packed.get("version")
    if type(version) is not int or version != VERSION:
        raise StateError(
            f"{what} is of version {short_repr(version)}; this release reads version {VERSION}. Load it with the "
            "release that saved it, or start without a state"
        )
    fields = {name: value for name, value in packed.items() if name != "fingerprint"}
    has_all = keys <= set(fields) <= keys | {"version"}
    try:
        is_intact = short_repr(packed.get("fingerprint")) == str(_fingerprint(fields))
    except (TypeError, ValueError, RecursionError):  # not JSON types
        is_intact = False
    if not has_all or not is_intact:
        raise StateError(
            f"{what} is of something else, or was changed or damaged after it was saved: it has "
            f"{short_repr(sorted(map(str, packed)))}. Pass what state_dict() returned, or load another checkpoint"
        )
    return fields


def check_options(ours: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a state that was saved with other options."""
    names = {**ours, **saved}
    differing = [
        f"{name} (saved {short_repr(saved.get(name))}, here {short_repr(ours.get(name))})"
        for name in names
        if saved.get(name) != ours.get(name)
    ]
    if differing:
        raise StateError(
            f"the state was saved with other options: {', '.join(differing)}. Construct with the saved options to "
            "resume, or start without the state"
        )


def check_ranks(saved: int, here: int, *, is_in_epoch: bool) -> None:
    """Refuse to resume in mid-epoch on a different number of ranks."""
    if is_in_epoch and saved != here:
        raise StateError(
            f"the state was saved in mid-epoch on {saved} ranks, and there are {here} here. Load one that was saved "
            f"between two epochs, or use {saved} ranks"
        )


def plain_indices(indices: Sequence[Any]) -> list[int | str]:
    """Dataset indices as JSON types; StateError if one is neither a whole number nor a string."""
    plain = [plain_index(index) for index in indices]
    if not all(isinstance(index, (int, str)) for index in plain):
        raise StateError(f"indices are {short_repr(plain)}; only whole numbers and strings can be saved and loaded")
    return plain


def plain_index(index: Any) -> Any:
    """A NumPy integer or 0-d tensor as an int; any other index unchanged."""
    if type(index) is int or isinstance(index, str):
        return index
    if getattr(index, "shape", None) == () and hasattr(index, "__index__"):
        with contextlib.suppress(TypeError):  # a number that is not whole
            return operator.index(index)
    return index


def _fingerprint(state: dict[str, Any]) -> int:
    text = json.dumps(_canonical(state), sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())


def _canonical(value: Any) -> Any:
    """A form that is the same for equal states, even if a JSON writer turned 2.0 into 2 or a tuple into a list."""
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, str) and len(value) > 1000:
        return zlib.crc32(value.encode())  # a tenth of the time of writing it as JSON
    return int(value) if isinstance(value, float) and value.is_integer() else value
