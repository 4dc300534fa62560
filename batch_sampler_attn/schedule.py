"""The stateful schedule: takes the loss of each visit, answers repeat or advance."""

from __future__ import annotations

from batch_sampler_attn import checkpoint, notices, rule, turns
from batch_sampler_attn.attended import AttendedLoader, repeat_in_place
from batch_sampler_attn.errors import EmptyEpochError, OptionError, ProtocolError
from batch_sampler_attn.losses import as_float
from batch_sampler_attn.rule import Decision, EpochSummary, Options, State, visit
from batch_sampler_attn.turns import Turns

TYPE_CHECKING = False  # importing typing would double the package's import time
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Literal, TypeVar

    from batch_sampler_attn.recorders import Recorder
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.tickets import Ticket

    Batch = TypeVar("Batch")

# Looking a member up in its enum costs as much as half a decision.
_ADVANCE = Decision.ADVANCE


class BatchAttentionSchedule:
    """Decides after each visit to a batch whether to train on it again at once.

    From the second epoch on, a batch is repeated while its loss is above
    ``threshold = k * (mean batch loss of the previous epoch)``. Every batch is visited at least once in
    every epoch. (Hu, Li, Wu, "Batch-attention", 2023, section 3.)

    Args:
        k: Threshold in units of the previous epoch's mean loss; finite and above 0. The paper advises
            1.1 to 1.5, with 1.2 on CIFAR-10 and 1.5 on CIFAR-100. Smaller repeats more.
        warmup_epochs: Epochs without repeats at the start; at least 1, the paper's value.
        epoch_loss: Which loss of a repeated batch enters the epoch's mean: its "first" visit's, its "last"
            visit's, or those of "all" visits (the mean is then over visits, not batches). The paper does not
            say. "first" is the mean that the same data would have had without looking at repeats. A loss that is
            not finite never enters; with "last", a batch whose last loss is not finite leaves the mean.
        max_visits: The most visits to one batch in an epoch; at least 1, or None for no limit, as in the
            paper. The default of 100 is above what batches with clean labels were measured to need, so it
            binds on mislabelled or broken ones alone.
        nonfinite: What to do with a NaN or infinite loss: "advance" (never repeated, kept out of the mean,
            counted, warned of once an epoch) or "raise".
        window: For streams without epochs: end an epoch by itself after every ``window`` batches.
        recorders: Told of every visit and every epoch; see ``batch_sampler_attn.recorders``. None cost nothing.

    Raises:
        OptionError: If an option has a value that is not allowed.

    Example:
        >>> schedule = BatchAttentionSchedule(k=1.5)
        >>> for losses in ([2.0, 4.0], [5.0, 1.0, 1.0]):
        ...     remaining = iter(losses)
        ...     for batch in schedule.attend(["a", "b"]):
        ...         print(batch, schedule.decide(next(remaining)).name)
        a ADVANCE
        b ADVANCE
        a REPEAT
        a ADVANCE
        b ADVANCE
        >>> schedule.last_summary.overhead, schedule.threshold
        (0.5, 4.5)
    """

    def __init__(
        self,
        k: float = 1.2,
        *,
        warmup_epochs: int = 1,
        epoch_loss: Literal["first", "last", "all"] = "first",
        max_visits: int | None = rule.DEFAULT_MAX_VISITS,
        nonfinite: Literal["advance", "raise"] = "advance",
        window: int | None = None,
        recorders: Sequence[Recorder] = (),
    ) -> None:
        self._options = Options(
            k,
            warmup_epochs=warmup_epochs,
            epoch_loss=epoch_loss,
            max_visits=max_visits,
            nonfinite=nonfinite,
            window=window,
        )
        self._options.check()
        self._recorders = _check_recorders(recorders)
        self._state = State()
        self._last_summary: EpochSummary | None = None
        self._warned = False
        self._sampler: BatchAttentionSampler | None = None
        self._abandoned_in_a_row = 0
        self._turns = Turns()
        self._update_watch()

    # What is going on --------------------------------------------------------------------------------

    @property
    def options(self) -> Options:
        """The options that this schedule was made with."""
        return self._options

    @property
    def threshold(self) -> float | None:
        """Loss above which a batch is repeated; None while no batch can repeat."""
        return self._state.threshold

    @property
    def epoch(self) -> int:
        """Epochs ended so far, which is the number, from 0, of the one in progress."""
        return self._state.epoch

    @property
    def batches(self) -> int:
        """Batches of the epoch in progress that are done with."""
        return self._state.batches

    @property
    def visits(self) -> int:
        """Visits made to the current batch: 0 while its first is under way, and after an ADVANCE."""
        return self._state.visits

    @property
    def summary(self) -> EpochSummary:
        """The epoch in progress, up to now."""
        return rule.summarize(self._state)

    @property
    def last_summary(self) -> EpochSummary:
        """The epoch (or window) that ended last.

        Raises:
            ProtocolError: If none has ended yet.
        """
        if self._last_summary is None:
            raise ProtocolError("no epoch has ended yet; schedule.summary tells of the one in progress")
        return self._last_summary

    # Deciding ----------------------------------------------------------------------------------------

    def decide(self, loss: object) -> Decision:
        """Decide about the batch that was just trained on.

        Args:
            loss: The batch loss of this one visit, computed before this visit's weight update: a float,
                an int, or a NumPy, PyTorch, JAX or TensorFlow value of one element. A half-precision loss is
                taken as it is, with its three digits; compute the loss in float32 for a finer decision.

        Returns:
            ``Decision.REPEAT`` to train on the same batch again at once, ``Decision.ADVANCE`` to go on.

        Raises:
            LossError: If the loss is not one real number.
            NonfiniteLossError: If it is NaN or infinite and ``nonfinite="raise"``.
            ProtocolError: If no batch is waiting for a decision.
        """
        if type(loss) is not float:
            loss = as_float(loss)
        if self._is_watched or loss - loss != 0.0:  # not finite
            return self._decide_carefully(loss)
        state = self._state
        if state.visits == 0 and (state.threshold is None or loss <= state.threshold):
            # What visit() comes to for the only visit of a batch, which is what most visits are: asked
            # once an update, the call alone would double the cost.
            state.loss_sum += loss
            state.loss_count += 1
            state.batches += 1
            return _ADVANCE
        return visit(self._options, state, loss)

    def attend(self, loader: Iterable[Batch]) -> AttendedLoader[Batch]:
        """Wrap any iterable of batches so that a batch is yielded again while it needs attention.

        Each iteration over the result is one epoch, ended by itself. Every yielded batch must be followed
        by one ``decide``. A loop that is left early abandons its epoch: the next one begins anew, with the
        threshold that was in force. After ``load_state_dict`` in the middle of an epoch the next pass goes on
        there; give it the remaining batches, from the one that was being repeated, if any
        (``itertools.islice(loader, schedule.batches, None)``).

        Args:
            loader: A DataLoader, list, generator or other iterable. Once the schedule belongs to a
                ``BatchAttentionSampler``, the DataLoader that uses this sampler.

        Returns:
            An iterable with the length and attributes of ``loader``. Its length counts base batches, not repeats.

        Raises:
            ProtocolError: If the loader's batch sampler belongs to another schedule.
        """
        if self._sampler is None and hasattr(getattr(loader, "batch_sampler", None), "schedule"):
            raise ProtocolError(
                "the loader's batch sampler belongs to another schedule; iterate over that one's attend(): "
                "loader.batch_sampler.schedule.attend(loader)"
            )
        deliver = repeat_in_place if self._sampler is None else self._sampler._deliver
        return AttendedLoader(self, loader, deliver)

    def end_epoch(self) -> EpochSummary:
        """End the epoch in a hand-written loop; ``attend`` and ``window`` end theirs by themselves.

        Raises:
            EmptyEpochError: If no batch was decided on.
            ProtocolError: If a batch is still to be repeated, or if it is not this loop's to end.
        """
        if self._options.window is not None:
            raise ProtocolError(f"window={self._options.window} ends each epoch by itself; do not call end_epoch()")
        if self._turns.phase is not turns.BY_HAND:
            raise ProtocolError(
                "end_epoch() is for hand-written loops; attend() ends the epoch by itself when the loader does. "
                "To train on fewer batches, give attend() fewer: itertools.islice(loader, n)"
            )
        if self._state.visits:
            raise ProtocolError(
                f"the last decision was REPEAT after {self._state.visits} visits; train on that batch until the "
                "decision is ADVANCE, set max_visits, or give the epoch up with abandon_epoch()"
            )
        return self._end_epoch()

    def abandon_epoch(self) -> None:
        """Forget the epoch in progress; it sets no threshold. The threshold in force stays."""
        self._abandoned_in_a_row = 0
        self._forget_epoch()

    def _abandon_left_epoch(self) -> None:
        self._forget_epoch()
        self._abandoned_in_a_row += 1
        if self._abandoned_in_a_row == 2:
            notices.epochs_left_early(stacklevel=4)

    def _forget_epoch(self) -> None:
        if self._state.batches or self._state.visits:
            for recorder in self._recorders:
                recorder.on_epoch_abandoned(self._state.epoch)
        self._state.clear_epoch()
        self._warned = False
        if self._sampler is not None:
            self._sampler._forget_epoch()
        self._turns.reset()
        self._update_watch()

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as plain JSON types.

        It may be taken between any two visits. Taken after a loop was left early, it goes on with that epoch; call
        ``abandon_epoch`` before, if the epoch was left on purpose.
        """
        for recorder in self._recorders:
            recorder.flush()
        return checkpoint.pack_schedule(self._options_to_save(), self._state, self._last_summary)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        self._assign(*self._unpack(state_dict))

    def _options_to_save(self) -> dict[str, Any]:
        return self._options.as_dict()

    def _unpack(self, state_dict: object) -> tuple[State, EpochSummary | None]:
        return checkpoint.unpack_schedule(self._options, state_dict, self._options_to_save())

    def _assign(self, state: State, last_summary: EpochSummary | None) -> None:
        self._state = state
        self._last_summary = last_summary
        self._warned = state.nonfinite_losses > 0
        self._turns.reset()
        self._update_watch()

    # One visit, with someone watching, or with a loss to warn of -----------------------------------------

    def _decide_carefully(self, loss: float) -> Decision:
        if self._turns.phase is turns.LEFT:
            self._abandon_left_epoch()
        self._turns.check_loss_is_due(by_hand_too=self._sampler is None)
        state, position = self._state, self._position
        epoch, visits = state.epoch, state.visits + 1
        decision = self._visit(loss)
        self._turns.settle(decision)
        if self._sampler is not None:
            self._sampler._settle(decision, visits)
        try:
            for recorder in self._recorders:
                recorder.on_visit(epoch, position, visits, loss, decision, self._turns.indices)
            if state.nonfinite_losses and not self._warned:
                self._warned = True
                notices.nonfinite_loss(loss, epoch, stacklevel=3)
        finally:
            # A recorder or a warning that raises must not make the window miss its end.
            if state.batches == self._options.window:
                self._end_epoch()
        return decision

    def _visit(self, loss: float) -> Decision:
        return visit(self._options, self._state, loss)

    @property
    def _position(self) -> int:
        """Of the batch that is out; with deferred repeats it is not the number of batches that are done with."""
        return self._state.batches if self._turns.position is None else self._turns.position

    def _end_epoch(self, host_reads: int | None = None) -> EpochSummary:
        state = self._state
        if not state.batches:
            raise EmptyEpochError(
                "the epoch ended without a batch. Is the loader empty, is drop_last set on less than one batch "
                "of data, or is it a generator that an earlier epoch has used up?"
            )
        summary = rule.end_epoch(self._options, state)
        self._abandoned_in_a_row = 0
        summary.host_reads = host_reads
        self._last_summary = summary
        self._warned = False
        for recorder in self._recorders:
            recorder.on_epoch_end(summary)
        if summary.mean_loss is not None and summary.mean_loss < 0 < self._options.k - 1:
            notices.negative_mean(summary.mean_loss, summary.epoch, stacklevel=3)
        return summary

    # A pass of attend(), driven by an iterator ---------------------------------------------------------

    def _update_watch(self) -> None:
        # Kept as one flag, since decide() looks at it on every update.
        self._is_watched = (
            self._turns.phase is not turns.BY_HAND
            or bool(self._recorders)
            or self._options.window is not None
            or self._sampler is not None
            or type(self)._visit is not BatchAttentionSchedule._visit
        )

    def _bind(self, sampler: BatchAttentionSampler) -> None:
        if self._sampler is not None:
            raise ProtocolError("this schedule belongs to another BatchAttentionSampler; make one for each sampler")
        self._sampler = sampler
        self._update_watch()

    def _open_pass(self) -> object:
        if self._turns.phase is not turns.BY_HAND:
            self._abandon_left_epoch()
        token = self._turns.open()
        self._update_watch()
        return token

    def _offer(self, token: object, ticket: Ticket | None = None) -> None:
        """A batch is about to be yielded; a sampler says which one, and how often it was visited."""
        if ticket is None:
            self._turns.offer(token)
        else:
            self._turns.offer(token, ticket.position, ticket.indices)
            self._state.visits = ticket.visits

    def _close_pass(self, token: object, *, finished: bool) -> None:
        if not self._turns.close(token, finished=finished):
            return
        self._update_watch()
        if finished and self._options.window is None:
            self._end_epoch()


def _check_recorders(recorders: object) -> tuple[Recorder, ...]:
    if not isinstance(recorders, (list, tuple)) or not all(hasattr(recorder, "on_visit") for recorder in recorders):
        raise OptionError(
            f"recorders is {recorders!r}; it must be a list of recorders, such as [MemoryRecorder()] from "
            "batch_sampler_attn.recorders"
        )
    return tuple(recorders)
