"""The passes of one schedule over its data: the order of calls, the ends of epochs, and notifications.

Any code that hands out batches opens a ``Pass`` for each epoch: a loop around an iterable, a DataLoader with a sampler
of this package, a trainer, a device loop. It offers a batch, the loss arrives, it collects the decision, and only then
offers the next batch. ``docs/architecture.md`` has a driver in ten lines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

from batch_sampler_attn import checkpoint, rule
from batch_sampler_attn.errors import STALE, EmptyEpochError, OptionError, ProtocolError, plural, short_repr, warn
from batch_sampler_attn.losses import as_float, detached
from batch_sampler_attn.options import Options, sample_weight
from batch_sampler_attn.ranks import MessageKind, Ranks, RanksOption
from batch_sampler_attn.rule import ADVANCE, Criterion, Decision, State
from batch_sampler_attn.summary import EpochSummary

# Stands for the loss in ``decide()``, if ``report`` was called before.
REPORTED = object()

# A first epoch of this length probably never ends: a hand-written loop lacks end_epoch(), or attend() has a stream.
_LONG_BY_HAND = 5_000
_ENDLESS = 1_000_000

# Warn after this many epochs with a threshold and without a repeat.
_QUIET_EPOCHS = 5
# Shorter epochs say little about the cost of later ones.
_LEAST_BATCHES = 20


class Run(NamedTuple):
    """All that a schedule remembers. One assignment replaces it, so an interrupt finds it before or after a visit."""

    state: State
    last_summary: EpochSummary | None  # of the last epoch that ended
    length: int | None  # batches of the epoch in progress, if the loader has a length
    flight: Any  # the driver's batches in flight, as an immutable value


# Run(...) takes twice as long.
_run_of = partial(tuple.__new__, Run)


class Recorder:
    """Base class of recorders, which are notified of visits and epochs. Override the methods that you need."""

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        """A decision was made; the arguments are the fields of ``VisitRecord``."""

    def on_epoch_end(self, summary: EpochSummary) -> None:
        """An epoch ended."""

    def on_epoch_abandoned(self, epoch: int) -> None:
        """The epoch in progress was abandoned: its visits do not count, and it starts again."""

    def on_state_loaded(self, epoch: int, visits: int) -> None:
        """A state was loaded, saved after ``visits`` visits of ``epoch``: later records no longer count."""

    def flush(self) -> None:
        """A state is being saved: write everything recorded so far."""


class Driver(Protocol):
    """Hands out a schedule's batches in place of plain iteration.

    Attributes:
        is_in_order: Whether a batch is finished before the next one begins.
    """

    is_in_order: bool

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Lock for replacing ``Run``, since a loader may request indices on another thread."""

    def deliver(self, loader: Any) -> Iterator[Any]:
        """One epoch: yield the loader's batches, and each again while the decision is REPEAT."""

    def after_decision(self, flight: Any, decision: Decision | None, visits: int) -> Any:
        """The flight after ``decision`` on visit number ``visits`` to the current batch, or None for a skip."""

    def restarted(self) -> Any:
        """The flight at the start of an epoch."""


# What a pass waits for.
BETWEEN_BATCHES = "the next batch"
AWAITING_LOSS = "the current batch's loss"
DECIDED = "collect(), after a decision"
SKIPPED = "collect(), after a skip"
LEFT = "nothing: its loop was left"
OVER = "nothing: it ended, or its epoch was abandoned"

_GIVE_REMAINING = (
    "Give attend() the remaining batches: schedule.attend(itertools.islice(loader, schedule.batch_index, None))"
)
_FEWER_BATCHES = (
    "To train on n batches an epoch, give attend() no more: schedule.attend(itertools.islice(loader, n)), or "
    "BatchAttentionSampler(..., batches_per_epoch=n)"
)


