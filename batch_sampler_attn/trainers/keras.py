"""Batch-attention in Keras 3, on its torch and jax backends: ``BatchAttention(model, k=1.2).fit(x, y, epochs=10)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.accumulation import samples_in
from batch_sampler_attn.errors import OptionError, ProtocolError, short_repr
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.trainers.replay import (
    Replay,
    refuse_own_loader,
    schedule_from,
    standing_in,
    warn_of_too_few_epochs,
)

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ModuleNotFoundError(
        "batch_sampler_attn.trainers.keras needs Keras 3, which is not installed: "
        "pip install 'batch-sampler-attn[keras]'",
        name="keras",
    ) from error

__all__ = ["BatchAttention"]

# The loss of a batch, in the logs of a step; taken out again before Keras reads them.
_LOSS = "batch_attention_loss"

# The parts of Keras's training state on jax, in order.
_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")

_BY_HAND = "call model.train_on_batch around schedule.attend(batches), and decide on the loss that it returns"


class BatchAttention:
    """Repeats batches inside Keras's ``fit``; the model, of any kind, stays as it is.

    ``fit`` is the model's own, with its callbacks, validation and history. Callbacks see each batch once, metrics and
    logged losses are those of first visits, and a ``LearningRateSchedule`` gives the rate of the base batch.
    ``optimizer.iterations`` counts all updates, as Adam needs it. The loss that decides is the one that the update
    minimizes, sample weights and regularization included.

    Args:
        model: A ``keras.Model``, compiled before ``fit``.
        k: As in ``BatchAttentionSchedule``.
        schedule: A schedule made beforehand, in place of options.
        options: Further options of ``BatchAttentionSchedule``.

    Attributes:
        model: The same model.
        schedule: The schedule that decides.

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
        if not isinstance(model, keras.Model):
            raise OptionError(f"model is {short_repr(model)}; it must be a keras.Model")
        self.model = model
        self.schedule = schedule_from(k, schedule, options)
        self._replay = Replay(self.schedule)
        self._step = _RepeatingStep(model, self._replay)

    @property
    def repeats(self) -> int:
        """Repeats made so far, over all epochs: ``optimizer.iterations`` less the base batches."""
        return self._step.repeats

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Call ``model.fit``, with repeats; the history also has ``batch_attention_repeats`` of each epoch.

        Each call begins an epoch. An epoch that ends early, by an error or by ``stop_training``, sets no threshold.

        Args:
            x: As in ``keras.Model.fit``.
            y: As in ``keras.Model.fit``.
            args: Further arguments of ``keras.Model.fit``.
            callbacks: A callback of Keras, or a list of them.
            kwargs: Further arguments of ``keras.Model.fit``.

        Returns:
            The history that ``model.fit`` returns.

        Raises:
            OptionError: If a callback is not an instance of ``keras.callbacks.Callback``.
            ProtocolError: Before the first update, if training works in a way that cannot be repeated; the message
                says what to use instead.
        """
        refuse_own_loader(x, "BatchAttention.fit repeats batches")
        callbacks = keras.tree.flatten(callbacks or [])
        for callback in callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise OptionError(
                    f"callbacks has {short_repr(callback)}; it must have instances of keras.callbacks.Callback. A "
                    "schedule goes to BatchAttention(model, schedule=...)"
                )
        _check_model(self.model)
        try:
            # Ours is the first: an epoch of the schedule has ended before other callbacks learn that it has.
            callbacks = [_Epochs(self._step, self._replay), *callbacks]
            return self.model.fit(x, y, *args, callbacks=callbacks, **kwargs)
        finally:
            self._replay.end_epoch(finished=False)
            self._step.installed.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what to save beside the model, as plain JSON types.

        Keras resumes at the beginning of an epoch, and so does this: an epoch in progress starts again.
        """
        return checkpoint.seal({"schedule": self.schedule.state_dict(), "repeats": self.repeats})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what ``state_dict`` returned.

        Raises:
            StateError: If the state has another version or other options, or is damaged. Nothing is assigned then.
        """
        fields = checkpoint.unseal("the attention's state", state_dict, {"schedule", "repeats"})
        self.schedule.load_state_dict(fields["schedule"])
        self._step.repeats = fields["repeats"]


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes where training and its epochs begin and end."""

    def __init__(self, step: _RepeatingStep, replay: Replay) -> None:
        super().__init__()
        self._step = step
        self._replay = replay
        self._is_first = True
        self._restored: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        self._restored = getattr(self.model, "_initial_epoch", None)
        self._step.install()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        schedule, steps = self._replay.schedule, self.params["steps"]
        if self._is_first:
            self._is_first = False
            # BackupAndRestore sets _initial_epoch as training begins, after our callback.
            if getattr(self.model, "_initial_epoch", None) != self._restored and epoch != schedule.epoch:
                raise ProtocolError(
                    f"BackupAndRestore put the model back to where epoch {epoch} begins, and the attention's state is "
                    f"of epoch {schedule.epoch}. Save attention.state_dict() as each epoch ends, and load it before "
                    "fit; or start again with an empty backup folder"
                )
            warn_of_too_few_epochs(schedule, self.params["epochs"] - epoch, steps)
        self._step.begin_epoch(steps)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        # Keras ends an epoch that stop_training cuts short like any other.
        self._replay.end_epoch(finished=not self.model.stop_training)
        if logs is not None:
            logs["batch_attention_repeats"] = self._step.repeats_of_epoch


