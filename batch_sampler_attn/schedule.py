"""The stateful schedule: takes the loss of each visit, answers repeat or advance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from batch_sampler_attn import checkpoint, rule
from batch_sampler_attn.attended import AttendedLoader, Batch, attend
from batch_sampler_attn.criteria import threshold_of
from batch_sampler_attn.driven import Driven
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.losses import as_float
from batch_sampler_attn.options import DEFAULT_MAX_VISITS, EpochLoss, NonfinitePolicy, Options
from batch_sampler_attn.ranks import MessageKind, RanksOption
from batch_sampler_attn.recorders import Recorder
from batch_sampler_attn.reports import REPORTED
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary

Schedule = TypeVar("Schedule", bound="BatchAttentionSchedule")


class BatchAttentionSchedule(Driven):
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
        budget: The most repeats, over base batches, at any point of an epoch, such as 0.15 for 15 % more updates; None,
            as in the paper, for no limit. The threshold rises by itself so that the budget goes to the worst batches
            rather than to the first.
        floor: The lowest loss that a perfect fit can have, where it is not 0: the threshold is
            ``floor + k * (mean - floor)``. With label smoothing it is ``label_smoothing_floor(smoothing, classes)``
            from ``batch_sampler_attn.losses``.
        recorders: Told of every visit and every epoch; see ``batch_sampler_attn.recorders``. None cost nothing.
        ranks: With ranks that train together, ``MeanOverRanks()`` from ``batch_sampler_attn.distributed``: all of them
            decide alike, on the mean of their losses. None has each rank decide by its own losses, which suits ranks
            that share no gradients. The default, "refuse", is for one process, and refuses others.

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
        epoch_loss: EpochLoss = "first",
        max_visits: int | None = DEFAULT_MAX_VISITS,
        nonfinite: NonfinitePolicy = "advance",
        window: int | None = None,
        budget: float | None = None,
        floor: float = 0.0,
        recorders: Sequence[Recorder] = (),
        ranks: RanksOption = "refuse",
    ) -> None:
        options = Options(
            k,
            warmup_epochs=warmup_epochs,
            epoch_loss=epoch_loss,
            max_visits=max_visits,
            nonfinite=nonfinite,
            window=window,
            budget=budget,
            floor=floor,
        )
        options.check()
        super().__init__(options, threshold_of(options), recorders, ranks)

    # What is going on --------------------------------------------------------------------------------

    @property
    def threshold(self) -> float | None:
        """Loss above which a batch is repeated; None while no batch can repeat."""
        return self.epochs.state.threshold

    @property
    def epoch(self) -> int:
        """Epochs ended so far, which is the number, from 0, of the one in progress."""
        return self.epochs.state.epoch

    @property
    def batches(self) -> int:
        """Batches of the epoch in progress that are done with."""
        return self.epochs.state.batches

    @property
    def visits(self) -> int:
        """Visits made to the current batch: 0 while its first is under way, and after an ADVANCE."""
        return self.epochs.state.visits

    @property
    def summary(self) -> EpochSummary:
        """The epoch in progress, up to now."""
        return rule.summarize(self.epochs.state)

    @property
    def last_summary(self) -> EpochSummary:
        """The epoch (or window) that ended last.

        Raises:
            ProtocolError: If none has ended yet.
        """
        if self.epochs.last_summary is None:
            raise ProtocolError("no epoch has ended yet; schedule.summary tells of the one in progress")
        return self.epochs.last_summary

    # Deciding ----------------------------------------------------------------------------------------

    def report(self, loss: object, *, samples: object = None, batch: object = None) -> None:
        """Tell the loss of the visit under way as soon as it is known; ``decide()`` then needs no loss.

        Between ranks, it is on its way while the backward pass is computed. On a device, it stays there until
        ``decide()``. Otherwise the two calls are the same as ``decide(loss)``.

        Args:
            loss: As for ``decide``.
            samples: Likewise.
            batch: Likewise.

        Raises:
            LossError: If the loss is not one real number.
            OptionError: If ``samples`` is no weight.
            ProtocolError: If no batch is waiting for a loss, or another one is, or if it was reported already.
            RanksDivergedError, RankTimeoutError, RankLostError: As for ``decide``.
        """
        self.put_report("report", loss, samples, batch)

    def decide(self, loss: object = REPORTED, *, samples: object = None, batch: object = None) -> Decision:
        """Decide about the batch that was just trained on.

        Args:
            loss: The batch loss of this one visit, computed before this visit's weight update: a float,
                an int, or a NumPy, PyTorch, JAX or TensorFlow value of one element. A half-precision loss is
                taken as it is, with its three digits; compute the loss in float32 for a finer decision. Not given where
                ``report`` was told it before.
            samples: With ``ranks``, the weight of this rank's loss: how many samples it is the mean of, or the sum of
                their weights; 0 for none. Without, all ranks weigh the same, unless a ``BatchAttentionSampler`` knows
                how many there are.
            batch: In hand-written loops, whatever tells the batch from others (its index, its file, itself). A loop
                that does not heed a REPEAT is found out then: the loss of another batch is refused. Remembered only
                while a repeat is due.

        Returns:
            ``Decision.REPEAT`` to train on the same batch again at once, ``Decision.ADVANCE`` to go on.

        Raises:
            LossError: If the loss is not one real number.
            NonfiniteLossError: If it is NaN or infinite and ``nonfinite="raise"``.
            ProtocolError: If no batch is waiting for a decision, or another one is.
            RanksDivergedError: If another rank is not at the same visit.
            RankTimeoutError: If another rank did not come in time.
            RankLostError: If another rank is gone.
        """
        if loss is REPORTED or samples is not None or not self.reports.is_plain:
            loss, batch = self.loss_reported(loss, samples, batch)
        else:
            loss = as_float(loss)
        current = self.check_word_is_due("decide")
        epochs, state = self.epochs, self.epochs.state
        position = state.position if current is None else current.position
        is_keyed = batch is not None or self.key_due.is_due
        if is_keyed:
            self.key_due.check(position, batch)
        visit, nonfinite_losses = state.visits + 1, state.nonfinite_losses
        decision = rule.visit(epochs.options, epochs.criterion, state, loss, self.place)
        if is_keyed:
            self.key_due.note(position, batch, decision)
        indices = None
        if current is not None:
            indices = current.indices
            current.settle(decision, visit)
        epochs.tell_visit(position, visit, loss, decision, indices, counted=state.nonfinite_losses == nonfinite_losses)
        return decision

    def skip(self) -> None:
        """Leave the batch that is out, without training on it: call it instead of ``decide``.

        The batch was no visit, enters no mean, is not counted in ``batches``, and recorders do not hear of it. The loop
        goes on with the next one. A batch that is being repeated is done with the visits it had, and the losses
        that ``epoch_loss`` had let in stay in the mean (with "last", there is none).

        In a hand-written loop it also gives up the batch whose repeat is due: when a visit failed (out of memory, say)
        and the loop goes on with the next batch, this keeps the next from counting as a repeat of the last. To give
        up the whole epoch there is ``abandon_epoch``.

        Raises:
            ProtocolError: If no batch is out, or its loss was reported already.
        """
        current = self.check_word_is_due("skip")
        if self.reports.is_out:
            raise ProtocolError("skip() was called after report() had told this visit's loss; call decide()")
        if current is None:
            self._begin_by_hand()
        state = self.epochs.state
        position = state.position if current is None else current.position
        self.agreement.notify(MessageKind.SKIP, state.epoch, position, state.visits + 1)
        rule.skip(state)
        self.key_due.clear()
        if current is not None:
            current.skip()
        self.epochs.end_window()

    def attend(self: Schedule, loader: Iterable[Batch]) -> AttendedLoader[Batch, Schedule]:
        """Wrap any iterable of batches so that a batch is yielded again while it needs attention.

        Each iteration over the result is one epoch, ended by itself. Every yielded batch must be followed
        by one ``decide``, or by ``skip``. A loop that is left early abandons its epoch: the next one begins anew, with
        the threshold that was in force.

        Each visit gets the same tensors in fresh containers (dictionaries, lists, tuples, dataclasses; see ``afresh``),
        so that what a loop puts into its batch is not there at the next visit. PyTorch tensors that a loop changes in
        place are noticed: a repeat of them is refused. Changes in place of NumPy arrays and others, through
        ``tensor.data`` or of tensors made in inference mode are not noticed; copy those before you change them.

        There are more visits than base batches: use ``batch_index`` in place of ``enumerate``, and do what is done
        "every n steps" on the first visit alone (``if schedule.visits == 0``), or on ADVANCE. ``tqdm`` around the
        result runs past its total; see ``AttendedLoader`` for what to write.

        After ``load_state_dict`` in the middle of an epoch the next pass goes on there; without a sampler, give it the
        remaining batches, from the one that was being repeated, if any
        (``itertools.islice(loader, schedule.batch_index, None)``).

        Args:
            loader: A DataLoader, list, generator or other iterable. Once the schedule belongs to a
                ``BatchAttentionSampler``, the DataLoader that uses this sampler.

        Returns:
            An iterable with the length and attributes of ``loader``. Its length counts base batches, not repeats.

        Raises:
            ProtocolError: If the loader's batch sampler belongs to another schedule, or the loader is attended already.
                While iterating: BatchChangedError, if a batch to be repeated was changed in place; ProtocolError, for
                batches and losses out of turn.
        """
        return attend(self, self.open_pass, self.driver, loader)

    def end_epoch(self) -> EpochSummary:
        """End the epoch in a hand-written loop; ``attend`` and ``window`` end theirs by themselves.

        Raises:
            EmptyEpochError: If no batch was decided on.
            ProtocolError: If a batch is still to be repeated or decided on, or if it is not this loop's to end.
        """
        self.check_may_end_epoch()
        self.reports.end_epoch()
        return self.epochs.end()

    def abandon_epoch(self) -> None:
        """Forget the epoch in progress; it sets no threshold. The threshold in force stays."""
        self.forget_epoch(was_left=False)

    # State -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as plain JSON types.

        It may be taken between any two visits. Taken after a loop was left early, it goes on with that epoch; call
        ``abandon_epoch`` before, if the epoch was left on purpose. After an interrupt (Ctrl-C) in ``decide`` itself, a
        part of that one visit may be missing in it, or it may be refused on load.
        """
        for recorder in self.epochs.recorders:
            recorder.flush()
        epochs = self.epochs
        return checkpoint.pack_schedule(self.options_to_save(), epochs.state, epochs.last_summary, self.agreement.count)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        self.assign(*self.unpack(state_dict))
