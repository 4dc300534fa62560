"""A schedule as its drivers see it: the pass that is open, who hands out batches, and states to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.criteria import Criterion
from batch_sampler_attn.epochs import Epochs
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.key_due import KeyDue
from batch_sampler_attn.options import Options
from batch_sampler_attn.passes import Driver, Pass, Phase
from batch_sampler_attn.ranks import MessageKind, Ranks, RanksOption
from batch_sampler_attn.recorders import Recorder
from batch_sampler_attn.reports import REPORTED, Reports
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary


class Driven:
    """What ``BatchAttentionSchedule`` is to whatever drives it; users of a schedule need none of it.

    Args:
        options: Checked already.
        criterion: Says which batches want another visit.
        recorders: As the schedule was given them.
        ranks: Likewise.

    Attributes:
        epochs: The epochs of the run, and the rule's state.
        driver: Hands out this schedule's batches; None where a loop goes through a loader, or is written by hand.
        key_due: The user's key of the batch that is to be repeated.
        agreement: With the other ranks.
        reports: The loss of the visit under way.

    Raises:
        OptionError: If a recorder, or ``ranks``, is none.
    """

    def __init__(
        self, options: Options, criterion: Criterion, recorders: Sequence[Recorder], ranks: RanksOption
    ) -> None:
        self.agreement = Ranks(ranks)
        self.reports = Reports(self.agreement)
        self.epochs = Epochs(options, criterion, recorders, self.agreement)
        self.driver: Driver | None = None
        self.key_due = KeyDue()
        self._pass: Pass | None = None

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options_to_save().items())
        return f"<{type(self).__name__}({options}), {self.whereabouts()}>"

    def whereabouts(self) -> str:
        """Where training is, in words."""
        state = self.epochs.state
        threshold = "no threshold" if state.threshold is None else f"threshold {state.threshold:.4g}"
        return f"epoch {state.epoch}, batch {self.batch_index}, visits {state.visits}, {threshold}"

    @property
    def options(self) -> Options:
        """The options that this schedule was made with."""
        return self.epochs.options

    @property
    def active_pass(self) -> Pass | None:
        """The pass that was opened last, if it has not come to its end; None in a hand-written loop."""
        return None if self._pass is None or self._pass.phase is Phase.OVER else self._pass

    @property
    def batch_index(self) -> int:
        """Position, from 0, of the base batch that is out, also when it is repeated.

        It is what ``enumerate`` over the loader gives in training without repeats, and stays the same for all visits
        to a batch, before ``decide`` and after it, with deferred repeats too. In a hand-written loop, and between
        passes of ``attend``, it is that of the batch that the next decision is about.
        """
        current = self.active_pass
        if current is None or current.phase is Phase.LEFT:
            return self.epochs.state.position
        return current.position

    @property
    def place(self) -> int:
        """The position at which the batch that is out is done with, as a ``Criterion`` takes it."""
        is_in_order = self.driver is None or self.driver.is_in_order
        return self.epochs.state.batches if is_in_order else self.batch_index

    def attach(self, driver: Driver) -> None:
        """Have the batches handed out by ``driver`` from here on.

        Raises:
            ProtocolError: If another one does so already.
        """
        if self.driver is not None:
            raise ProtocolError("this schedule belongs to another BatchAttentionSampler; make one for each sampler")
        self.driver = driver

    def open_pass(self, length: int | None = None, common: dict[str, Any] | None = None) -> Pass:
        """Begin a pass over batches. One that was open is left: its epoch begins anew.

        Args:
            length: How many batches there are, if all of them will be offered from the first one on.
            common: What has to be the same on every rank, besides options, state and length, as JSON types.

        Raises:
            ProtocolError: If there are decisions from outside any pass, or more batches than remain of a resumed epoch,
                or ranks that nobody said are to decide apart.
            RanksDivergedError: If another rank is not where this one is.
        """
        self.agreement.require_choice()
        if self.active_pass is not None:
            self.forget_epoch(was_left=True)
        self.epochs.check_accounted()
        if length is not None and self.driver is None:
            self.epochs.check_remaining(length)
        self._agree_on_begin(length, common)
        self._pass = Pass(self.epochs, self.driver, is_announced=length is None)
        return self._pass

    def check_word_is_due(self, word: str) -> Pass | None:
        """The pass whose batch a loss, or a skip, is about; None in a hand-written loop.

        Args:
            word: What was called, "decide", "report" or "skip".

        Raises:
            ProtocolError: If no batch is waiting for one.
        """
        current = self.active_pass
        if current is not None and current.phase is Phase.LEFT:
            self.forget_epoch(was_left=True)
            current = None
        if current is not None:
            current.check_word_is_due(word)
        elif self.driver is not None:
            raise ProtocolError(
                f"{word}() was called while no batch of the BatchAttentionSampler was out. Iterate over "
                "schedule.attend(loader), with the DataLoader built on that sampler, and report each loss in that loop"
            )
        return current

    def check_may_end_epoch(self) -> None:
        """Refuse to have an epoch ended by hand where it is not over, or ends by itself.

        Raises:
            ProtocolError: If so.
        """
        if self.options.window is not None:
            raise ProtocolError(f"window={self.options.window} ends each epoch by itself; do not call end_epoch()")
        if self.active_pass is not None:
            raise ProtocolError(
                "end_epoch() is for hand-written loops; attend() ends the epoch by itself when the loader does. "
                "To train on fewer batches, give attend() fewer: itertools.islice(loader, n), or, with a sampler, "
                "BatchAttentionSampler(..., batches_per_epoch=n)"
            )
        if visits := self.epochs.state.visits:
            raise ProtocolError(
                f"the last decision was REPEAT after {visits} visits; train on that batch until the "
                "decision is ADVANCE, set max_visits, give the batch up with skip(), or the epoch with abandon_epoch()"
            )

    def _begin_by_hand(self) -> None:
        """A visit is made outside of any pass: it may be the first of its epoch.

        Raises:
            ProtocolError: If there are ranks that nobody said are to decide apart.
            RanksDivergedError: If another rank is not where this one is.
        """
        self.agreement.require_choice()
        self._agree_on_begin(None, None)

    def _agree_on_begin(self, length: int | None, common: dict[str, Any] | None) -> None:
        state = self.epochs.state
        facts = {**self.options_to_save(), "batches to come": length, **(common or {}), **asdict(state)}
        self.agreement.begin(state.epoch, state.position, state.visits, facts)

    def put_report(self, word: str, loss: object, samples: object, batch: object) -> None:
        """The loss of the visit under way is known.

        Args:
            word: What was called, "decide" or "report".
            loss: As ``decide`` takes it.
            samples: Likewise.
            batch: Likewise.
        """
        current = self.check_word_is_due(word)
        if self.reports.is_out:
            raise ProtocolError(f"{word}() was given a loss after report() had been; call decide() without one")
        state = self.epochs.state
        position = state.position if current is None else current.position
        if batch is not None or self.key_due.is_due:
            self.key_due.check(position, batch)
        if current is None:
            self._begin_by_hand()
        elif samples is None and current.indices is not None:
            samples = len(current.indices)
        self.reports.put(state, position, loss, samples, batch)

    def loss_reported(self, loss: object, samples: object, batch: object) -> tuple[float, object]:
        """The loss to decide on, reported just now or before, and the batch's key."""
        if loss is not REPORTED:
            self.put_report("decide", loss, samples, batch)
        elif samples is not None or batch is not None:
            raise ProtocolError("decide() without a loss was given samples= or batch=; give them to report()")
        return self.reports.take()

    def forget_epoch(self, *, was_left: bool) -> None:
        """Begin the epoch in progress anew.

        Args:
            was_left: Because its loop was left, rather than because somebody asked for it.
        """
        self._retire_pass()
        if self.driver is not None:
            self.driver.forget_epoch()
        self.epochs.forget(was_left=was_left)

    def unpack(self, state_dict: object) -> tuple[State, EpochSummary | None]:
        """What ``assign`` takes, of a saved state.

        Raises:
            StateError: If it is of another version or of other options, or is damaged.
        """
        return checkpoint.unpack_schedule(self.options, state_dict, self.options_to_save(), self.agreement.count)

    def assign(self, state: State, last_summary: EpochSummary | None) -> None:
        """Go on from what ``unpack`` returned."""
        self._retire_pass()
        self.epochs.assign(state, last_summary)

    def options_to_save(self) -> dict[str, Any]:
        """What a state that is loaded here has to agree with."""
        return self.options.to_save()

    def _retire_pass(self) -> None:
        self.key_due.clear()
        self.reports.drop()
        if self._pass is not None:
            self._pass.retire()
            self._pass = None
