"""What a schedule keeps: the rule's state, whose turn it is, who is told, and where an epoch begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batch_sampler_attn import notices, rule, turns
from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import EmptyEpochError, OptionError, ProtocolError, shown
from batch_sampler_attn.recorders import Recorder
from batch_sampler_attn.rule import Decision, EpochSummary, Options, State
from batch_sampler_attn.turns import Turns

if TYPE_CHECKING:
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.tickets import Ticket

# An epoch of so many batches that hardly any data set has them.
ENDLESS = 1_000_000


class Bookkeeping:
    """The part of ``BatchAttentionSchedule`` that its loops and its sampler drive, all of it private.

    Args:
        options: Checked already.
        recorders: As the schedule was given them.

    Raises:
        OptionError: If a recorder is none.
    """

    def __init__(self, options: Options, recorders: Sequence[Recorder]) -> None:
        self._options = options
        self._recorders = _check_recorders(recorders)
        self._state = State()
        self._last_summary: EpochSummary | None = None
        self._warned = False
        self._sampler: BatchAttentionSampler | None = None
        self._abandoned_in_a_row = 0
        self._turns = Turns()
        # Of the epoch in progress: what came from passes of attend or a loaded state, and not by hand.
        self._accounted = 0
        # The position at which a loaded state goes on in mid-epoch.
        self._resumed_at: int | None = None
        # The position and the user's key of the batch that is to be repeated, if a key was given.
        self._key_due: tuple[int, object] | None = None
        self._update_watch()

    # One visit, with someone watching, or with a loss to warn of -----------------------------------------

    def _decide_carefully(self, loss: float, key: object) -> Decision:
        if self._turns.phase is turns.LEFT:
            self._abandon_left_epoch()
        self._turns.check_word_is_due("decide", by_hand_too=self._sampler is None)
        state, position = self._state, self._position
        self._check_key(position, key)
        epoch, visits = state.epoch, state.visits + 1
        nonfinite_losses = state.nonfinite_losses
        decision = self._visit(loss)
        self._key_due = (position, key) if key is not None and decision is Decision.REPEAT else None
        self._turns.settle(decision)
        if self._sampler is not None:
            self._sampler._settle(decision, visits)
        try:
            for recorder in self._recorders:
                recorder.on_visit(epoch, position, visits, loss, decision, self._turns.indices)
            if state.nonfinite_losses > nonfinite_losses and not self._warned:
                self._warned = True
                notices.nonfinite_loss(loss, epoch, stacklevel=3)
            if state.batches == ENDLESS and decision is Decision.ADVANCE:
                self._notice_endless_epoch(stacklevel=3)
        finally:
            # A recorder or a warning that raises must not make the window miss its end.
            if state.batches == self._options.window:
                self._end_epoch()
        return decision

    def _visit(self, loss: float) -> Decision:
        return rule.visit(self._options, self._state, loss)

    def _skip(self) -> None:
        if self._turns.phase is turns.LEFT:
            self._abandon_left_epoch()
        self._turns.check_word_is_due("skip", by_hand_too=self._sampler is None)
        rule.skip(self._state)
        self._key_due = None
        self._turns.settle(Decision.ADVANCE, was_skipped=True)
        if self._sampler is not None:
            self._sampler._skip()
        if self._state.batches == self._options.window:
            self._end_epoch()

    def _check_key(self, position: int, key: object) -> None:
        if key is None or self._key_due is None:
            return
        due_position, due = self._key_due
        if due_position == position and not _is_same(key, due):
            raise ProtocolError(
                f"the last decision was REPEAT for batch {shown(due)}, and now the loss of batch {shown(key)} was "
                "reported. Train on the same batch until the decision is ADVANCE; to give it up, after running out of "
                "memory, say, call schedule.skip() before the next batch"
            )

    @property
    def _position(self) -> int:
        """Of the batch that is out; with deferred repeats it is not the number of batches that are behind."""
        return self._state.position if self._turns.position is None else self._turns.position

    @property
    def _progress(self) -> int:
        """How much has happened in the epoch in progress: 0 if and only if nothing has."""
        return self._state.batches + self._state.repeats + self._state.skipped_batches

    def _notice_endless_epoch(self, *, stacklevel: int) -> None:
        # Once an epoch has ended, epochs do end, and this is a long one.
        if self._last_summary is None and self._options.window is None:
            notices.epoch_without_end(self._state.batches, stacklevel=stacklevel + 1)

    # Where epochs begin and end --------------------------------------------------------------------------

    def _end_epoch(self, host_reads: int | None = None) -> EpochSummary:
        state = self._state
        if not state.batches:
            raise EmptyEpochError(
                "the epoch ended without a batch. Is the loader empty, was every batch skipped, or is drop_last set on "
                "less than one batch of data? Or is it an iterator (a generator, enumerate, zip, map) that an earlier "
                "epoch has used up? Then give attend() the loader itself, which begins anew: "
                "for index, batch in enumerate(schedule.attend(loader))"
            )
        summary = rule.end_epoch(self._options, state)
        summary.host_reads = host_reads
        self._last_summary = summary
        self._abandoned_in_a_row = 0
        self._begin_anew()
        for recorder in self._recorders:
            recorder.on_epoch_end(summary)
        if summary.mean_loss is not None and summary.mean_loss < 0 < self._options.k - 1 and self._may_ever_repeat:
            notices.negative_mean(summary.mean_loss, summary.epoch, stacklevel=3)
        return summary

    def _begin_anew(self) -> None:
        self._warned = False
        self._accounted = 0
        self._resumed_at = self._key_due = None

    def _abandon_left_epoch(self) -> None:
        self._forget_epoch()
        self._abandoned_in_a_row += 1
        if self._abandoned_in_a_row == 2:
            notices.epochs_left_early(stacklevel=4)

    def _forget_epoch(self) -> None:
        if self._progress:
            for recorder in self._recorders:
                recorder.on_epoch_abandoned(self._state.epoch)
        self._state.clear_epoch()
        self._begin_anew()
        if self._sampler is not None:
            self._sampler._forget_epoch()
        self._turns.reset()
        self._update_watch()

    def _assign(self, state: State, last_summary: EpochSummary | None) -> None:
        self._state = state
        self._last_summary = last_summary
        self._begin_anew()
        self._warned = state.nonfinite_losses > 0
        self._accounted = self._progress
        self._resumed_at = state.position or None
        self._turns.reset()
        self._update_watch()
        for recorder in self._recorders:
            # Recorders of the user's own may know nothing of it.
            if hasattr(recorder, "on_state_loaded"):
                recorder.on_state_loaded(state.epoch, state.batches + state.repeats)

    # A pass of attend(), driven by an iterator ---------------------------------------------------------

    @property
    def _is_on_its_own(self) -> bool:
        """Whether the loader alone says how long an epoch is."""
        return self._sampler is None and self._options.window is None

    @property
    def _last_total(self) -> int:
        """The batches of the last epoch, where the loader alone says how long an epoch is; 0 if it is not known."""
        return self._last_summary.batches if self._last_summary is not None and self._is_on_its_own else 0

    @property
    def _may_ever_repeat(self) -> bool:
        return self._options.max_visits != 1

    def _update_watch(self) -> None:
        # Kept as one flag, since decide() looks at it on every update.
        self._is_watched = (
            self._turns.phase is not turns.BY_HAND
            or bool(self._recorders)
            or self._options.window is not None
            or self._sampler is not None
            or type(self)._visit is not Bookkeeping._visit
        )

    def _bind(self, sampler: BatchAttentionSampler) -> None:
        if self._sampler is not None:
            raise ProtocolError("this schedule belongs to another BatchAttentionSampler; make one for each sampler")
        self._sampler = sampler
        self._update_watch()

    def _check_remaining(self, loader: object) -> None:
        """Refuse a whole loader where a loaded state has a part of the epoch behind it.

        What keeps its own place, as a StatefulDataLoader does, goes on by itself.
        """
        resumed_at = 0 if self._turns.phase is not turns.BY_HAND else self._resumed_at or 0
        keeps_its_place = hasattr(loader, "load_state_dict")
        if 0 < resumed_at < self._last_total == length_of(loader) and not keeps_its_place:
            raise ProtocolError(
                f"the schedule goes on in the middle of an epoch, after {resumed_at} batches, and the loader has "
                f"{self._last_total}, as many as the whole epoch before. Give attend() the remaining ones: "
                "schedule.attend(itertools.islice(loader, schedule.batch_index, None)), in the order of the saved run; "
                "or begin the epoch anew after schedule.abandon_epoch()"
            )

    def _open_pass(self) -> object:
        if self._turns.phase is not turns.BY_HAND:
            self._abandon_left_epoch()
        elif self._progress not in (0, self._accounted):
            raise ProtocolError(
                "decide() or skip() was called outside a loop of attend(), by an evaluation, say: "
                f"{self._state.batches} batches and {self._state.repeats} repeats would count in the epoch that is "
                "about to begin. Forget them with schedule.abandon_epoch(), or, if they are an epoch of a hand-written "
                "loop, end it with schedule.end_epoch()"
            )
        token = self._turns.open()
        self._update_watch()
        return token

    def _offer(self, token: object, ticket: Ticket | None = None) -> None:
        """A batch is about to be yielded; a sampler says which one, and how often it was visited."""
        if ticket is None:
            state = self._state
            self._turns.offer(token, state.batches + state.skipped_batches)
        else:
            self._turns.offer(token, ticket.position, ticket.indices)
            self._state.visits = ticket.visits

    def _close_pass(self, token: object, *, finished: bool) -> None:
        if not self._turns.close(token, finished=finished):
            return
        self._update_watch()
        if finished:
            self._accounted = self._progress
        if finished and self._options.window is None:
            total, last_total, resumed_at = self._state.position, self._last_total, self._resumed_at
            self._end_epoch()
            # Epochs may differ in length, but hardly by just what was behind: trained on, or left out, twice.
            if resumed_at is not None and abs(total - last_total) == resumed_at < last_total:
                notices.other_total_after_resume(total, last_total, resumed_at, stacklevel=3)


def _is_same(key: object, other: object) -> bool:
    """Whether two keys are equal; arrays that are not the same one are not compared, and are others."""
    try:
        return key is other or bool(key == other)
    except Exception:  # whatever an array of several elements raises when asked for its truth
        return False


def _check_recorders(recorders: object) -> tuple[Recorder, ...]:
    if not isinstance(recorders, (list, tuple)) or not all(hasattr(recorder, "on_visit") for recorder in recorders):
        raise OptionError(
            f"recorders is {shown(recorders)}; it must be a list of recorders, such as [MemoryRecorder()] from "
            "batch_sampler_attn.recorders"
        )
    return tuple(recorders)
