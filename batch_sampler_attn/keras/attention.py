"""``fit`` with repeats."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from batch_sampler_attn.errors import OptionError, StateError, shown
from batch_sampler_attn.keras.refusals import check_arguments, check_is_of_epoch, check_loss_is_told, check_model
from batch_sampler_attn.keras.step import RepeatingStep
from batch_sampler_attn.trainers.replay import Replay
from batch_sampler_attn.schedule import BatchAttentionSchedule

_VERSION = 1


class BatchAttention:
    """Repeats batches inside Keras's ``fit``; the model, of any kind, stays as it is.

    ``fit`` is the model's own, with its callbacks, validation and history. What it counts and logs, it counts and logs
    as without repeats: callbacks see each batch once, metrics and logged losses are of first visits, and a
    ``LearningRateSchedule`` is asked for the rate of the base batch. ``optimizer.iterations`` counts updates, repeats
    included, as Adam needs it. What is decided on is the loss that the update minimizes, sample weights and
    regularization included, of the one batch.

    Args:
        model: Compiled, or to be compiled before ``fit``.
        k: As ``BatchAttentionSchedule`` takes it.
        schedule: The schedule, made beforehand, in place of options.
        options: Further options of ``BatchAttentionSchedule``.

    Attributes:
        model: The same.
        schedule: Decides.

    Raises:
        OptionError: If an option has a value that is not allowed, or there are options beside a schedule.
        ProtocolError: If the schedule belongs to a sampler.
    """

    def __init__(
        self,
        model: Any,
        k: float | None = None,
        *,
        schedule: BatchAttentionSchedule | None = None,
        **options: Any,
    ) -> None:
        if k is not None:
            options["k"] = k
        if not hasattr(model, "make_train_function"):
            raise OptionError(f"model is {shown(model)}; it must be a keras.Model")
        if schedule is None:
            schedule = BatchAttentionSchedule(**options)
        elif options:
            raise OptionError(f"there are schedule= and also {', '.join(options)}; give these to the schedule")
        elif not isinstance(schedule, BatchAttentionSchedule):
            raise OptionError(f"schedule is {shown(schedule)}; it must be a BatchAttentionSchedule")
        self.model = model
        self.schedule = schedule
        self._replay = Replay(schedule)
        self._step = RepeatingStep(model, self._replay)

    @property
    def repeats(self) -> int:
        """Made so far, over all epochs: by so many is ``optimizer.iterations`` ahead of base batches."""
        return self._step.repeats

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """``model.fit``, with repeats; the history has ``batch_attention_repeats`` of each epoch.

        Each call begins an epoch; one that was cut short, by an error or by ``stop_training``, sets no threshold.

        Args:
            x: As ``keras.Model.fit`` takes it.
            y: Likewise.
            args: Likewise.
            callbacks: Likewise, a callback or a list of them.
            kwargs: Likewise.

        Returns:
            What ``model.fit`` returns.

        Raises:
            ProtocolError: Before the first update, if there is something that cannot be repeated; the message says what
                to use instead.
        """
        check_arguments(x, callbacks)
        check_model(self.model)
        self.schedule.agreement.check_is_sought()
        # First, so that an epoch is over where the other callbacks hear that it is.
        watching = [_Epochs(self._step, self._replay), *keras.tree.flatten(callbacks or [])]
        try:
            return self.model.fit(x, y, *args, callbacks=watching, **kwargs)
        finally:
            self._replay.end_epoch(finished=False)
            self._step.detach()

    def state_dict(self) -> dict[str, Any]:
        """What to save beside the model, as plain JSON types.

        Keras goes on with whole epochs, and so does this: in a state from the middle of an epoch, that one begins anew.
        """
        return {"version": _VERSION, "schedule": self.schedule.state_dict(), "repeats": self.repeats}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        keys: Iterable[str] = state_dict if isinstance(state_dict, dict) else ()
        if {*keys} != {"version", "schedule", "repeats"} or state_dict["version"] != _VERSION:
            raise StateError(
                f"the state is {shown(state_dict)}; it must be what BatchAttention.state_dict() of batch_sampler_attn."
                f"keras returned, of version {_VERSION}"
            )
        repeats = state_dict["repeats"]
        if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 0:
            raise StateError(f"repeats is {shown(repeats)} in the state; it must be an int of at least 0")
        self.schedule.load_state_dict(state_dict["schedule"])
        self._step.repeats = repeats


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Says where training and its epochs begin and end."""

    def __init__(self, step: RepeatingStep, replay: Replay) -> None:
        super().__init__()
        self._step = step
        self._replay = replay
        self._restored: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        check_loss_is_told(self.model)
        self._restored = self._restored_epoch
        self._step.attach()

    @property
    def _restored_epoch(self) -> int | None:
        """That BackupAndRestore has the model go on with; it says so as training begins, after this callback."""
        epoch: int | None = getattr(self.model, "_initial_epoch", None)
        return epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        if self._restored_epoch != self._restored:
            self._restored = self._restored_epoch
            check_is_of_epoch(epoch, self._replay.schedule.epoch)
        self._step.begin_epoch(self.params["steps"])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        # Told to stop in the middle of an epoch, fit ends it like any other.
        self._replay.end_epoch(finished=not self.model.stop_training)
        if logs is not None:
            logs["batch_attention_repeats"] = self._step.repeats_of_epoch
