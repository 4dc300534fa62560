"""The epochs of a run: the state of the one in progress, where each ends, and who is told of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from batch_sampler_attn import notices, rule
from batch_sampler_attn.criteria import Criterion
from batch_sampler_attn.errors import EmptyEpochError, OptionError, ProtocolError, counted, shown
from batch_sampler_attn.options import Options
from batch_sampler_attn.overhead_watch import OverheadWatch
from batch_sampler_attn.ranks import Ranks
from batch_sampler_attn.recorders.recorder import Recorder
from batch_sampler_attn.rule import ADVANCE, REPEAT, Decision
from batch_sampler_attn.state import State
from batch_sampler_attn.summary import EpochSummary


class Epochs:
    """What a schedule keeps of the epochs behind it and of the one in progress.

    Args:
        options: Checked already.
        criterion: Says which batches want another visit.
        recorders: As the schedule was given them.
        agreement: With the other ranks.

    Attributes:
        options: The same.
        criterion: The same.
        recorders: Told of every visit and every epoch.
        agreement: The same.
        state: Of the rule.
        last_summary: Of the epoch, or window, that ended last; None before.
        resumed_at: The position at which a loaded state goes on in mid-epoch; None in any other epoch.

    Raises:
        OptionError: If a recorder is none.
    """

    def __init__(
        self, options: Options, criterion: Criterion, recorders: Sequence[Recorder], agreement: Ranks
    ) -> None:
        self.options = options
        self.criterion = criterion
        self.recorders = _check_recorders(recorders)
        self.agreement = agreement
        self.state = State()
        self.last_summary: EpochSummary | None = None
        self.resumed_at: int | None = None
        self._watch = OverheadWatch(options)
        self._left_in_a_row = 0
        self._has_warned_of_loss = False
        # Of the epoch in progress: what came from passes or a loaded state, and not by hand.
        self._accounted = 0

    @property
    def may_ever_repeat(self) -> bool:
        """Whether the options let any batch repeat."""
        return self.options.max_visits != 1

    @property
    def last_total(self) -> int:
        """The batches of the last epoch, where the loader says how long an epoch is; 0 if that is not known."""
        is_the_loaders = self.last_summary is not None and self.options.window is None
        return self.last_summary.batches if self.last_summary is not None and is_the_loaders else 0

    # Visits --------------------------------------------------------------------------------------------

    def tell_visit(
        self,
        position: int,
        visit: int,
        loss: float,
        decision: Decision,
        indices: Sequence[int] | None,
        *,
        counted: bool,
    ) -> None:
        """A visit was made and decided on: tell recorders, warn, and end the window if this was its last batch.

        Args:
            position: Of the batch.
            visit: 1 for its first.
            loss: As it was reported.
            decision: On it.
            indices: The batch's dataset indices, if they are known.
            counted: Whether the loss is finite, and could be added up.
        """
        state = self.state
        try:
            for recorder in self.recorders:
                recorder.on_visit(state.epoch, position, visit, loss, decision, indices)
            if decision is REPEAT:
                self._watch.is_quiet = False
            elif visit == 1 and self._watch.is_quiet and state.threshold is not None:
                self._watch.note_loss(loss, state.threshold)
            if not counted and not self._has_warned_of_loss:
                self._has_warned_of_loss = True
                notices.nonfinite_loss(loss, state.epoch)
            # Once an epoch has ended, epochs do end, and this is a long one.
            is_endless = state.batches == notices.ENDLESS and self.last_summary is None and decision is ADVANCE
            if is_endless and self.options.window is None:
                notices.epoch_without_end(state.batches)
        finally:
            # A recorder or a warning that raises must not make the window miss its end.
            if state.batches == self.options.window:
                self.end()

    def end_window(self) -> None:
        """End the window, if there is one and it has all its batches."""
        if self.state.batches == self.options.window:
            self.end()

    # Where they begin and end ----------------------------------------------------------------------------

    def end(self, host_reads: int | None = None) -> EpochSummary:
        """End the epoch in progress.

        Args:
            host_reads: For its summary.

        Raises:
            EmptyEpochError: If it has no batch.
            ProtocolError: If the criterion says that it cannot end here.
            RanksDivergedError: If another rank is not at its end.
        """
        self.agreement.end(self.state.epoch, self.state.position)
        if not self.state.batches:
            raise EmptyEpochError(
                "the epoch ended without a batch. Is the loader empty, was every batch skipped, or is drop_last set on "
                "less than one batch of data? Or is it an iterator (a generator, enumerate, zip, map) that an earlier "
                "epoch has used up? Then give attend() the loader itself, which begins anew: "
                "for index, batch in enumerate(schedule.attend(loader))"
            )
        summary = dataclasses.replace(rule.end_epoch(self.criterion, self.state), host_reads=host_reads)
        self.last_summary = summary
        self._left_in_a_row = 0
        self._begin()
        for recorder in self.recorders:
            recorder.on_epoch_end(summary)
        self._watch.note_epoch(summary)
        return summary

    def forget(self, *, was_left: bool) -> None:
        """Forget the epoch in progress.

        Args:
            was_left: Because its loop was left, rather than because somebody asked for it.
        """
        if self.state.progress:
            for recorder in self.recorders:
                recorder.on_epoch_abandoned(self.state.epoch)
        self.state.clear_epoch()
        self._begin()
        self._left_in_a_row = self._left_in_a_row + 1 if was_left else 0
        if self._left_in_a_row == 2:
            notices.epochs_left_early()

    def assign(self, state: State, last_summary: EpochSummary | None) -> None:
        """Go on from a state that was saved, and is checked already."""
        self.state = state
        self.last_summary = last_summary
        self._begin()
        self._has_warned_of_loss = state.nonfinite_losses > 0
        self.account()
        self.resumed_at = state.position or None
        for recorder in self.recorders:
            # Recorders of the user's own may know nothing of it.
            if hasattr(recorder, "on_state_loaded"):
                recorder.on_state_loaded(state.epoch, state.batches + state.repeats)

    def _begin(self) -> None:
        self.agreement.forget()
        self._has_warned_of_loss = False
        self._accounted = 0
        self.resumed_at = None

    # What passes add up to --------------------------------------------------------------------------------

    def account(self) -> None:
        """What there is of the epoch in progress came from a pass, or from a loaded state."""
        self._accounted = self.state.progress

    def check_accounted(self) -> None:
        """Refuse to begin a pass on top of decisions that were made outside of any.

        Raises:
            ProtocolError: If there are such.
        """
        if self.state.progress not in (0, self._accounted):
            raise ProtocolError(
                "decide() or skip() was called outside a loop of attend(), by an evaluation, say: "
                f"{counted(self.state.batches, 'batch', 'batches')} and "
                f"{counted(self.state.repeats, 'repeat', 'repeats')} would count in the epoch that is "
                "about to begin. Forget them with schedule.abandon_epoch(), or, if they are an epoch of a hand-written "
                "loop, end it with schedule.end_epoch()"
            )

    def check_remaining(self, length: int) -> None:
        """Refuse a whole loader where a loaded state has a part of the epoch behind it.

        Args:
            length: Batches of the loader.

        Raises:
            ProtocolError: If so.
        """
        if self.resumed_at is not None and self.resumed_at < self.last_total == length:
            raise ProtocolError(
                f"the schedule goes on in the middle of an epoch, after {self.resumed_at} batches, and the loader has "
                f"{self.last_total}, as many as the whole epoch before. Give attend() the remaining ones: "
                "schedule.attend(itertools.islice(loader, schedule.batch_index, None)), in the order of the saved run; "
                "or begin the epoch anew after schedule.abandon_epoch()"
            )


def _check_recorders(recorders: object) -> tuple[Recorder, ...]:
    if not isinstance(recorders, (list, tuple)) or not all(hasattr(recorder, "on_visit") for recorder in recorders):
        raise OptionError(
            f"recorders is {shown(recorders)}; it must be a list of recorders, such as [MemoryRecorder()] from "
            "batch_sampler_attn.recorders"
        )
    return tuple(recorders)
