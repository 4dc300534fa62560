"""The stateful schedule: takes the loss of each visit, answers repeat or advance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from batch_sampler_attn import rule
from batch_sampler_attn.attend import AttendedLoader, Batch, attend
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.options import DEFAULT_MAX_VISITS, EpochLoss, NonfinitePolicy, Options
from batch_sampler_attn.passes import REPORTED, Passes, Recorder
from batch_sampler_attn.ranks import RanksOption
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.summary import EpochSummary

Schedule = TypeVar("Schedule", bound="BatchAttentionSchedule")


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
            visit's, or those of "all" visits (the mean is then over visits, not batches). The paper does not say.
            A loss that is not finite never enters; with "last", a batch whose last loss is not finite leaves the mean.
        max_visits: The most visits to one batch in an epoch; None sets no limit, as in the paper. The default is above
            what batches with clean labels were measured to need, so it binds on mislabelled or broken ones alone.
        nonfinite: What to do with a NaN or infinite loss: "advance" (never repeated, kept out of the mean,
            counted, one warning an epoch) or "raise".
        epoch_length: For streams, and for training of one epoch: end an epoch after every so many batches.
        budget: The most repeats, over base batches, at any point of an epoch, such as 0.15 for 15 % more updates; None
            sets no limit, as in the paper. The threshold rises so that the budget goes to the worst batches.
        floor: The lowest loss that a perfect fit can have, where it is not 0: the threshold is
            ``floor + k * (mean - floor)``. With label smoothing it is ``label_smoothing_floor(smoothing, classes)``
            from ``batch_sampler_attn.options``.
        recorders: Notified of every visit and every epoch; see ``batch_sampler_attn.recorders``.
        ranks: ``MeanOverRanks()`` from ``batch_sampler_attn.distributed`` has ranks that train together decide alike,
            on the mean of their losses. None has each rank decide by its own, which suits ranks that share no
            gradients. The default, "refuse", is for one process.

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
        epoch_length: int | None = None,
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
            epoch_length=epoch_length,
            budget=budget,
            floor=floor,
        )
        self._passes = Passes(options, recorders, ranks)
        shown = ", ".join(f"{name}={value!r}" for name, value in self._passes.saved_options.items())
        self._name = f"{type(self).__name__}({shown})"

    def __repr__(self) -> str:
        threshold = "no threshold" if self.threshold is None else f"threshold {self.threshold:.4g}"
        return f"<{self._name}, epoch {self.epoch}, batch {self.batch_index}, visits {self.visits}, {threshold}>"

    @property
    def options(self) -> Options:
        """The options of the rule that this schedule was made with."""
        return self._passes.options

    @property
    def threshold(self) -> float | None:
        """Loss above which a batch is repeated; None while no batch can repeat."""
        return self._passes.state.threshold

    @property
    def epoch(self) -> int:
        """Epochs ended so far, which is the number, from 0, of the one in progress."""
        return self._passes.state.epoch

    @property
    def batches(self) -> int:
        """Batches of the epoch in progress that are finished."""
        return self._passes.state.batches

    @property
    def batch_index(self) -> int:
        """Position, from 0, of the current base batch, also when it is repeated.

        It is what ``enumerate`` over the loader gives in training without repeats, and stays the same for all visits
        to a batch, before ``decide`` and after it. Outside of ``attend`` it is that of the batch to be decided on next.
        """
        current = self._passes.current
        return self._passes.state.position if current is None else current.position

    @property
    def visits(self) -> int:
        """Visits made to the current batch: 0 while its first is under way, and after an ADVANCE."""
        return self._passes.state.visits

    @property
    def is_first_visit(self) -> bool:
        """Whether the current visit is its batch's first, so that it enters an average over base batches.

        Under ``attend`` it stays the same before ``decide`` and after it. In a hand-written loop it is about the visit
        that the next decision is for: read it before ``decide``.
        """
        current = self._passes.current
        return not self._passes.state.visits if current is None else current.is_first_visit

    @property
    def summary(self) -> EpochSummary:
        """The epoch in progress, up to now."""
        return rule.summarize(self._passes.state)

    @property
    def last_summary(self) -> EpochSummary:
        """The epoch that ended last.

        Raises:
            ProtocolError: If none has ended yet.
        """
        summary = self._passes.run.last_summary
        if summary is None:
            raise ProtocolError(
                "no epoch has ended yet: attend() ends one with its loader, end_epoch() in a hand-written loop, and "
                "epoch_length=N every N batches. schedule.summary has the one in progress"
            )
        return summary

    def report(self, loss: object, *, samples: object = None) -> None:
        """Report the loss of this visit as soon as it is known; ``decide()`` then needs no loss.

        Between ranks, it travels while the backward pass is computed. On a device, it stays there until ``decide()``.
        Arguments and errors are those of ``decide``.
        """
        self._passes.report(loss, samples)

    def decide(self, loss: object = REPORTED, *, samples: object = None) -> Decision:
        """Decide about the batch that was just trained on.

        Args:
            loss: The batch loss of this one visit, computed before this visit's weight update: a number, or a NumPy,
                PyTorch, JAX or TensorFlow value of one element. Leave it out after ``report``.
            samples: With ``ranks``, how many samples this rank's loss is the mean of, or the sum of their weights; 0
                for none. By default all ranks weigh the same, unless a ``BatchAttentionSampler`` knows their number.

        Returns:
            ``Decision.REPEAT`` to train on the same batch again at once, ``Decision.ADVANCE`` to take the next one.

        Raises:
            LossError: If the loss is not one real number; OptionError, if ``samples`` is no weight.
            NonfiniteLossError: If it is NaN or infinite and ``nonfinite="raise"``.
            ProtocolError: If no batch is waiting for a decision.
            RanksDivergedError, RankTimeoutError, RankLostError: If another rank is elsewhere, late or gone.
        """
        return self._passes.decide(loss, samples)

    def skip(self) -> None:
        """Leave the current batch without training on it: call it instead of ``decide``.

        The skipped visit enters no mean and no recorder, and a batch that is skipped at its first visit is not counted
        in ``batches``. A batch that is being repeated is finished with the visits it had; so a hand-written loop can
        give up a batch whose repeat is due, after running out of memory, say.

        Raises:
            ProtocolError: If there is no current batch, or its loss was reported already.
        """
        self._passes.skip()

    def attend(self: Schedule, loader: Iterable[Batch]) -> AttendedLoader[Batch, Schedule]:
        """Wrap any iterable of batches so that a batch is yielded again while it needs attention.

        Each iteration over the result is one epoch, which ends by itself. Every yielded batch must be followed by one
        ``decide``, or by ``skip``. A loop that is left early abandons its epoch: the next one begins again, with the
        threshold that was in force.

        Each visit gets the same tensors in fresh containers (lists, dictionaries, tuples, dataclasses, whatever defines
        ``__copy__``), so that what a loop puts into its batch is not there at the next visit. A repeat of PyTorch
        tensors that were changed in place is refused. Changes of NumPy arrays, through ``tensor.data`` or of tensors
        made in inference mode are not noticed; copy those before you change them.

        There are more visits than base batches: use ``batch_index`` in place of ``enumerate``, and take averages, and
        do what is done "every n steps", at first visits alone (``if schedule.is_first_visit``).

        After ``load_state_dict`` in mid-epoch the next pass resumes there; without a sampler, give it the remaining
        batches, from the one that was being repeated, if any
        (``itertools.islice(loader, schedule.batch_index, None)``).

        Args:
            loader: A DataLoader, list, generator or other iterable. Once the schedule belongs to a
                ``BatchAttentionSampler``, the DataLoader that uses this sampler.

        Raises:
            ProtocolError: If the loader's batches belong to another schedule, or the loader is attended already; while
                iterating, for batches and losses out of turn.
            BatchChangedError: While iterating, if a batch to be repeated was changed in place.
        """
        return attend(self, self._passes, loader)

    def end_epoch(self) -> EpochSummary:
        """End the epoch in a hand-written loop; ``attend`` and ``epoch_length`` end theirs by themselves.

        Raises:
            EmptyEpochError: If no batch was decided on.
            ProtocolError: If a batch is still to be repeated or decided on, or if the epoch ends by itself.
        """
        return self._passes.end_epoch_by_hand()

    def abandon_epoch(self) -> None:
        """Forget the epoch in progress; it sets no threshold. The threshold in force stays."""
        self._passes.abandon(was_left=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume, as plain JSON types.

        Take it at any time: it is the state before a visit or after it, never in between. Taken after a loop was left
        early, it resumes that epoch; call ``abandon_epoch`` before, if the epoch was left on purpose.
        """
        return self._passes.pack()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        self._passes.assign(self._passes.unpack(state_dict))


def passes_of(schedule: BatchAttentionSchedule) -> Passes:
    """The passes of a schedule, through which drivers in this package hand out its batches."""
    return schedule._passes
