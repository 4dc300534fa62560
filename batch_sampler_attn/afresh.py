"""Batches yielded afresh: containers are copied, tensors are not, and tensors that were changed in place are found out.

No framework is imported: what counts its changes in an integer ``_version``, as PyTorch's tensors do, is a tensor here.
"""

from __future__ import annotations

import copy
import enum
from collections import UserDict, UserList, deque
from collections.abc import Iterable, MutableMapping
from types import NoneType, SimpleNamespace
from typing import Any

from batch_sampler_attn.errors import BatchChangedError

# Tensors, each with its count of changes when it was noted.
Versions = list[tuple[Any, int]]

_PLAIN = frozenset({bool, int, float, complex, str, bytes, NoneType})


# What pickles in a way of its own may be anything: a file, a graph in the memory of another language.
_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


class _Kind(enum.Enum):
    """How a value of some class is made afresh."""

    AS_IT_IS = enum.auto()
    TENSOR = enum.auto()
    LIST = enum.auto()
    DICT = enum.auto()
    MAPPING = enum.auto()
    SEQUENCE = enum.auto()
    SET = enum.auto()
    TUPLE = enum.auto()
    OBJECT = enum.auto()
    OBJECT_IF_OF_ARRAYS = enum.auto()


# Names of the module cost no look-up in the enum.
_TENSOR = _Kind.TENSOR
_AS_IT_IS = _Kind.AS_IT_IS
_LIST = _Kind.LIST
_DICT = _Kind.DICT


# Found out once for each class: a look at a class takes longer than a copy.
_KINDS: dict[type, _Kind] = {}
_MOST_KINDS = 256


def afresh(batch: Any, versions: Versions | None = None) -> Any:
    """``batch`` with every container in it copied, and all else in it the very same.

    Containers are dictionaries and other mutable mappings, lists, sets, tuples (named ones too), dataclasses and their
    like, objects that define ``__copy__``, and objects with a tensor or an array for an attribute. What contains
    itself, or refuses to be copied, is left as it is.

    Args:
        batch: What the loader yielded.
        versions: Where the tensors in it are noted, if they are to be.
    """
    cls = type(batch)
    try:
        # What most batches are, with no way around.
        if cls is list:
            twin = batch.copy()
            _refill(twin, enumerate(batch), versions)
            return twin
        if cls is dict:
            twin = batch.copy()
            _refill(twin, batch.items(), versions)
            return twin
        twin = [batch]
        _refill(twin, ((0, batch),), versions)
        return twin[0]
    except RecursionError:
        return batch


def check_unchanged(versions: Versions, *, may_use_sampler: bool = True) -> None:
    """Refuse to repeat what was changed in place since it was noted.

    Args:
        versions: As they were noted.
        may_use_sampler: Whether a ``BatchAttentionSampler`` would be another way out.

    Raises:
        BatchChangedError: If a tensor was.
    """
    if is_changed(versions):
        shapes = [
            str(tuple(getattr(tensor, "shape", ()))) for tensor, version in versions if tensor._version != version
        ]
        sampler = ", or use a BatchAttentionSampler, which fetches a batch anew for each repeat"
        raise BatchChangedError(
            f"the batch is to be repeated, but its last visit changed {len(shapes)} of its tensors in place (of shape "
            f"{', '.join(dict.fromkeys(shapes))}), so that a repeat would train on something else. Change a copy "
            "instead (images = images.clone() first, or operations without a final underscore)"
            + (sampler if may_use_sampler else "")
        )


def is_changed(versions: Versions) -> bool:
    """Whether a tensor was changed in place since it was noted."""
    for tensor, version in versions:  # noqa: SIM110 - any() would make a generator, which takes longer than all this
        if tensor._version != version:
            return True
    return False


