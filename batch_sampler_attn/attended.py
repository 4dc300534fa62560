"""Iterating over batches, each again while the schedule says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import GeneratorType
from typing import Any, Generic, TypeVar

from batch_sampler_attn import notices
from batch_sampler_attn.afresh import Versions, afresh, check_unchanged, is_changed
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.passes import Driver, Pass
from batch_sampler_attn.rule import Decision

Batch = TypeVar("Batch")
Schedule = TypeVar("Schedule")

_OWN_NAMES = frozenset({"schedule", "_loader", "_deliver"})

# The modules of trainers that go through a loader, each with what to use there.
_TRAINERS = {
    "lightning.pytorch": "the BatchAttention callback of batch_sampler_attn.lightning",
    "pytorch_lightning": "the BatchAttention callback of batch_sampler_attn.lightning",
    "transformers.trainer": "BatchAttentionMixin of batch_sampler_attn.trainers.transformers",
    "ignite.engine": "have its process function train on a batch for as long as schedule.decide(loss) says REPEAT",
}


class AttendedLoader(Iterable[Batch], Generic[Batch, Schedule]):
    """What ``BatchAttentionSchedule.attend`` returns: a loader whose every iteration is one epoch.

    It stands in for the loader that it wraps: ``len`` is the loader's, the number of base batches, and all other
    attributes (``dataset``, ``batch_size``, ...) are read and set there.

    Iterating yields visits, of which there are more than base batches once batches repeat. So ``enumerate`` counts
    visits, and ``schedule.batch_index`` is the index of the base batch. A progress bar around it, as in
    ``tqdm(attended)``, would run past its total: advance it with the decision instead, or let it count visits without
    a total, ``tqdm(iter(attended))``::

        with tqdm(total=len(attended)) as bar:
            for batch in attended:
                bar.update(schedule.decide(train_step(batch)) is Decision.ADVANCE)

    Trainers with a loop of their own count what it yields, and end at its length; those that are known are refused.

    Attributes:
        schedule: The schedule that takes the losses, where only the loader is in scope.
    """

    def __init__(
        self, schedule: Schedule, loader: Iterable[Batch], deliver: Callable[[Iterable[Batch]], Iterator[Batch]]
    ) -> None:
        iter_or_getitem = getattr(type(loader), "__iter__", None) or getattr(type(loader), "__getitem__", None)
        if iter_or_getitem is None:
            raise TypeError(f"attend() takes an iterable of batches, such as a DataLoader; got {type(loader).__name__}")
        self.schedule = schedule
        self._loader = loader
        self._deliver = deliver

    def __iter__(self) -> Iterator[Batch]:
        _check_is_no_trainers(sys._getframe(1).f_globals.get("__name__", ""))
        return self._deliver(self._loader)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        # Without this, truth would be the length, which a generator has not.
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


def attend(
    schedule: Schedule, open_pass: Callable[..., Pass], driver: Driver | None, loader: Iterable[Batch]
) -> AttendedLoader[Batch, Schedule]:
    """``BatchAttentionSchedule.attend``."""
    check_is_loader_itself(loader, has_driver=driver is not None)
    deliver = partial(repeat_in_place, open_pass) if driver is None else driver.deliver
    return AttendedLoader(schedule, loader, deliver)


def repeat_in_place(open_pass: Callable[..., Pass], loader: Iterable[Batch]) -> Iterator[Batch]:
    """One epoch over any iterable: a batch of the same tensors is yielded again while the decision is REPEAT."""
    # What keeps its own place, as a StatefulDataLoader does, goes on by itself where it was saved.
    length = None if hasattr(loader, "load_state_dict") else length_of(loader)
    with open_pass(length) as current:
        is_first = True
        for batch in loader:
            versions: Versions = []
            fresh = afresh(batch, versions)
            while True:
                current.offer()
                yield fresh
                decision = current.collect()
                if is_first:
                    is_first = False
                    if decision is Decision.ADVANCE and current.may_repeat and is_changed(versions):
                        notices.changed_in_place()
                if decision is Decision.ADVANCE:
                    break
                check_unchanged(versions)
                fresh = afresh(batch)


def length_of(loader: object) -> int | None:
    """``len(loader)``; None if it has none."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None


def check_is_loader_itself(loader: object, *, has_driver: bool) -> None:
    """Refuse what is attended already, or by another schedule, and what a sampler's batches cannot be followed through.

    Raises:
        ProtocolError: If it is such a thing.
    """
    if isinstance(loader, AttendedLoader):
        raise ProtocolError(
            "attend() was given what attend() returned, so that each batch would be attended twice; iterate over the "
            "attended loader itself"
        )
    if not has_driver and hasattr(getattr(loader, "batch_sampler", None), "schedule"):
        raise ProtocolError(
            "the loader's batch sampler belongs to another schedule; iterate over that one's attend(): "
            "loader.batch_sampler.schedule.attend(loader)"
        )
    if has_driver and _is_begun(loader):
        raise ProtocolError(
            f"attend() was given {_name(loader)}, which began to iterate over the DataLoader as it was made, before "
            "the epoch, so that its batches are not those that the BatchAttentionSampler hands out. Give attend() the "
            "DataLoader itself, and put the rest around it or into the loop: "
            "for index, batch in enumerate(schedule.attend(loader)). What has to change batches in between is a class "
            "whose __iter__ goes through the DataLoader; an immediate repeat is fetched past it, so it takes "
            "repeats='deferred'"
        )


def _check_is_no_trainers(module: str) -> None:
    """Refuse a trainer that would end each epoch after as many visits as there are base batches.

    Args:
        module: That iterates.

    Raises:
        ProtocolError: If it is such a one's.
    """
    for trainer, instead in _TRAINERS.items():
        if f"{module}.".startswith(f"{trainer}."):
            raise ProtocolError(
                f"{trainer} was given what attend() returned: it would end each epoch at its length, of base batches, "
                f"and count repeats as steps. Give it the loader itself, and {instead}"
            )


def _is_begun(loader: object) -> bool:
    """Whether a loader inside, if there is one, was asked for its iterator as this was made."""
    if isinstance(loader, GeneratorType):
        # A generator expression does so for its first "for"; a generator function, once it is iterated over.
        return loader.gi_code.co_name == "<genexpr>"
    return isinstance(loader, (enumerate, zip, map, filter))


def _name(loader: object) -> str:
    return "a generator expression" if isinstance(loader, GeneratorType) else f"{type(loader).__name__}(...)"