class Passes:
    """One schedule's passes. Without a ``driver``, batches come from plain iteration or a hand-written loop."""

    def __init__(self, options: Options, recorders: Sequence[Recorder], ranks: RanksOption) -> None:
        self.options = options
        self.criterion: Criterion = rule.criterion_of(options)
        self.recorders = _checked_recorders(recorders)
        self.ranks = Ranks(ranks)
        self.driver: Driver | None = None
        self.run = Run(State(), None, None, None)
        # A state to be loaded must have the same.
        self.saved_options = dataclasses.asdict(options)
        # Numbers of finished batches at which to end the epoch, or perhaps to warn.
        self._noted_batches = {options.epoch_length, _LONG_BY_HAND, _ENDLESS}
        self._pass: Pass | None = None
        # The loss given to report(), as a function that waits for its value.
        self._reported: Callable[[], float] | None = None
        # The first loss leads to a comparison of the ranks; True once later losses can skip it.
        self._decides_alone = False
        # The epoch's progress when a pass ended or a state was loaded. Decisions outside of any pass exceed it.
        self._accounted = 0
        self._resumed_at: int | None = None
        self._epochs_left_in_a_row = 0
        self._quiet_epochs = 0
        self._has_warned_of_cost = False
        self._has_warned_of_loss = False

    def __getstate__(self) -> dict[str, Any]:
        # A loss in transit between ranks belongs to the original; the copy reports the visit again.
        return {**vars(self), "_reported": self._reported if self.ranks.transport is None else None}

    @property
    def state(self) -> State:
        """The rule's state."""
        return self.run.state

    @property
    def active(self) -> Pass | None:
        """The pass opened last, if it has not ended; None in a hand-written loop."""
        return None if self._pass is None or self._pass.phase == OVER else self._pass

    @property
    def current(self) -> Pass | None:
        """The active pass, if its loop was not left."""
        return None if self.active is None or self.active.phase == LEFT else self.active

    def set_driver(self, driver: Driver) -> None:
        """Let ``driver`` hand out the batches."""
        if self.driver is not None:
            raise ProtocolError("this schedule belongs to another BatchAttentionSampler; make one for each sampler")
        self.driver = driver
        self.replace(flight=driver.restarted())

    # Visits ----------------------------------------------------------------------------------------------

    def decide(self, loss: object, samples: object) -> Decision:
        """``BatchAttentionSchedule.decide``."""
        current = self._pass
        if current is None or current.phase != AWAITING_LOSS:
            current = self._pass_awaiting("decide")
        if loss is REPORTED or samples is not None or not self._decides_alone:
            loss = self._agreed_loss(loss, samples)
        value = loss if type(loss) is float else as_float(loss)
        state, last_summary, length, flight = self.run
        driver = self.driver
        # In order, it is the number of finished batches; with deferred repeats, the position of this batch.
        batch = state.batches if driver is None or driver.is_in_order or current is None else current.position
        after, decision = rule.visit(self.options, self.criterion, state, value, batch)
        if driver is None:
            self.run = _run_of((after, last_summary, length, flight))
        else:
            with driver.lock:
                flight = driver.after_decision(self.run.flight, decision, state.visits + 1)
                self.run = _run_of((after, last_summary, length, flight))
        if current is not None:
            current.phase, current.decision = DECIDED, decision
        is_noted = after.nonfinite_losses > state.nonfinite_losses or after.batches in self._noted_batches
        if self.recorders or is_noted:
            self._finish_visit(current, state, value, decision)
        return decision

    def report(self, loss: object, samples: object, caller: str = "report") -> None:
        """``BatchAttentionSchedule.report``."""
        current = self._pass_awaiting(caller)
        if self._reported is not None:
            raise ProtocolError(f"{caller}() was given a loss after report(); call decide() without one")
        state = self.state
        if current is None:
            # It may be the first visit of its epoch.
            self._agree_on_begin(None)
        elif samples is None and current.indices is not None:
            samples = len(current.indices)
        position = state.position if current is None else current.position
        if self.ranks.transport is not None:
            self._reported = self.ranks.send_loss(state.epoch, position, state.visits + 1, loss, samples)
        else:
            if samples is not None:
                sample_weight("samples", samples)
            self._reported = partial(as_float, detached(loss))

    def skip(self) -> None:
        """``BatchAttentionSchedule.skip``."""
        current = self._pass_awaiting("skip")
        if self._reported is not None:
            raise ProtocolError("skip() was called after report() had this visit's loss; call decide()")
        state = self.state
        if current is None:
            self._agree_on_begin(None)
        position = state.position if current is None else current.position
        self.ranks.notify(MessageKind.SKIP, state.epoch, position, state.visits + 1)
        if self.driver is None:
            self.replace(state=rule.skip(state))
        else:
            with self.driver.lock:
                flight = self.driver.after_decision(self.run.flight, None, state.visits)
                self.replace(state=rule.skip(state), flight=flight)
        if current is not None:
            current.phase, current.decision = SKIPPED, ADVANCE
        if self.state.batches == self.options.epoch_length:
            self.end_epoch()

    def _agreed_loss(self, loss: object, samples: object) -> float:
        """The loss to decide on, reported now or before; with ranks, the mean over them."""
        if loss is not REPORTED:
            self.report(loss, samples, "decide")
        reported, self._reported = self._reported, None
        if reported is None:
            raise ProtocolError("decide() was called without a loss, and none was reported; call decide(loss)")
        self._decides_alone = self.ranks.transport is None
        return reported()

    def _pass_awaiting(self, caller: str) -> Pass | None:
        """The pass that awaits a loss or a skip; None in a hand-written loop."""
        current = self._pass
        if current is not None and current.phase == AWAITING_LOSS:
            return current
        if current is not None and current.phase == LEFT:
            self.abandon(was_left=True)
        elif current is not None and current.phase != OVER:
            raise current.out_of_turn(caller)
        if self.driver is not None:
            raise ProtocolError(
                f"{caller}() was called while no batch of the BatchAttentionSampler was current. Call it in a loop of "
                "schedule.attend(loader), with the DataLoader built on that sampler"
            )
        return None

    def _finish_visit(self, current: Pass | None, before: State, loss: float, decision: Decision) -> None:
        """Notify recorders, warn, and end the epoch if it has reached its fixed length."""
        state = self.run.state
        position, indices = (before.position, None) if current is None else (current.position, current.indices)
        try:
            for recorder in self.recorders:
                recorder.on_visit(state.epoch, position, before.visits + 1, loss, decision, indices)
            if state.nonfinite_losses != before.nonfinite_losses and not self._has_warned_of_loss:
                self._has_warned_of_loss = True
                what = "not finite" if loss - loss != 0.0 else "too large to be averaged"
                warn(
                    f"a loss of {loss} in epoch {state.epoch} is {what}: its batch is not repeated, and the loss is "
                    "kept out of the mean (one warning an epoch; EpochSummary.nonfinite_losses counts them)"
                )
            if state.batches in (_LONG_BY_HAND, _ENDLESS) and decision is ADVANCE:
                self._warn_of_long_epoch(state.batches)
        finally:
            # A recorder or a warning that raises must not keep the epoch from ending.
            if state.batches == self.options.epoch_length:
                self.end_epoch()

    # Epochs ----------------------------------------------------------------------------------------------

    def open(self, length: int | None = None, common: dict[str, Any] | None = None) -> Pass:
        """Begin a pass over batches. If another pass is open, its epoch is abandoned.

        Args:
            length: Number of batches, if all of them will be offered.
            common: Further values, of JSON types, that must be equal on all ranks.
        """
        if self.active is not None:
            self.abandon(was_left=True)
        state = self.state
        if state.progress not in (0, self._accounted):
            raise ProtocolError(
                f"{plural(state.batches, 'batch', 'batches')} and {plural(state.repeats, 'repeat', 'repeats')} were "
                "decided on outside a loop of attend(), and would count in the epoch that is about to begin. Call "
                "abandon_epoch() to forget them, or end_epoch() if they are an epoch of a hand-written loop"
            )
        resumed_at = self._resumed_at
        if self.driver is None and resumed_at is not None and resumed_at <= self._whole_length == length:
            raise ProtocolError(
                f"the schedule resumes in mid-epoch, after {resumed_at} batches, and the loader has {length}, as many "
                f"as the whole epoch. {_GIVE_REMAINING}, in the order of the saved run; or call abandon_epoch()"
            )
        self._agree_on_begin(length, common)
        if not state.progress:
            self.replace(length=length)
        self._pass = Pass(self, announces=length is None)
        return self._pass

    def end_epoch(self, host_reads: int | None = None) -> EpochSummary:
        """End the epoch in progress; ``host_reads`` goes into its summary."""
        state = self.state
        self.ranks.end(state.epoch, state.position)
        if not state.batches:
            raise EmptyEpochError(
                "the epoch ended without a batch: the loader is empty, every batch was skipped, drop_last is set on "
                "less than one batch, or an earlier epoch used up an iterator (a generator, enumerate, zip, map). Give "
                "attend() the loader itself: for index, batch in enumerate(schedule.attend(loader))"
            )
        after, summary = rule.end_epoch(self.criterion, state)
        summary = dataclasses.replace(summary, host_reads=host_reads)
        # An epoch of fixed length ends in the middle of the loader, so batches in flight stay in flight.
        is_loaders_end = self.options.epoch_length is None
        restarted = {"flight": self.driver.restarted()} if self.driver is not None and is_loaders_end else {}
        self.replace(state=after, last_summary=summary, length=None, **restarted)
        self._epochs_left_in_a_row = 0
        self._begin()
        for recorder in self.recorders:
            recorder.on_epoch_end(summary)
        self._warn_of_overhead(summary)
        return summary

    def end_epoch_by_hand(self) -> EpochSummary:
        """``BatchAttentionSchedule.end_epoch``."""
        if self.options.epoch_length is not None:
            length = self.options.epoch_length
            raise ProtocolError(f"epoch_length={length} ends each epoch by itself; do not call end_epoch()")
        if self.active is not None:
            raise ProtocolError(f"attend() ends the epoch by itself when the loader does. {_FEWER_BATCHES}")
        if visits := self.state.visits:
            raise ProtocolError(
                f"the last decision was REPEAT after {visits} visits; train on that batch until the decision is "
                "ADVANCE, or give it up with skip(), or the epoch with abandon_epoch()"
            )
        if self._reported is not None:
            raise ProtocolError("end_epoch() was called after report() had a visit's loss; call decide() first")
        self._decides_alone = False  # there may be ranks from the next epoch on
        return self.end_epoch()

    def abandon(self, *, was_left: bool) -> None:
        """Discard the epoch in progress, because its loop was left or at the user's request."""
        self._retire_pass()
        if self.state.progress:
            for recorder in self.recorders:
                recorder.on_epoch_abandoned(self.state.epoch)
        flight = None if self.driver is None else self.driver.restarted()
        self.replace(state=self.state.restarted(), length=None, flight=flight)
        self._begin()
        self._epochs_left_in_a_row = self._epochs_left_in_a_row + 1 if was_left else 0
        if self._epochs_left_in_a_row == 2:
            warn(
                "two epochs in a row were left before their end. An epoch that is left sets no threshold, so nothing "
                f"will ever repeat. {_FEWER_BATCHES}; for epochs of n batches of a stream, use epoch_length=n"
            )

    def _begin(self) -> None:
        self.ranks.forget()
        self._has_warned_of_loss = False
        self._accounted = 0
        self._resumed_at = None

    def _agree_on_begin(self, length: int | None, common: dict[str, Any] | None = None) -> None:
        self.ranks.require_choice()
        if self.ranks.transport is not None:
            state = self.state
            facts = {**self.saved_options, "batches to come": length, **(common or {}), **state._asdict()}
            self.ranks.begin(state.epoch, state.position, state.visits, facts)

    @property
    def _whole_length(self) -> int:
        """Batches of the whole epoch in progress; 0 if unknown."""
        _, last_summary, length, _ = self.run
        if length is not None:
            return length
        return 0 if last_summary is None or self.options.epoch_length is not None else last_summary.batches

    def close_epoch(self, host_reads: int | None) -> None:
        """End the epoch of a pass that has ended, unless epochs have a fixed length."""
        self._accounted = self.state.progress
        if self.options.epoch_length is not None:
            return
        total, resumed_at = self.state.position, self._resumed_at
        expected = 0 if self.driver is not None else self._whole_length
        self.end_epoch(host_reads)
        # Epochs may differ in length, but hardly by exactly the batches that were trained on, or omitted, twice.
        if resumed_at is not None and abs(total - expected) == resumed_at <= expected:
            warn(
                f"the epoch that was resumed after {resumed_at} batches had {total} batches in all, instead of "
                f"{expected}. {_GIVE_REMAINING}, just once"
            )

    def _warn_of_overhead(self, summary: EpochSummary) -> None:
        """Warn, once each, if the options lead to no repeats at all or to far too many."""
        options, mean_loss = self.options, summary.mean_loss
        # A control's mean never sets a threshold.
        is_compared = summary.epoch + 1 >= options.warmup_epochs and options.max_visits != 1
        if is_compared and mean_loss is not None and mean_loss < options.floor and options.k > 1:
            warn(
                f"the mean loss of epoch {summary.epoch} is {mean_loss}, below floor={options.floor}: the threshold is "
                "then below the mean, and most batches repeat. Set floor= to the lowest possible mean loss"
            )
            return
        if summary.threshold is None or summary.batches < _LEAST_BATCHES:
            return
        if summary.overhead > 1 and not self._has_warned_of_cost:
            self._has_warned_of_cost = True
            warn(
                f"epoch {summary.epoch} took {summary.overhead:.0%} more updates than plain training. Set budget=0.2, "
                f"say, for at most 20 %, or max_visits, or a higher k than {options.k} (one warning)"
            )
        self._quiet_epochs = -1 if summary.repeats or self._quiet_epochs < 0 else self._quiet_epochs + 1
        if self._quiet_epochs == _QUIET_EPOCHS and options.max_visits != 1:
            advice = "Raise the budget, or shuffle the data" if options.budget is not None else "Use a lower k, or wait"
            warn(
                f"k={options.k} has repeated nothing in {_QUIET_EPOCHS} epochs with a threshold. {advice}: batches "
                "differ more as training continues (one warning)"
            )

    def _warn_of_long_epoch(self, batches: int) -> None:
        """Warn if the first epoch seems to have no end, so that nothing would ever repeat."""
        is_by_hand = self._pass is None
        is_long = batches == (_LONG_BY_HAND if is_by_hand else _ENDLESS)
        if is_long and self.run.last_summary is None and self.options.epoch_length is None:
            end = "call schedule.end_epoch() after each epoch, or " if is_by_hand else ""
            warn(
                f"the first epoch has reached {batches:,} batches without an end, and nothing repeats before it has "
                f"ended: {end}use BatchAttentionSchedule(epoch_length=N), which ends one every N batches"
            )

    def pack(self) -> dict[str, Any]:
        """Everything to be saved except the flight, as JSON types."""
        for recorder in self.recorders:
            try:
                recorder.flush()
            except Exception as error:  # a full disk, or anything that a user's recorder raises
                warn(f"{type(recorder).__name__} could not write what it had recorded: {error}")
        run, summary = self.run, self.run.last_summary
        return checkpoint.seal(
            {
                "options": self.saved_options,
                "state": run.state._asdict(),
                "last_summary": None if summary is None else summary.as_dict(),
                "epoch_batches": run.length,
                "ranks": self.ranks.shard.ranks,
            }
        )

    def unpack(self, packed: object) -> Run:
        """The saved state as a ``Run`` for ``assign``, without a flight."""
        keys = {"options", "state", "last_summary", "epoch_batches", "ranks"}
        fields = checkpoint.unseal("the schedule's state", packed, keys)
        checkpoint.check_options(self.saved_options, fields["options"])
        state, summary = State(**fields["state"]), fields["last_summary"]
        checkpoint.check_ranks(fields["ranks"], self.ranks.shard.ranks, is_in_epoch=state.progress > 0)
        return Run(state, None if summary is None else EpochSummary(**summary), fields["epoch_batches"], None)

    def assign(self, run: Run) -> None:
        """Resume from what ``unpack`` returned, with a flight if there is a driver."""
        if run.flight is None and self.driver is not None:
            run = run._replace(flight=self.driver.restarted())
        self._retire_pass()
        self.replace(**run._asdict())
        self._begin()
        state = run.state
        self._has_warned_of_loss = state.nonfinite_losses > 0
        self._accounted = state.progress
        self._resumed_at = state.position or None
        for recorder in self.recorders:
            # A user's recorder may lack this method.
            if hasattr(recorder, "on_state_loaded"):
                recorder.on_state_loaded(state.epoch, state.batches + state.repeats)

    def replace(self, **changes: Any) -> None:
        """Change parts of ``run``, in one assignment."""
        with nullcontext() if self.driver is None else self.driver.lock:
            self.run = self.run._replace(**changes)

    def _retire_pass(self) -> None:
        self._reported = None
        if self._pass is not None:
            self._pass.phase = OVER
            self._pass = None


