"""Code that the trainers share: repeats inside a training loop that the user does not write.

A trainer draws each batch once. Batches that may be repeated are kept, and trained on again before the trainer draws
the next one. The batches of one update are a window. In outline::

    replay.hold(batch)                       # before the user's step sees it
    loss = step(batch)                       # forward and backward
    replay.note(loss, samples)               # the mean loss, not divided by the number of batches
    ...                                      # further batches of the window
    update()
    for window in replay.repeats(is_last=is_last):
        for batch in window:
            replay.note(step(batch), samples)
        update()
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batch_sampler_attn.accumulation import AccumulatedLoss
from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.errors import OptionError, ProtocolError, short_repr, warn
from batch_sampler_attn.fresh_copy import Versions, check_unchanged, fresh_copy, warn_if_changed
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.schedule import BatchAttentionSchedule, passes_of

__all__ = ["Replay"]


class Replay:
    """Keeps the batches of the current window and decides when to train on them again.

    All that it remembers between windows is in ``schedule.state_dict()``: save that in the trainer's checkpoints.

    Args:
        schedule: Decides on repeats, for this trainer only.

    Raises:
        ProtocolError: If the schedule belongs to a ``BatchAttentionSampler``.
    """

    def __init__(self, schedule: BatchAttentionSchedule) -> None:
        self.schedule = schedule
        self._passes = passes_of(schedule)
        if self._passes.driver is not None:
            raise ProtocolError(
                "the schedule belongs to a BatchAttentionSampler, which repeats batches itself. Give the trainer "
                "another schedule, and a DataLoader without that sampler"
            )
        # With epoch_length=, the schedule's epochs are not the trainer's.
        self._has_own_epochs = schedule.options.epoch_length is not None
        self._pass: Any = None
        # False in an epoch whose beginning the schedule has missed.
        self._is_whole = True
        self._has_looked_for_changes = False
        self._is_in_window = False
        self._batches: list[Any] = []
        self._versions: Versions = []
        self._loss = AccumulatedLoss()

    @property
    def is_in_epoch(self) -> bool:
        """True from the beginning of an epoch to its end."""
        return self._pass is not None and self._pass is self._passes.current

    @property
    def is_in_window(self) -> bool:
        """True from the first batch of a window to the decision on it."""
        return self._is_in_window and self.is_in_epoch

    def begin_epoch(self, windows: int | None = None, *, at: int | None = None) -> None:
        """Begin an epoch, or resume in the middle of one after a state was loaded.

        Args:
            windows: Number of windows in the whole epoch; None if the trainer does not know.
            at: Windows that the trainer has finished in this epoch; None to trust the schedule's state. If the two
                disagree, the schedule's epoch is abandoned, and the rest of the trainer's epoch sets no threshold.
        """
        self._drop_window()
        self._is_whole = True
        if self._has_own_epochs:
            at = None
        elif self._passes.active is None and (position := self._passes.state.position):
            # Saved after an epoch's last window, but before the trainer ended that epoch.
            if position == windows and not self._passes.state.visits and not at:
                self._open(windows)
                self.end_epoch(finished=True)
            elif at is not None and at != position:
                self.schedule.abandon_epoch()
        self._open(windows)
        self._is_whole = at is None or at == self._passes.state.position

    def hold(self, batch: Any) -> None:
        """Keep a batch, as the step takes it, before its first visit; begin the window, and the epoch, if needed."""
        if not self.is_in_epoch:
            self.begin_epoch()
        if not self._is_in_window:
            self._pass.offer()
            self._is_in_window = True
        if self._pass.may_repeat:
            # In fresh containers, so that a repeat does not see what the user's step adds to the batch.
            self._batches.append(fresh_copy(batch, self._versions))

    def note(self, loss: object, samples: object = 1) -> None:
        """Add the mean loss of one visit to one batch, and its number of samples; None if it was not trained on."""
        if loss is not None:
            self._loss.add(loss, samples)

    def repeats(self, *, is_last: bool = False) -> Iterator[list[Any]]:
        """Yield the window's batches again, for another update, while the decision is REPEAT.

        Args:
            is_last: True for the epoch's last window, which ends the epoch. A checkpoint that the trainer writes
                between this and its own end of the epoch then belongs to the next epoch.
        """
        while self.decide(is_last=is_last) is Decision.REPEAT:
            yield [fresh_copy(batch) for batch in self._batches]

    def decide(self, *, is_last: bool = False) -> Decision:
        """Decide on the window after its update, as ``repeats`` does. A window without a loss is skipped."""
        if not self.is_in_window:
            raise ProtocolError("decide() was called before hold() was given a batch of the window")
        if len(self._loss):
            self.schedule.decide(self._loss.mean, samples=self._loss.samples)
        else:
            self.schedule.skip()
        decision: Decision = self._pass.collect()
        if decision is Decision.REPEAT:
            check_unchanged(self._versions, may_use_sampler=False)
            self._pass.offer()
            self._loss = AccumulatedLoss()
        else:
            if not self._has_looked_for_changes:
                warn_if_changed(self._versions)
            self._drop_window()
            if is_last:
                self.end_epoch(finished=True)
        self._has_looked_for_changes = True
        return decision

    def skip(self, *, is_last: bool = False) -> None:
        """Drop the current window, if there is one: the trainer made no update for it."""
        if self.is_in_window:
            self._loss = AccumulatedLoss()
            self.decide(is_last=is_last)

    def end_epoch(self, *, finished: bool) -> None:
        """End the epoch, if it did not end with its last window. A window without an update is dropped.

        Args:
            finished: True if the trainer has trained on all batches. Otherwise the epoch sets no threshold, and its
                state resumes in mid-epoch.
        """
        if not self.is_in_epoch:
            return
        if self._is_in_window and finished:
            self.schedule.skip()
            self._pass.collect()
        self._drop_window()
        has_mean = self._passes.state.batches > 0 or self._has_own_epochs
        self._pass.close(finished=finished and self._is_whole and has_mean)

    def _open(self, windows: int | None) -> None:
        # The length of a whole epoch only: the trainer knows what remains of a resumed one.
        length = None if self._passes.state.progress else windows
        self._pass = self._passes.open(length, common={"windows": windows})

    def _drop_window(self) -> None:
        self._is_in_window = False
        self._batches, self._versions, self._loss = [], [], AccumulatedLoss()


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Say what to install if the trainer's package itself is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == package:
            error.msg = (
                f"batch_sampler_attn.trainers.{package} needs {package}, which is not installed: "
                f"pip install 'batch-sampler-attn[{package}]'"
            )
        raise


@contextmanager
def standing_in(target: Any, **methods: Any) -> Iterator[None]:
    """Replace methods of one object, bypassing its class's ``__setattr__``; restore the instance's own at the end."""
    attributes = vars(target)
    before = {name: attributes[name] for name in methods if name in attributes}
    attributes.update(methods)
    try:
        yield
    finally:
        for name in methods.keys() - before.keys():
            attributes.pop(name, None)
        attributes.update(before)


def schedule_from(schedule: object, options: dict[str, Any]) -> BatchAttentionSchedule:
    """Return the schedule given to a trainer, or a new one with the options given to it, of which k may be None."""
    options = {name: value for name, value in options.items() if name != "k" or value is not None}
    if schedule is None:
        return BatchAttentionSchedule(**options)
    if not isinstance(schedule, BatchAttentionSchedule):
        raise OptionError(f"schedule is {short_repr(schedule)}; it must be like BatchAttentionSchedule(k=1.2)")
    if options:
        raise OptionError(f"got schedule= and also {', '.join(options)}; give these options to the schedule")
    return schedule


def no_one_loss(cause: str) -> ProtocolError:
    """The error for an optimizer, such as LBFGS or SAM, or a step that computes no loss or several for a batch."""
    return ProtocolError(
        f"{cause} for each batch, so there is no one loss to decide on. Use an optimizer such as AdamW or SGD, and a "
        "step that computes one loss"
    )


def refuse_own_callbacks(callbacks: Any) -> None:
    """Refuse an object of this package that is not a callback of this trainer."""
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        cls = callback if isinstance(callback, type) else type(callback)
        if any(base.__module__.startswith("batch_sampler_attn.") for base in cls.__mro__):
            raise OptionError(
                f"callbacks has {short_repr(callback)}, which is no callback of this trainer; leave it out"
            )


def warn_of_too_few_epochs(schedule: BatchAttentionSchedule, epochs: float | None, windows: int | None) -> None:
    """Warn if a training of ``epochs`` epochs (None: unknown) would end before any batch can be repeated."""
    options = schedule.options
    if epochs is None or isinstance(schedule, EqualComputeControl) or options.max_visits == 1:
        return
    if options.epoch_length is not None:
        # From the trainer's epochs to the schedule's.
        epochs = epochs * (windows or math.inf) / options.epoch_length
    if schedule.epoch + epochs > options.warmup_epochs:
        return
    length = "1 epoch" if epochs == 1 else f"{epochs:.3g} epochs"
    warn(
        f"no batch will be repeated: training ends after {length}, and repeats begin after warmup_epochs="
        f"{options.warmup_epochs}. Train longer, or give the schedule shorter epochs, in updates: "
        f"epoch_length={max(2, (windows or 1000) // 10)}, say"
    )