class _RepeatingStep:
    """Stands in for a model's ``train_step`` and ``train_function`` during ``fit``."""

    def __init__(self, model: Any, replay: Replay) -> None:
        self.repeats = 0
        self.repeats_of_epoch = 0
        self._model = model
        self._replay = replay
        self._batches = 0
        self._steps: int | None = None
        self._train_step = model.train_step
        self.installed = ExitStack()
        # The model's function, and the one compiled in its place: kept, since fit may be called for each epoch.
        self._compiled: tuple[Any, Any] = (None, None)

    def install(self) -> None:
        """Have the model call this; called once Keras has made the model's ``train_function``."""
        model = self._model
        if not any(metric.name == "loss" for metric in model.metrics):
            names = ", ".join(metric.name for metric in model.metrics) or "none"
            raise ProtocolError(
                f"{type(model).__name__} has no metric named 'loss' (its metrics: {names}), from which to read each "
                f"batch's loss. Add keras.metrics.Mean(name='loss') to model.metrics and update it in train_step; or "
                f"{_BY_HAND}"
            )
        plain, self._train_step = model.train_function, model.train_step
        stand_in = {"torch": self._on_torch, "jax": self._on_jax}[keras.config.backend()]
        self.installed.enter_context(standing_in(model, train_step=self._telling_step, train_function=stand_in))
        if plain is not self._compiled[0]:
            model.make_train_function(force=True)
            self._compiled = (plain, model.train_function)
            vars(model)["train_function"] = stand_in

    def begin_epoch(self, steps: int | None) -> None:
        """Begin an epoch of so many batches; None if Keras does not know."""
        self._steps, self._batches, self.repeats_of_epoch = steps, 0, 0
        self._replay.begin_epoch(steps, at=0)

    # Inside the compiled function -------------------------------------------------------------------------

    def _telling_step(self, *args: Any) -> Any:
        """Call the model's ``train_step``, and add its loss to the logs."""
        # As in Keras, on jax after the training state; but here with the repeats so far beside the data.
        *state, (data, repeats) = args
        with self._listening(repeats) as losses:
            result = self._train_step(*state, data)
        if len(losses) != 1:
            raise ProtocolError(
                f"{type(self._model).__name__}.train_step gave {len(losses)} losses to the metric named 'loss'; it "
                f"must give it the batch's loss, once. Or {_BY_HAND}"
            )
        loss = keras.ops.stop_gradient(losses[0])
        if state:
            logs, *others = result
            return {**logs, _LOSS: loss}, *others
        return {**result, _LOSS: loss}

    @contextmanager
    def _listening(self, repeats: Any) -> Iterator[list[Any]]:
        """Collect what the model's metric receives as its loss, while the learning rate is the base batch's."""
        model, losses = self._model, []
        metric = next(metric for metric in model.metrics if metric.name == "loss")
        update_state = metric.update_state

        def listen(loss: Any, *args: Any, **kwargs: Any) -> Any:
            losses.append(loss)
            return update_state(loss, *args, **kwargs)

        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        rate = vars(optimizer)["_learning_rate"]
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = _OnBaseBatches(rate, repeats)
        with standing_in(metric, update_state=listen), standing_in(optimizer, _learning_rate=rate):
            yield losses

    # Outside of it ----------------------------------------------------------------------------------------

    def _on_torch(self, buffer: list[Any]) -> Any:
        def visit(data: Any) -> dict[str, Any]:
            return self._note(self._compiled[1]([(data, self.repeats)]), data)

        (data,) = buffer
        self._replay.hold(data)
        logs, kept = visit(data), None
        for again in self._repeats():
            kept = kept or _copied((logs, [variable.value for variable in self._model.metrics_variables]))
            visit(again)
        if kept:
            logs, metrics = kept
            for variable, value in zip(self._model.metrics_variables, metrics, strict=True):
                variable.assign(value)
        return logs

    def _on_jax(self, state: Any, iterator: Iterator[Any]) -> Any:
        def visit(data: Any) -> Any:
            logs, after = self._compiled[1](state, iter([(data, self.repeats)]))
            return self._note(logs, data), after

        data, kept = next(iterator), None
        try:
            self._replay.hold(data)
            logs, state = visit(data)
            for again in self._repeats():
                # A step gives up the memory of its inputs.
                kept = kept or _copied((logs, state[3]))
                _, state = visit(again)
        except BaseException:
            # During an epoch, all values are outside the model; Keras puts back what it finds here.
            vars(self._model)["_jax_state"] = dict(zip(_STATE, state, strict=True))
            raise
        if kept:
            logs, metrics = kept
            state = (*state[:3], metrics)
        return logs, state

    def _note(self, logs: dict[str, Any], data: Any) -> dict[str, Any]:
        self._replay.note(logs.pop(_LOSS), samples_in(data))
        return logs

    def _repeats(self) -> Iterator[Any]:
        self._batches += 1
        for (data,) in self._replay.repeats(is_last=self._batches == self._steps):
            self.repeats += 1
            self.repeats_of_epoch += 1
            yield data


