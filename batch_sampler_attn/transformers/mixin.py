"""The mixin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_sampler_attn import notices
from batch_sampler_attn.errors import OptionError, ProtocolError, shown
from batch_sampler_attn.trainers.replay import Replay
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.transformers.refusals import check_trainer
from batch_sampler_attn.transformers.repeating import Repeating
from batch_sampler_attn.windows import samples_in

if TYPE_CHECKING:
    from transformers import Trainer
else:
    # The trainer's class comes after the mixin, and may be any subclass of Trainer.
    Trainer = object

STATE_NAME = "batch_attention.json"

# Below are methods of the trainer's that are in no documentation of it, and may be gone one day.
_NOT_DOCUMENTED = ("_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")


class BatchAttentionMixin(Trainer):
    """Repeats batches inside the optimizer step of a ``transformers.Trainer``, or of a subclass such as SFTTrainer.

    With ``gradient_accumulation_steps=n``, what is decided on and repeated is the window of n batches that one update
    is made from. Its loss is the one that the update is made from: where losses are divided by the trainer's
    ``num_items_in_batch``, the mean over these items (tokens), and otherwise the mean of the batches' losses over
    samples, also where the trainer adds them up, as with models that take that number and leave it. Mixed precision,
    gradient scaler, clipping and the callbacks around an update are those of the trainer. All that the trainer counts
    (``global_step``, the learning-rate schedule, epochs, tokens, steps between logs, evaluations and checkpoints)
    counts windows, not repeats, and its logged loss is of first visits. What ``compute_loss`` does by itself, such as
    keeping metrics, it does at each visit.

    Logs of training have ``batch_attention/repeats``, since the log before, and ``batch_attention/threshold``, the one
    in force. The schedule's state is in the trainer's checkpoints, in ``batch_attention.json``.

    Args:
        args: As the trainer takes it.
        schedule: Decides; it belongs to this trainer alone. On several ranks, with ``reduce=MeanOverRanks()``.
        samples: How many samples are in a batch, or the sum of their weights, where windows or ranks have several
            batches, and the trainer counts no items; None for the length of the first tensor in it.
        kwargs: As the trainer takes it.

    Attributes:
        schedule: The same.

    Raises:
        OptionError: If ``schedule`` is none.
        ProtocolError: If the schedule belongs to a sampler, or the class has no trainer, of a known kind, after this
            mixin. In ``train``, before the first update: if the trainer does what cannot be repeated; the message says
            what to use instead.

    Example:
        >>> from transformers import Trainer
        >>> class MyTrainer(BatchAttentionMixin, Trainer):
        ...     pass
        >>> MyTrainer(schedule=None)
        Traceback (most recent call last):
        ...
        batch_sampler_attn.errors.OptionError: schedule is None; it must be a BatchAttentionSchedule
    """

    def __init__(
        self,
        *args: Any,
        schedule: BatchAttentionSchedule,
        samples: Callable[[Any], object] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {shown(schedule)}; it must be a BatchAttentionSchedule")
        for name in _NOT_DOCUMENTED:
            if not hasattr(super(), name):
                raise ProtocolError(
                    f"no class after BatchAttentionMixin has {name}, by which the schedule comes into checkpoints. "
                    "Make the class with a Trainer as its second base; if it has one, that is of a newer kind: install "
                    "an older transformers, or a newer batch-sampler-attn"
                )
        self.schedule = schedule
        self._repeating = Repeating(self, Replay(schedule), samples or samples_in)
        self._at_first = schedule.state_dict()
        super().__init__(*args, **kwargs)

    # The names below are the trainer's own.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and repeat batches.

        Args:
            args: As the trainer takes them.
            kwargs: Likewise.

        Returns:
            What the trainer's own method returns.
        """
        check_trainer(self)
        if self.model_init is not None and self.schedule.state_dict() != self._at_first:
            # The model is a new one, as in each trial of a search for hyperparameters.
            self.schedule.load_state_dict(self._at_first)
        self._repeating.attach()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._repeating.detach()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            Path(output_dir, STATE_NAME).write_text(json.dumps(self.schedule.state_dict()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint, STATE_NAME)
        if path.is_file():
            self.schedule.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            notices.warn(
                f"the checkpoint has no {STATE_NAME}, as one of a trainer without BatchAttentionMixin: the schedule "
                "goes on as it is, and the epoch in progress sets no threshold"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and with a training loss, repeats and threshold.

        Args:
            logs: As the trainer takes it.
            args: Likewise.
            kwargs: Likewise.
        """
        if "loss" in logs:
            logs = {**logs, "batch_attention/repeats": self._repeating.take_repeats()}
            if self.schedule.threshold is not None:
                logs["batch_attention/threshold"] = self.schedule.threshold
        super().log(logs, *args, **kwargs)
