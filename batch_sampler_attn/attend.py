"""Iteration over the batches of any loader: each is yielded again while the decision is REPEAT."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.fresh_copy import Versions, check_unchanged, fresh_copy, warn_if_changed
from batch_sampler_attn.options import length_of
from batch_sampler_attn.passes import Passes
from batch_sampler_attn.rule import ADVANCE

Batch = TypeVar("Batch")
Schedule = TypeVar("Schedule")

_OWN_NAMES = frozenset({"schedule", "base_batches", "_loader", "_deliver"})


class AttendedLoader(Iterable[Batch], Generic[Batch, Schedule]):
    """The attended loader that ``BatchAttentionSchedule.attend`` returns: each iteration is one epoch.

    Attributes other than its own (``dataset``, ``batch_size``, ...) are read and set on the loader that it wraps.

    Iteration yields visits, so there is no length, and ``enumerate`` counts visits; ``schedule.batch_index`` is the
    index of the base batch. Advance a progress bar with ``total=attended.base_batches`` when the decision is ADVANCE.

    Attributes:
        schedule: The schedule that takes the losses, for code that has only the loader.
    """

    def __init__(self, schedule: Schedule, loader: Iterable[Batch], deliver: Any) -> None:
        self.schedule = schedule
        self._loader = loader
        self._deliver = deliver

    @property
    def base_batches(self) -> int:
        """Base batches in an epoch: the loader's length. Raises TypeError if it has none."""
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        return self._deliver(self._loader)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        raise TypeError(
            "an attended loader has no length: repeats are decided as training continues. Use len(loader), or "
            "attended.base_batches, for the number of base batches"
        )

    def __bool__(self) -> bool:
        # bool() would otherwise call __len__.
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


def attend(schedule: Schedule, passes: Passes, loader: Iterable[Batch]) -> AttendedLoader[Batch, Schedule]:
    """``BatchAttentionSchedule.attend``."""
    if not hasattr(type(loader), "__iter__") and not hasattr(type(loader), "__getitem__"):
        raise TypeError(f"attend() takes an iterable of batches, such as a DataLoader; got {type(loader).__name__}")
    _check_loader(loader, has_driver=passes.driver is not None)
    deliver = partial(repeat_in_place, passes) if passes.driver is None else passes.driver.deliver
    return AttendedLoader(schedule, loader, deliver)


def repeat_in_place(passes: Passes, loader: Iterable[Batch]) -> Iterator[Batch]:
    """One epoch over any iterable: the same tensors are yielded again while the decision is REPEAT."""
    # A loader that saves its own position, such as a StatefulDataLoader, resumes there by itself.
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


def _check_loader(loader: Any, *, has_driver: bool) -> None:
    if isinstance(loader, AttendedLoader):
        raise ProtocolError("attend() was given what attend() returned; iterate over the attended loader itself")
    for sampler in () if has_driver else (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        # A BatchAttentionSampler has a schedule, and SampleAttention a loop of its own.
        owner = "loader.batch_sampler.schedule" if hasattr(sampler, "schedule") else "attention"
        if hasattr(sampler, "schedule") or hasattr(sampler, "attend"):
            raise ProtocolError(
                f"the loader's batches are those of a {type(sampler).__name__}, which this schedule does not know; "
                f"iterate over {owner}.attend(loader), or make a DataLoader without that sampler"
            )
