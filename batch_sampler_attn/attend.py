"""Iterating over batches, each again while the schedule says so, and each time in fresh containers.

No framework is imported. What counts its changes in an integer ``_version``, as PyTorch's tensors do, is a tensor here.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, MutableMapping, MutableSequence
from functools import lru_cache, partial
from types import NoneType, SimpleNamespace
from typing import Any, Generic, TypeVar

from batch_sampler_attn.errors import BatchChangedError, ProtocolError, warn
from batch_sampler_attn.options import length_of
from batch_sampler_attn.passes import Passes
from batch_sampler_attn.rule import ADVANCE

Batch = TypeVar("Batch")
Schedule = TypeVar("Schedule")

# Tensors, each with its count of changes when it was noted.
Versions = list[tuple[Any, int]]

_OWN_NAMES = frozenset({"schedule", "base_batches", "_loader", "_deliver"})


class AttendedLoader(Iterable[Batch], Generic[Batch, Schedule]):
    """What ``BatchAttentionSchedule.attend`` returns: a loader whose every iteration is one epoch.

    Attributes other than its own (``dataset``, ``batch_size``, ...) are read and set on the loader that it wraps.

    Iterating yields visits, of which there are more than base batches once batches repeat. So it has no length, and
    ``enumerate`` counts visits; ``schedule.batch_index`` is the index of the base batch. To show progress in base
    batches, advance the bar with the decision::

        with tqdm(total=attended.base_batches) as bar:
            for batch in attended:
                bar.update(schedule.decide(train_step(batch)) is Decision.ADVANCE)

    Attributes:
        schedule: The schedule that takes the losses, where only the loader is in scope.
    """

    def __init__(self, schedule: Schedule, loader: Iterable[Batch], deliver: Any) -> None:
        self.schedule = schedule
        self._loader = loader
        self._deliver = deliver

    @property
    def base_batches(self) -> int:
        """Base batches in an epoch: the loader's length.

        Raises:
            TypeError: If the loader has no length.
        """
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        return self._deliver(self._loader)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        raise TypeError(
            "what attend() returns has no length: repeats are decided as training continues. Use len(loader), or "
            "attended.base_batches, for the number of base batches"
        )

    def __bool__(self) -> bool:
        # Without this, truth would be the length.
        return True

    def __repr__(self) -> str:
        length = length_of(self._loader)
        batches = "" if length is None else f" of {length} batches"
        return f"<{type(self._loader).__name__}{batches}, attended by {self.schedule!r}>"

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look attributes up before __init__ has run, and special methods are not the loader's.
        if name in _OWN_NAMES or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN_NAMES or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._loader, name, value)

    def __delattr__(self, name: str) -> None:
        if name in _OWN_NAMES or name.startswith("__"):
            super().__delattr__(name)
        else:
            delattr(self._loader, name)


def attend(schedule: Schedule, passes: Passes, loader: Iterable[Batch]) -> AttendedLoader[Batch, Schedule]:
    """``BatchAttentionSchedule.attend``."""
    if not hasattr(type(loader), "__iter__") and not hasattr(type(loader), "__getitem__"):
        raise TypeError(f"attend() takes an iterable of batches, such as a DataLoader; got {type(loader).__name__}")
    _check_loader(loader, has_driver=passes.driver is not None)
    deliver = partial(repeat_in_place, passes) if passes.driver is None else passes.driver.deliver
    return AttendedLoader(schedule, loader, deliver)


def repeat_in_place(passes: Passes, loader: Iterable[Batch]) -> Iterator[Batch]:
    """One epoch over any iterable: a batch of the same tensors is yielded again while the decision is REPEAT."""
    # What keeps its own place, as a StatefulDataLoader does, resumes by itself where it was saved.
    length = None if hasattr(loader, "load_state_dict") else length_of(loader)
    with passes.open(length) as current:
        is_first = current.may_repeat
        for batch in loader:
            versions: Versions = []
            fresh = fresh_copy(batch, versions)
            while True:
                current.offer()
                yield fresh
                decision = current.collect()
                if decision is ADVANCE:
                    break
                check_unchanged(versions)
                fresh = fresh_copy(batch)
            if is_first:
                is_first = False
                warn_if_changed(versions)


def check_order(loader: Any) -> None:
    """Refuse loaders that yield batches in another order than their indices were handed out."""
    in_order, snapshots = getattr(loader, "in_order", True), getattr(loader, "snapshot_every_n_steps", 1)
    if in_order is False or snapshots != 1:
        raise ProtocolError(
            f"{type(loader).__name__} has in_order={in_order} and snapshot_every_n_steps={snapshots}; leave them at "
            "True and 1, or losses would be attributed to the wrong batches, and a resume would drop some"
        )


def _check_loader(loader: Any, *, has_driver: bool) -> None:
    if isinstance(loader, AttendedLoader):
        raise ProtocolError("attend() was given what attend() returned; iterate over the attended loader itself")
    for sampler in () if has_driver else (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        # A BatchAttentionSampler has a schedule, and SampleAttention a loop of its own.
        owner = "loader.batch_sampler.schedule" if hasattr(sampler, "schedule") else "attention"
        if hasattr(sampler, "schedule") or hasattr(sampler, "attend"):
            raise ProtocolError(
                f"the loader's batches are those of a {type(sampler).__name__}, which this schedule does not know; "
                f"iterate over {owner}.attend(loader), or make a DataLoader without it"
            )


# Fresh containers ----------------------------------------------------------------------------------------

_CHANGE_A_COPY = "Change a copy instead: images = images.clone() first, or operations without a final underscore"

_PLAIN = frozenset({bool, int, float, complex, str, bytes, NoneType})


def fresh_copy(batch: Any, versions: Versions | None = None) -> Any:
    """``batch`` with every container in it copied, and everything else in it the very same.

    Containers are lists, dictionaries, tuples, dataclasses, whatever defines ``__copy__``, and objects with a tensor or
    an array among their attributes. What contains itself stays as it is. Tensors are noted in ``versions``.
    """
    try:
        return _fresh(batch, versions)
    except RecursionError:
        return batch


def is_changed(versions: Versions) -> bool:
    """Whether a tensor was changed in place since it was noted."""
    for tensor, version in versions:  # noqa: SIM110 - any() would make a generator, which takes longer than all this
        if tensor._version != version:
            return True
    return False


def check_unchanged(versions: Versions, *, may_use_sampler: bool = True) -> None:
    """Refuse to repeat what was changed in place since it was noted."""
    if is_changed(versions):
        shapes = dict.fromkeys(
            str(tuple(getattr(tensor, "shape", ()))) for tensor, version in versions if tensor._version != version
        )
        sampler = ", or use a BatchAttentionSampler, which fetches a batch again for each repeat"
        raise BatchChangedError(
            f"the batch is to be repeated, but its last visit changed tensors of it in place (of shape "
            f"{', '.join(shapes)}). {_CHANGE_A_COPY}{sampler if may_use_sampler else ''}"
        )


def warn_if_changed(versions: Versions) -> None:
    """Tell the user at the first batch what would be refused at the first repeat."""
    if is_changed(versions):
        warn(
            "the loop changed tensors of its batch in place, which is refused once such a batch is to be repeated. "
            f"{_CHANGE_A_COPY}"
        )


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
    attributes = getattr(value, "__dict__", {})
    if (
        _is_array(cls)
        or isinstance(value, type)
        or not (is_container or any(_is_array(type(item)) for item in attributes.values()))
    ):
        return value
    try:
        twin = copy.copy(value)
    except Exception as error:  # whatever a class raises that is not made to be copied
        _warn_uncopied(cls.__name__, type(error).__name__)
        return value
    if isinstance(twin, MutableMapping):
        _refill(twin, list(twin.items()), versions)
    elif isinstance(twin, MutableSequence):
        _refill(twin, enumerate(list(twin)), versions)
    inside = getattr(twin, "__dict__", None)
    if inside is None:
        inside = {name: getattr(twin, name) for name in getattr(cls, "__slots__", ()) if hasattr(twin, name)}
    for name, item in list(inside.items()):
        new = _fresh(item, versions)
        if new is not item:
            # Not setattr(), which a frozen class refuses and others give a meaning of their own.
            object.__setattr__(twin, name, new)
    return twin


def _refill(twin: Any, items: Iterable[tuple[Any, Any]], versions: Versions | None) -> None:
    for key, item in items:
        new = _fresh(item, versions)
        if new is not item:
            twin[key] = new


@lru_cache(maxsize=256)
def _is_tensor(cls: type) -> bool:
    version = getattr(cls, "_version", None)
    return isinstance(version, int) or hasattr(version, "__get__")


@lru_cache(maxsize=256)
def _is_array(cls: type) -> bool:
    return hasattr(cls, "__array__") or hasattr(cls, "__array_interface__") or _is_tensor(cls)


@lru_cache(maxsize=256)
def _warn_uncopied(name: str, error: str) -> None:
    """Once for each class."""
    warn(
        f"a batch holds a {name}, which cannot be copied ({error}), so a repeat gets it as the last visit left it. Do "
        "not change it in the loop, or define its __copy__"
    )
