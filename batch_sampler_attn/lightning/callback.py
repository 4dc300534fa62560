"""The callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from batch_sampler_attn.agreement import Reduce
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, shown
from batch_sampler_attn.lightning.packages import Callback, LightningModule, Trainer
from batch_sampler_attn.lightning.refusals import check_loaders, check_module, check_training
from batch_sampler_attn.lightning.step import RepeatingStep
from batch_sampler_attn.trainers.replay import Replay
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.accumulation import samples_in


class BatchAttention(Callback):
    """Repeats batches inside Lightning's optimizer step; the module and the loaders stay as they are.

    With ``accumulate_grad_batches=n``, what is decided on and repeated is the window of n batches that one update is
    made from, by the mean of its losses over samples. Mixed precision, gradient scaler, clipping and the hooks around
    an update are those of the trainer. All that Lightning counts (``global_step``, learning-rate schedules, batches,
    checkpoints every n steps) counts windows, not repeats; ``self.log`` hears of first visits. What the module does in
    ``training_step`` by itself, as updates of BatchNorm and of torchmetrics, it does at each visit.

    The schedule's state is in Lightning's checkpoints.

    Args:
        k: As ``BatchAttentionSchedule`` takes it.
        schedule: The schedule, made beforehand, in place of options.
        reduce: "auto" has all ranks decide alike, on the mean of their losses. Otherwise as ``BatchAttentionSchedule``
            takes it.
        samples: How many samples are in a batch, or the sum of their weights, where windows or ranks have several
            batches; None for the length of the first tensor in it.
        log: Whether to log ``batch_attention/repeats`` and ``batch_attention/threshold`` once an epoch.
        options: Further options of ``BatchAttentionSchedule``.

    Attributes:
        schedule: Decides.

    Raises:
        OptionError: If an option has a value that is not allowed, or there are options beside a schedule.
        ProtocolError: If the schedule belongs to a sampler. In ``Trainer.fit``, before the first update: if the trainer
            does what cannot be repeated; the message says what to use instead.

    Example:
        >>> from batch_sampler_attn.lightning import BatchAttention
        >>> BatchAttention(k=1.5, budget=0.2).schedule.options.budget
        0.2
    """

    def __init__(
        self,
        k: float | None = None,
        *,
        schedule: BatchAttentionSchedule | None = None,
        reduce: Reduce | Literal["auto", "refuse"] | None = "auto",
        samples: Callable[[Any], object] | None = None,
        log: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if k is not None:
            options["k"] = k
        if schedule is None:
            schedule = BatchAttentionSchedule(**options, reduce=MeanOverRanks() if reduce == "auto" else reduce)
        elif options or reduce != "auto":
            given = ", ".join([*options, *(["reduce"] if reduce != "auto" else [])])
            raise OptionError(f"BatchAttention was given schedule= and also {given}; give these to the schedule")
        elif not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {shown(schedule)}; it must be a BatchAttentionSchedule")
        self.schedule = schedule
        self._replay = Replay(schedule)
        self._samples = samples_in if samples is None else samples
        self._logs = log
        self._epochs_logged = 0
        self._step: RepeatingStep | None = None
        self._takes_states = True

    # Where a fit begins and ends -------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be repeated, as far as that shows already."""
        # A checkpoint that is evaluated is not to be trained on from.
        self._takes_states = stage == "fit"
        if stage == "fit":
            check_module(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the rest, and begin."""
        check_training(trainer)
        self.schedule.agreement.check_is_sought()
        self._step = RepeatingStep(trainer, pl_module, self._replay, self._samples)
        self._step.attach()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Refuse a loader that was reloaded, as others were refused."""
        check_loaders(trainer)

    def on_train_end(self, *_: Any) -> None:
        """Leave the trainer as it was."""
        self._detach()

    def on_exception(self, *_: Any) -> None:
        """Leave the trainer as it was; the epoch in progress sets no threshold."""
        self._replay.end_epoch(finished=False)
        self._detach()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the trainer as it was."""
        self._detach()
        self._takes_states = True

    def _detach(self) -> None:
        if self._step is not None:
            self._step.detach()
            self._step = None

    # Where windows and epochs end ------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Skip a window whose update the module's ``optimizer_step`` left out."""
        assert self._step is not None
        is_last = self._step.is_at_last_batch
        batch_idx = args[-1]
        if is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._replay.skip(is_last=is_last)

    def on_train_epoch_end(self, _: Trainer, pl_module: LightningModule) -> None:
        """End an epoch that did not end with its last window, and log."""
        assert self._step is not None
        self._replay.end_epoch(finished=not self._step.is_cut_short)
        if self._logs and self.schedule.epoch > self._epochs_logged:
            self._epochs_logged = self.schedule.epoch
            summary = self.schedule.last_summary
            values = {"batch_attention/repeats": float(summary.repeats)}
            if summary.threshold is not None:
                values["batch_attention/threshold"] = summary.threshold
            pl_module.log_dict(values, batch_size=1)

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The schedule's, for Lightning's checkpoints."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was written, if training is to go on.

        Raises:
            StateError: If the state is of other options, or damaged.
        """
        if self._takes_states:
            self.schedule.load_state_dict(state_dict)
            self._epochs_logged = self.schedule.epoch
