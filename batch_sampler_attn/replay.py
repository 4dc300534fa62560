"""Repeats inside a training loop that belongs to somebody else: a trainer's hooks tell of batches, losses and updates.

A trainer hands out batches by itself, so that none can be yielded twice; what is to be repeated has to be kept, and
trained on again before the trainer goes on. In short, where it has made an update from the batches of one window::

    replay = Replay(schedule)
    ...
    replay.hold(batch)                       # before the user's step sees it
    loss = step(batch)                       # forward and backward
    replay.note(loss, samples)               # as it is, before it is divided by the accumulation
    ...                                      # further batches of the window
    update()
    for window in replay.repeats(is_last=is_last):
        for batch in window:
            replay.note(step(batch), samples)
        update()

Whatever the trainer counts, it counts as though that loop were not there: one window is one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from batch_sampler_attn import notices
from batch_sampler_attn.afresh import Versions, afresh, check_unchanged, is_changed
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.passes import Pass, Phase
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.state import State
from batch_sampler_attn.windows import WindowLoss


class Replay:
    """Keeps the batches of the window under way, and says when to train on them again.

    What it remembers between windows is in the schedule: to go on from a checkpoint, save ``schedule.state_dict()``.

    Args:
        schedule: Decides; it belongs to this trainer alone.

    Attributes:
        schedule: The same.

    Raises:
        ProtocolError: If the schedule belongs to a ``BatchAttentionSampler``.
    """

    def __init__(self, schedule: BatchAttentionSchedule) -> None:
        if schedule.driver is not None:
            raise ProtocolError(
                "the schedule belongs to a BatchAttentionSampler, which repeats batches by itself; a trainer repeats "
                "them inside its step. Make another schedule, and the DataLoader without that sampler"
            )
        self.schedule = schedule
        self._pass: Pass | None = None
        self._is_whole = True
        self._has_looked_for_changes = False
        self._held: list[Any] = []
        self._versions: Versions = []
        self._loss = WindowLoss()
        self._is_under_way = False

    @property
    def is_in_epoch(self) -> bool:
        """Whether an epoch has begun, and not ended."""
        current = self._pass
        return current is not None and current is self.schedule.active_pass and current.phase is not Phase.LEFT

    @property
    def is_in_window(self) -> bool:
        """Whether batches are held that were not decided on."""
        return self._is_under_way and self.is_in_epoch

    def begin_epoch(self, windows: int | None = None, *, at: int | None = None) -> None:
        """An epoch begins, or a loaded state goes on in the middle of one.

        Args:
            windows: How many windows the whole epoch has; None if that is not known.
            at: How many of them the trainer has behind it; None to trust the schedule's state. If a trainer begins an
                epoch (0) where the state has one to its end, that one is ended: the checkpoint was written before the
                trainer said that it was over. Where the two are of another mind, the epoch in the state is
                forgotten; if the trainer is in the middle of one, it sets no threshold.

        Raises:
            ProtocolError: As ``schedule.open_pass`` raises it: decisions from elsewhere, or ranks that nobody said are
                to decide apart.
            RanksDivergedError: If another rank is not where this one is.
        """
        self._let_go()
        self._is_whole = True
        common = {"windows": windows}
        if self._has_own_epochs:
            at = None
        elif self.schedule.active_pass is None and (position := self._state.position):
            if position == windows and not self._state.visits and not at:
                self._pass = self.schedule.open_pass(common=common)
                self.end_epoch(finished=True)
            elif at is not None and at != position:
                self.schedule.abandon_epoch()
        self._pass = self.schedule.open_pass(common=common)
        # Where they differ still, the trainer is in the middle of an epoch whose beginning the schedule has not seen.
        self._is_whole = at is None or at == self._state.position

    def hold(self, batch: Any) -> None:
        """A batch of the window under way is about to be trained on for the first time; it begins what has to begin.

        It is kept in fresh containers, so that what the user's step puts into the batch is not there at its repeat.

        Args:
            batch: As the step gets it, on its device.
        """
        if not self.is_in_epoch:
            self.begin_epoch()
        assert self._pass is not None
        if not self._is_under_way:
            self._pass.offer()
            self._is_under_way = True
        if self._pass.may_repeat:
            self._held.append(afresh(batch, self._versions))

    def note(self, loss: object, samples: object = 1) -> None:
        """The loss of a batch of the window, of this one visit.

        Args:
            loss: Not scaled, and not divided by the accumulation; None for a batch that the step left out.
            samples: That it is the mean of, or the sum of their weights.

        Raises:
            LossError: If the loss is not one real number, as far as that can be told without waiting.
        """
        if loss is not None:
            self._loss.add(loss, samples)

    def repeats(self, *, is_last: bool = False) -> Iterator[list[Any]]:
        """After the update of a whole window: its batches, once more each time, while the decision is REPEAT.

        Each time, train on all of them, ``note`` their losses, and make one update, before asking for the next.

        Args:
            is_last: Whether this is the epoch's last window. The epoch then ends with it, so that a checkpoint that is
                written before the trainer's own epoch-end hook is of the next epoch.

        Yields:
            The batches of the window, in fresh containers.

        Raises:
            BatchChangedError: If one to be repeated was changed in place.
            NonfiniteLossError, RanksDivergedError, RankTimeoutError, RankLostError: As ``schedule.decide``.
        """
        while self.decide(is_last=is_last) is Decision.REPEAT:
            yield [afresh(batch) for batch in self._held]

    def decide(self, *, is_last: bool = False) -> Decision:
        """The decision on the window under way, whose update is made; ``repeats`` asks for it by itself.

        A window without a loss is skipped.

        Args:
            is_last: As for ``repeats``.
        """
        if not self.is_in_window:
            raise ProtocolError("decide() was called before hold() was given a batch of the window")
        current = self._pass
        assert current is not None
        if not len(self._loss):
            self._skip_window(current)
            decision = Decision.ADVANCE
        else:
            self.schedule.decide(self._loss.mean, samples=self._loss.samples)
            decision = current.collect()
        self._loss = WindowLoss()
        is_first, self._has_looked_for_changes = not self._has_looked_for_changes, True
        if decision is Decision.REPEAT:
            check_unchanged(self._versions, may_use_sampler=False)
            current.offer()
            return decision
        if is_first and is_changed(self._versions):
            notices.changed_in_place()
        self._let_go()
        if is_last:
            self.end_epoch(finished=True)
        return decision

    def skip(self, *, is_last: bool = False) -> None:
        """The window under way came to no update: it is no visit; do nothing if there is none.

        Args:
            is_last: As for ``repeats``.
        """
        if self.is_in_window:
            self._loss = WindowLoss()
            self.decide(is_last=is_last)

    def end_epoch(self, *, finished: bool) -> None:
        """The trainer's epoch is over; do nothing if it was ended with its last window, or there was none.

        A window under way is let go; it was no update.

        Args:
            finished: Whether the trainer went through all of its batches. If not, it sets no threshold; the state still
                has what was done of it, and a run that goes on from there goes on in mid-epoch.
        """
        if not self.is_in_epoch:
            return
        current = self._pass
        assert current is not None
        if self._is_under_way and finished:
            self._skip_window(current)
        self._let_go()
        has_mean = self._state.batches > 0 or self._has_own_epochs
        current.close(finished=finished and self._is_whole and has_mean)

    @property
    def _state(self) -> State:
        return self.schedule.epochs.state

    @property
    def _has_own_epochs(self) -> bool:
        """Whether the schedule ends an epoch after so many windows, whatever the trainer's are."""
        return self.schedule.options.window is not None

    def _skip_window(self, current: Pass) -> None:
        self.schedule.skip()
        current.collect()

    def _let_go(self) -> None:
        self._held, self._versions, self._loss = [], [], WindowLoss()
        self._is_under_way = False