class _OnBaseBatches(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A learning-rate schedule of the user's, given the number of updates without repeats."""

    def __init__(self, schedule: Any, repeats: Any) -> None:
        self._schedule = schedule
        self._repeats = repeats

    def __call__(self, step: Any) -> Any:
        return self._schedule(step - self._repeats)


def _copied(values: Any) -> Any:
    return keras.tree.map_structure(keras.ops.copy, values)


def _check_model(model: Any) -> None:
    """Refuse ways of training without a decision between two updates, or whose updates are not of one batch."""
    if (backend := keras.config.backend()) not in ("torch", "jax"):
        raise ProtocolError(
            f"Keras runs on {backend!r}; BatchAttention.fit needs torch or jax: set KERAS_BACKEND before Keras is "
            f"imported. Or {_BY_HAND}"
        )
    if (steps := model.steps_per_execution) != 1:
        raise ProtocolError(
            f"the model was compiled with steps_per_execution={steps}, which makes {steps} updates without a decision "
            "in between. Compile it with steps_per_execution=1"
        )
    # None in a model that is not compiled, which Keras refuses itself.
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if steps := getattr(optimizer, "gradient_accumulation_steps", None):
        raise ProtocolError(
            f"the optimizer has gradient_accumulation_steps={steps}, and accumulates over the end of an epoch, so an "
            f"update cannot be repeated. Use batches of {steps} times as many samples"
        )
