"""The stateful schedule: it takes the loss of each visit and decides to repeat the batch or to advance."""

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
            1.1 to 1.5, with 1.2 on CIFAR-10 and 1.5 on CIFAR-100. Smaller values repeat more.
        warmup_epochs: Epochs without repeats at the start; at least 1, the paper's value.
        epoch_loss: Which loss of a repeated batch enters the epoch's mean: its "first" visit's, its "last"
            visit's, or those of "all" visits (the mean is then over visits, not batches). The paper does not say.
            Losses that are not finite are excluded; with "last", so is a batch whose last loss is not finite.
        max_visits: Maximum number of visits to one batch in an epoch; None sets no limit, as in the paper. The default
            is more than clean batches needed in measurements, so only mislabelled or broken ones reach it.
        nonfinite: What to do with a NaN or infinite loss: "advance" does not repeat its batch, excludes it from the
            mean, counts it and warns once an epoch; "raise" raises an error.
        epoch_length: For streams and single-epoch training: the number of batches after which an epoch ends.
        budget: Maximum ratio of repeats to base batches at any point of an epoch, such as 0.15 for 15 % more updates;
            None sets no limit, as in the paper. The threshold rises so that the budget goes to the worst batches.
        floor: The lowest loss that a perfect fit can have, if it is not 0: the threshold is
            ``floor + k * (mean - floor)``. With label smoothing it is ``label_smoothing_floor(smoothing, classes)``
            from ``batch_sampler_attn.options``.
        recorders: Notified of every visit and every epoch; see ``batch_sampler_attn.recorders``.
        ranks: ``MeanOverRanks()`` from ``batch_sampler_attn.distributed`` makes all ranks decide on the mean of their
            losses. With None, each rank decides on its own loss, for ranks that share no gradients. The default,
            "refuse", is for a single process and raises an error on several ranks.

    Raises:
        OptionError: If an option has a value that is not allowed.

    Example:
        >>> schedule = BatchAttentionSchedule(k=1.5, budget=0.2)
        >>> for losses in ([3.0, 3.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0, 5.0, 1.0]):
        ...     remaining = iter(losses)
        ...     print([f"{batch} {schedule.decide(next(remaining)).name}" for batch in schedule.attend("abcde")])
        ['a ADVANCE', 'b ADVANCE', 'c ADVANCE', 'd ADVANCE', 'e ADVANCE']
        ['a ADVANCE', 'b ADVANCE', 'c ADVANCE', 'd ADVANCE', 'e REPEAT', 'e ADVANCE']
        >>> schedule.last_summary.overhead
        0.2
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
        """Zero-based index of the epoch in progress; also the number of epochs ended."""
        return self._passes.state.epoch

    @property
    def batches(self) -> int:
        """Number of finished batches in the epoch in progress."""
        return self._passes.state.batches

    @property
    def batch_index(self) -> int:
        """Zero-based index of the current base batch in its epoch; repeats do not change it.

        It is the index that ``enumerate(loader)`` gives in training without repeats, and is the same before and after
        ``decide``. Outside of ``attend``, it is the position of the next batch to decide on.
        """
        current = self._passes.current
        return self._passes.state.position if current is None else current.position

    @property
    def visits(self) -> int:
        """Number of finished visits to the current batch: 0 during its first visit, and after an ADVANCE."""
        return self._passes.state.visits

    @property
    def is_first_visit(self) -> bool:
        """Whether the current visit is the first to its batch, so that its loss enters an average over base batches.

        Under ``attend`` it is the same before and after ``decide``. In a hand-written loop it describes the next visit
        to decide on: read it before ``decide``.
        """
        current = self._passes.current
        return not self._passes.state.visits if current is None else current.is_first_visit

    @property
    def summary(self) -> EpochSummary:
        """Summary of the epoch in progress so far."""
        return rule.summarize(self._passes.state)

    @property
    def last_summary(self) -> EpochSummary:
        """Summary of the last epoch that ended.

        Raises:
            ProtocolError: If no epoch has ended yet.
        """
        summary = self._passes.run.last_summary
        if summary is None:
            raise ProtocolError(
                "no epoch has ended yet: attend() ends one with its loader, end_epoch() in a hand-written loop, and "
                "epoch_length=N every N batches. schedule.summary has the epoch in progress"
            )
        return summary

    def report(self, loss: object, *, samples: object = None) -> None:
        """Report the loss of this visit as soon as it is known; ``decide()`` then needs no loss.

        With ranks, the loss is sent while the backward pass is computed. A loss on a device stays there until
        ``decide()``. Arguments and errors are those of ``decide``.
        """
        self._passes.report(loss, samples)

    def decide(self, loss: object = REPORTED, *, samples: object = None) -> Decision:
        """Decide whether to repeat the batch that was just trained on.

        Args:
            loss: The batch loss of this visit, computed before its weight update: a number, or a NumPy,
                PyTorch, JAX or TensorFlow value of one element. Omit it after ``report``.
            samples: With ``ranks``, the number of samples in this rank's loss, or the sum of their weights; 0 for none.
                By default, a ``BatchAttentionSampler`` gives their number; otherwise all ranks have the same weight.

        Returns:
            ``Decision.REPEAT`` to train on the same batch again at once, ``Decision.ADVANCE`` to take the next one.

        Raises:
            LossError: If the loss is not one real number.
            NonfiniteLossError: If it is NaN or infinite and ``nonfinite="raise"``.
            OptionError: If ``samples`` is not a finite number of at least 0.
            ProtocolError: If there is no batch to decide on.
            RanksDivergedError, RankTimeoutError, RankLostError: If another rank is at another visit, late or lost.
        """
        return self._passes.decide(loss, samples)

    def skip(self) -> None:
        """Skip the current batch without training on it; call this instead of ``decide``.

        The skipped visit is neither averaged nor recorded, and a batch that is skipped at its first visit does not
        count in ``batches``. A batch that is skipped at a repeat keeps its earlier visits. A hand-written loop can thus
        give up a batch, for example after running out of memory.

        Raises:
            ProtocolError: If there is no current batch, or its loss was already reported.
        """
        self._passes.skip()

    def attend(self: Schedule, loader: Iterable[Batch]) -> AttendedLoader[Batch, Schedule]:
        """Wrap any iterable of batches so that it yields a batch again while the decision is REPEAT.

        Each iteration over the result is one epoch, and ends it. Call ``decide`` or ``skip`` once after each yielded
        batch. Leaving the loop early abandons the epoch: the next iteration starts it again with the same threshold.

        Each visit gets the same tensors in fresh containers: lists, dictionaries, tuples, dataclasses and objects that
        define ``__copy__``. What a loop adds to a batch is therefore not there at the next visit. Repeating PyTorch
        tensors that were changed in place raises an error. Changes to NumPy arrays, through ``tensor.data`` or to
        tensors made in inference mode are not detected; copy such data before you change it.

        There are more visits than base batches. Use ``batch_index`` instead of ``enumerate``; average losses, and do
        what happens "every n steps", at first visits only (``if schedule.is_first_visit``).

        After ``load_state_dict`` in mid-epoch, the next iteration resumes there. Without a sampler, pass the remaining
        batches, including one that was being repeated: ``itertools.islice(loader, schedule.batch_index, None)``.

        Args:
            loader: A DataLoader, list, generator or other iterable. If the schedule belongs to a
                ``BatchAttentionSampler``, pass the DataLoader that uses this sampler.

        Raises:
            ProtocolError: If the loader's batches belong to another schedule, or the loader is already attended. While
                iterating, if batches are requested or losses are reported in the wrong order.
            BatchChangedError: While iterating, if a batch to be repeated was changed in place.
        """
        return attend(self, self._passes, loader)

    def end_epoch(self) -> EpochSummary:
        """End the epoch in a hand-written loop; ``attend`` and ``epoch_length`` end epochs automatically.

        Raises:
            EmptyEpochError: If no batch was decided on.
            ProtocolError: If a batch is still to be repeated or decided on, or if epochs end automatically.
        """
        return self._passes.end_epoch_by_hand()

    def abandon_epoch(self) -> None:
        """Discard the epoch in progress and keep the current threshold."""
        self._passes.abandon(was_left=False)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, as plain JSON types.

        Call it at any time: the state is that before or after a visit, never in between. After a loop was left early,
        the state resumes that epoch; call ``abandon_epoch`` first if you left the epoch on purpose.
        """
        return self._passes.pack()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state that ``state_dict`` returned.

        Raises:
            StateError: If the state has another version or other options, or is damaged. Nothing is changed then.
        """
        self._passes.assign(self._passes.unpack(state_dict))


def passes_of(schedule: BatchAttentionSchedule) -> Passes:
    """The passes of a schedule, through which drivers in this package hand out its batches."""
    return schedule._passes
