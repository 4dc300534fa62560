"""Iterating over batches, each again while the schedule says so."""

from __future__ import annotations

from collections.abc import Iterable

from batch_sampler_attn.rule import Decision

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from batch_sampler_attn.schedule import BatchAttentionSchedule

    Batch = TypeVar("Batch")
    Deliver = Callable[[BatchAttentionSchedule, Iterable[Batch]], Iterator[Batch]]


class AttendedLoader(Iterable["Batch"]):
    """What ``BatchAttentionSchedule.attend`` returns: a loader whose every iteration is one epoch.

    It stands in for the loader that it wraps: ``len`` is the loader's, the number of base batches, and other
    attributes (``dataset``, ``batch_size``, ...) are looked up there.

    A progress bar over base batches advances with the decision::

        with tqdm(total=len(attended)) as bar:
            for batch in attended:
                bar.update(schedule.decide(train_step(batch)) is Decision.ADVANCE)

    Attributes:
        schedule: The schedule that takes the losses, where only the loader is in scope.
    """

    def __init__(self, schedule: BatchAttentionSchedule, loader: Iterable[Batch], deliver: Deliver[Batch]) -> None:
        iter_or_getitem = getattr(type(loader), "__iter__", None) or getattr(type(loader), "__getitem__", None)
        if iter_or_getitem is None:
            raise TypeError(f"attend() takes an iterable of batches, such as a DataLoader; got {type(loader).__name__}")
        self.schedule = schedule
        self._loader = loader
        self._deliver = deliver

    def __iter__(self) -> Iterator[Batch]:
        return self._deliver(self.schedule, self._loader)

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        # Without this, truth would be the length, which a generator has not.
        return True

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look attributes up before __init__ has run.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def repeat_in_place(schedule: BatchAttentionSchedule, loader: Iterable[Batch]) -> Iterator[Batch]:
    """One epoch over any iterable: the very same object is yielded again while the decision is REPEAT."""
    token = schedule._open_pass()
    finished = False
    try:
        for batch in loader:
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                schedule._offer(token)
                yield batch
                decision = schedule._turns.collect(token)
        finished = True
    finally:
        schedule._close_pass(token, finished=finished)
