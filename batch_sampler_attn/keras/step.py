"""Repeats around Keras's step of training, in which nothing else is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.replay import Replay
from batch_sampler_attn.accumulation import samples_in

# In the logs of a step, on the way from inside to outside of a compiled function.
_LOSS = "batch_attention_loss"
_OURS = ("train_step", "train_function")
_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")


class RepeatingStep:
    """Stands in, during ``fit``, for two attributes of one model: its ``train_step`` and its ``train_function``.

    Args:
        model: That is trained.
        replay: Keeps the batch under way.

    Attributes:
        repeats: Made so far, over all epochs.
        repeats_of_epoch: Of the one in progress, or of the last.
    """

    def __init__(self, model: Any, replay: Replay) -> None:
        self.repeats = 0
        self.repeats_of_epoch = 0
        self._model = model
        self._replay = replay
        self._batches = 0
        self._steps: int | None = None
        self._train_step = model.train_step
        self._before: dict[str, Any] | None = None
        # The model's function, and ours in its place. Compiling takes seconds, and fit may be called for each epoch.
        self._made: tuple[Any, Any] = (None, None)

    def attach(self) -> None:
        """Have the model call this, once it has a ``train_function``."""
        model = self._model
        attributes = vars(model)
        self._before = {name: attributes[name] for name in _OURS if name in attributes}
        plain = model.train_function
        self._train_step = model.train_step
        attributes["train_step"] = self._telling_step
        if plain is not self._made[0]:
            model.make_train_function(force=True)
            self._made = (plain, model.train_function)
        attributes["train_function"] = {"torch": self._on_torch, "jax": self._on_jax}[keras.config.backend()]

    def detach(self) -> None:
        """Leave the model as it was; do nothing if this was not attached."""
        if self._before is not None:
            for name in _OURS:
                vars(self._model).pop(name, None)
            vars(self._model).update(self._before)
            self._before = None

    def begin_epoch(self, steps: int | None) -> None:
        """An epoch begins.

        Args:
            steps: How many batches it has; None if that is not known.
        """
        self._steps, self._batches, self.repeats_of_epoch = steps, 0, 0
        self._replay.begin_epoch(steps, at=0)

    # Inside of what is compiled ---------------------------------------------------------------------------

    def _telling_step(self, *args: Any) -> Any:
        """The model's ``train_step``, with its loss in the logs.

        Args:
            args: As Keras has them (the state of everything, on jax; the data), but with the repeats so far beside the
                data.
        """
        *state, (data, repeats) = args
        with self._listening(repeats) as losses:
            result = self._train_step(*state, data)
        if len(losses) != 1:
            raise ProtocolError(
                f"{type(self._model).__name__}.train_step gave {len(losses)} losses to the metric named 'loss', and "
                "one is to be decided on. Have it give that metric the loss of the batch, once; or decide on what "
                "model.train_on_batch returns, around schedule.attend(batches)"
            )
        loss = keras.ops.stop_gradient(losses[0])
        if state:
            logs, *others = result
            return {**logs, _LOSS: loss}, *others
        return {**result, _LOSS: loss}

    @contextmanager
    def _listening(self, repeats: Any) -> Iterator[list[Any]]:
        """What the model's metric of the loss is told; meanwhile the optimizer's learning rate is the base batch's."""
        model, losses = self._model, []
        metric = next(metric for metric in model.metrics if metric.name == "loss")
        update_state = metric.update_state

        def listen(loss: Any, *args: Any, **kwargs: Any) -> Any:
            losses.append(loss)
            return update_state(loss, *args, **kwargs)

        optimizer = vars(getattr(model.optimizer, "inner_optimizer", model.optimizer))
        rate = optimizer["_learning_rate"]
        vars(metric)["update_state"] = listen
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            optimizer["_learning_rate"] = _OnBaseBatches(rate, repeats)
        try:
            yield losses
        finally:
            del vars(metric)["update_state"]
            optimizer["_learning_rate"] = rate

    # Outside of it ----------------------------------------------------------------------------------------

    def _on_torch(self, buffer: list[Any]) -> Any:
        def visit(data: Any) -> dict[str, Any]:
            return self._note(self._made[1]([(data, self.repeats)]), data)

        (data,) = buffer
        self._replay.hold(data)
        logs, kept = visit(data), None
        for again in self._repeats():
            kept = kept or _copied((logs, self._metrics()))
            visit(again)
        if kept:
            logs, metrics = kept
            for variable, value in zip(self._model.metrics_variables, metrics, strict=True):
                variable.assign(value)
        return logs

    def _on_jax(self, state: Any, iterator: Iterator[Any]) -> Any:
        def visit(data: Any) -> Any:
            logs, after = self._made[1](state, iter([(data, self.repeats)]))
            return self._note(logs, data), after

        data, kept = next(iterator), None
        try:
            self._replay.hold(data)
            logs, state = visit(data)
            for again in self._repeats():
                # What goes into a step is gone after it.
                kept = kept or _copied((logs, state[3]))
                _, state = visit(again)
        except BaseException:
            # Keras took all values out of the model as the epoch began, and puts back what it finds here.
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

    def _metrics(self) -> list[Any]:
        return [variable.value for variable in self._model.metrics_variables]


class _OnBaseBatches(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A learning-rate schedule of the user's, asked for the rate of a base batch.

    Args:
        schedule: The user's.
        repeats: How many of the updates so far were repeats.
    """

    def __init__(self, schedule: Any, repeats: Any) -> None:
        self._schedule = schedule
        self._repeats = repeats

    def __call__(self, step: Any) -> Any:
        return self._schedule(step - self._repeats)


def _copied(values: Any) -> Any:
    return keras.tree.map_structure(keras.ops.copy, values)