class Pass:
    """Matches losses to batches, and refuses calls in the wrong order.

    As a context manager, it is closed at the end: as finished, or as left if the body raised an error.

    Attributes:
        phase: What the pass waits for.
        position: Position of the current batch, or of the last one.
        indices: The batch's dataset indices, if the driver gave them.
        decision: The last decision.
        is_first_visit: Whether the current visit is the batch's first.
        may_repeat: Whether any batch may ever be repeated.
    """

    def __init__(self, passes: Passes, *, announces: bool = False) -> None:
        self.phase = BETWEEN_BATCHES
        self.position = passes.state.position
        self.indices: Sequence[int] | None = None
        self.is_first_visit = True
        self.decision = ADVANCE
        self._passes = passes
        self._announces = announces and passes.ranks.transport is not None
        self.may_repeat = passes.options.max_visits != 1

    def __enter__(self) -> Pass:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(finished=kind is None)

    def offer(
        self, position: int | None = None, *, visits: int | None = None, indices: Sequence[int] | None = None
    ) -> None:
        """Announce the batch that is yielded next, with its position and earlier visits if batches are out of order."""
        if self.phase != BETWEEN_BATCHES:
            self._check_is_open()
        state = self._passes.run.state
        if visits is not None and visits != state.visits:
            state = state._replace(visits=visits)
            self._passes.replace(state=state)
        self.position = state.batches + state.skipped_batches if position is None else position
        self.is_first_visit = not state.visits
        self.indices = indices
        if self._announces and not state.visits:
            self._passes.ranks.notify(MessageKind.BATCH, state.epoch, self.position, 1)
        self.phase = AWAITING_LOSS

    def collect(self) -> Decision:
        """Return the decision on the batch that was yielded; ADVANCE if it was skipped."""
        if self.phase != DECIDED and self.phase != SKIPPED:
            self._check_is_open()
            state = self._passes.state
            self._passes.ranks.notify(MessageKind.REFUSED, state.epoch, self.position, state.visits + 1)
            raise ProtocolError(
                "the next batch was requested before decide() had the loss of the last one. Call decide(loss), or "
                "skip(), once for each batch. To evaluate, iterate over the loader that attend() was given. Put a "
                "prefetcher inside: schedule.attend(prefetcher(loader))"
            )
        self.phase = BETWEEN_BATCHES
        return self.decision

    def take_over(self, state: State) -> None:
        """Take the state after visits that were made and decided on elsewhere."""
        self._check_is_open()
        self._passes.replace(state=state)

    def close(self, *, finished: bool, host_reads: int | None = None) -> None:
        """End the pass, and its epoch with it if all batches are finished and epochs have no fixed length."""
        if self.phase in (LEFT, OVER):
            return
        self.phase = OVER if finished else LEFT
        if finished:
            self._passes.close_epoch(host_reads)

    def out_of_turn(self, caller: str) -> ProtocolError:
        """The error for a loss or a skip that belongs to no batch."""
        if self.phase == SKIPPED:
            what = "for a batch that had been skipped; take the next batch"
        elif self.phase == BETWEEN_BATCHES:
            what = "before attend() had yielded a batch"
        elif caller == "skip":
            what = "after decide() had this visit's loss; call it instead of decide()"
        else:
            what = "twice for one batch; attend() yields the batch again by itself when the decision is REPEAT"
        return ProtocolError(f"{caller}() was called {what}")

    def _check_is_open(self) -> None:
        if self.phase in (LEFT, OVER):
            raise ProtocolError(STALE)


def _checked_recorders(recorders: object) -> tuple[Recorder, ...]:
    are_recorders = isinstance(recorders, (list, tuple)) and all(
        hasattr(recorder, "on_visit") and not isinstance(recorder, type) for recorder in recorders
    )
    if not are_recorders:
        raise OptionError(f"recorders is {short_repr(recorders)}; it must be a list, such as [MemoryRecorder()]")
    return tuple(recorders)  # type: ignore[arg-type]