def _refill(twin: Any, items: Iterable[tuple[Any, Any]], versions: Versions | None) -> bool:
    """Put what is afresh for the items into their container's twin; tell whether there was nothing to put."""
    is_same = True
    for key, item in items:
        cls = type(item)
        kind = _KINDS.get(cls)
        if kind is None:
            kind = _learn_kind(cls)
        if kind is _TENSOR:
            if versions is not None:
                try:
                    versions.append((item, item._version))
                except RuntimeError:  # made in inference mode, where changes are not counted
                    continue
        elif kind is not _AS_IT_IS:
            if kind is _LIST:
                new = item.copy()
                _refill(new, enumerate(item), versions)
            elif kind is _DICT:
                new = item.copy()
                _refill(new, item.items(), versions)
            else:
                new = _copied(item, cls, kind, versions)
            if new is not item:
                twin[key] = new
                is_same = False
    return is_same


def _learn_kind(cls: type) -> _Kind:
    if len(_KINDS) >= _MOST_KINDS:  # a program that makes classes as it goes
        _KINDS.clear()
    kind = _KINDS[cls] = _kind_of(cls)
    return kind


def _kind_of(cls: type) -> _Kind:
    if cls in _PLAIN:
        return _AS_IT_IS
    if cls is list or cls is dict:
        return _LIST if cls is list else _DICT
    if issubclass(cls, (dict, UserDict)) or (issubclass(cls, MutableMapping) and hasattr(cls, "__copy__")):
        return _Kind.MAPPING
    if _counts_changes(cls):
        return _TENSOR
    for classes, kind in (((list, UserList, deque), _Kind.SEQUENCE), (set, _Kind.SET), (tuple, _Kind.TUPLE)):
        if issubclass(cls, classes):
            return kind
    is_doing_something = any(name in vars(base) for base in cls.__mro__ for name in ("__call__", "__next__"))
    if _is_array(cls) or is_doing_something or cls.__module__ in ("builtins", "array"):
        return _AS_IT_IS
    is_record = (
        issubclass(cls, SimpleNamespace) or hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__")
    )
    if is_record or hasattr(cls, "__copy__"):
        return _Kind.OBJECT
    is_plain = all(getattr(cls, name, None) is getattr(object, name, None) for name in _PICKLING)
    return _Kind.OBJECT_IF_OF_ARRAYS if is_plain else _AS_IT_IS


def _is_array(cls: type) -> bool:
    return hasattr(cls, "__array__") or hasattr(cls, "__array_interface__") or _counts_changes(cls)


def _counts_changes(cls: type) -> bool:
    version = getattr(cls, "_version", None)
    return isinstance(version, int) or hasattr(version, "__get__")


def _copied(value: Any, cls: type, kind: _Kind, versions: Versions | None) -> Any:
    if kind is _Kind.TUPLE:
        parts = [*value]
        return value if _refill(parts, enumerate(value), versions) else tuple.__new__(cls, parts)
    if isinstance(_attributes(value).get("_version"), int):
        if versions is not None:
            versions.append((value, value._version))
        return value
    if kind is _Kind.OBJECT_IF_OF_ARRAYS and not any(_is_array(type(item)) for item in _attributes(value).values()):
        return value
    try:
        twin = copy.copy(value)
    except Exception:  # whatever a class raises that is not made to be copied
        return value
    if kind is _Kind.MAPPING:
        _refill(twin, value.items(), versions)
    elif kind is _Kind.SEQUENCE:
        _refill(twin, enumerate(value), versions)
    elif kind is not _Kind.SET:
        _refill_attributes(twin, versions)
    return twin


def _refill_attributes(twin: Any, versions: Versions | None) -> None:
    attributes = _attributes(twin)
    fresh = dict(attributes)
    _refill(fresh, attributes.items(), versions)
    for name, item in fresh.items():
        if item is not attributes[name]:
            # Past what a frozen class makes of setting.
            object.__setattr__(twin, name, item)


def _attributes(value: Any) -> dict[str, Any]:
    """What is in the object's dictionary and in its slots."""
    attributes = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                attributes[name] = getattr(value, name)
    attributes.pop("__dict__", None)
    attributes.pop("__weakref__", None)
    return attributes
