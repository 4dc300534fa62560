"""Batches in fresh containers for each visit, and the detection of tensors that a visit changed in place.

No framework is imported. A tensor is any object that counts its changes in an integer ``_version``, as PyTorch's do.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, MutableMapping, MutableSequence
from functools import lru_cache
from types import NoneType, SimpleNamespace
from typing import Any

from batch_sampler_attn.errors import BatchChangedError, warn

# Tensors, each with its count of changes when it was noted.
Versions = list[tuple[Any, int]]

_CHANGE_A_COPY = "Change a copy instead: images = images.clone() first, or operations without a final underscore"

_PLAIN = frozenset({bool, int, float, complex, str, bytes, NoneType})


def fresh_copy(batch: Any, versions: Versions | None = None) -> Any:
    """Return ``batch`` with every container in it copied, and everything else shared.

    Containers are lists, dictionaries, tuples, dataclasses, objects that define ``__copy__``, and objects with a tensor
    or an array among their attributes. A batch that contains itself is not copied. Tensors are noted in ``versions``.
    """
    try:
        return _fresh(batch, versions)
    except RecursionError:
        return batch


def check_unchanged(versions: Versions, *, may_use_sampler: bool = True) -> None:
    """Raise BatchChangedError if a noted tensor was changed in place since."""
    if changed := _changed(versions):
        shapes = ", ".join(dict.fromkeys(str(tuple(getattr(tensor, "shape", ()))) for tensor in changed))
        sampler = ", or use a BatchAttentionSampler, which fetches a batch again for each repeat"
        raise BatchChangedError(
            f"the batch is to be repeated, but its last visit changed tensors in it in place (of shape {shapes}). "
            f"{_CHANGE_A_COPY}{sampler if may_use_sampler else ''}"
        )


def warn_if_changed(versions: Versions) -> None:
    """Warn at the first batch about a change that would be refused at the first repeat."""
    if _changed(versions):
        warn(
            "the loop changed tensors of its batch in place, which is refused once such a batch is to be repeated. "
            f"{_CHANGE_A_COPY}"
        )


def _changed(versions: Versions) -> list[Any]:
    return [tensor for tensor, version in versions if tensor._version != version]


def _fresh(value: Any, versions: Versions | None) -> Any:
    cls: Any = type(value)
    if cls is list:
        return [_fresh(item, versions) for item in value]
    if cls is dict:
        return {key: _fresh(item, versions) for key, item in value.items()}
    if _is_tensor(cls):
        if versions is not None:
            try:  # noqa: SIM105 - suppress() takes longer than all the rest
                versions.append((value, value._version))
            except RuntimeError:  # made in inference mode, where changes are not counted
                pass
        return value
    if cls in _PLAIN:
        return value
    if issubclass(cls, tuple):
        items = [_fresh(item, versions) for item in value]
        return value if all(map(operator.is_, items, value)) else tuple.__new__(cls, items)
    return _fresh_object(value, versions)


def _fresh_object(value: Any, versions: Versions | None) -> Any:
    cls: Any = type(value)
    is_container = (
        hasattr(cls, "__copy__")
        or hasattr(cls, "__dataclass_fields__")
        or isinstance(value, (dict, list, SimpleNamespace))
    )
    if _is_array(cls) or isinstance(value, type) or not (is_container or _holds_arrays(value)):
        return value
    try:
        twin = copy.copy(value)
    except Exception as error:  # anything that a class may raise if it is not made to be copied
        _warn_uncopied(cls.__name__, type(error).__name__)
        return value
    if isinstance(twin, MutableMapping):
        _refill(twin, list(twin.items()), versions)
    elif isinstance(twin, MutableSequence):
        _refill(twin, enumerate(list(twin)), versions)
    for name, item in _attributes(twin).items():
        new = _fresh(item, versions)
        if new is not item:
            # Not setattr(), which frozen classes refuse and others redefine.
            object.__setattr__(twin, name, new)
    return twin


def _refill(twin: Any, items: Iterable[tuple[Any, Any]], versions: Versions | None) -> None:
    for key, item in items:
        new = _fresh(item, versions)
        if new is not item:
            twin[key] = new


def _attributes(value: Any) -> dict[str, Any]:
    cls: Any = type(value)
    in_slots = {name: getattr(value, name) for name in _slots_of(cls) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **in_slots}


def _holds_arrays(value: Any) -> bool:
    """Whether an attribute is an array or, unless the object is callable like a model, a collection of arrays."""
    items: list[Any] = [*_attributes(value).values()]
    if not callable(value):
        items += [part for item in items if type(item) in (list, tuple) for part in item]
        items += [part for item in items if type(item) is dict for part in item.values()]
    return any(map(_is_array, map(type, items)))


@lru_cache(maxsize=256)
def _slots_of(cls: type) -> list[str]:
    declared = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    names = [name for slots in declared for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if not name.startswith("__")]


@lru_cache(maxsize=256)
def _is_tensor(cls: type) -> bool:
    version = getattr(cls, "_version", None)
    return isinstance(version, int) or hasattr(version, "__get__")


@lru_cache(maxsize=256)
def _is_array(cls: type) -> bool:
    return hasattr(cls, "__array__") or hasattr(cls, "__array_interface__") or _is_tensor(cls)


@lru_cache(maxsize=256)
def _warn_uncopied(name: str, error: str) -> None:
    """Warn once for each class."""
    warn(
        f"a batch holds a {name}, which cannot be copied ({error}), so a repeat gets it as the last visit left it. Do "
        "not change it in the loop, or define its __copy__"
    )
