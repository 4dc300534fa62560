"""Attention in Keras 3, on its torch and jax backends: ``BatchAttention(model, k=1.2).fit(x, y, epochs=10)``."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.accumulation import refuse_own_loader, samples_in
from batch_sampler_attn.errors import OptionError, ProtocolError, short_repr
from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.trainers import replay

with replay.importing("keras"):
    import keras
    import numpy as np

__all__ = ["BatchAttention", "fit_samples"]

# The loss of a batch in the logs of a step; removed before Keras reads them.
_LOSS = "batch_attention_loss"

# The parts of Keras's training state on jax, in order.
_STATE = ("trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables")

_BY_HAND = "call model.train_on_batch around schedule.attend(batches), and decide on the loss that it returns"


class BatchAttention:
    """Repeats batches inside Keras's ``fit``, for any kind of model and without changes to it.

    Callbacks see each batch once, metrics and logged losses are those of first visits, and a ``LearningRateSchedule``
    gives the rate of the base batch. ``optimizer.iterations`` counts all updates, as Adam needs. Decisions use the loss
    that the update minimizes, including sample weights and regularization.

    Args:
        model: A ``keras.Model``, compiled before ``fit``.
        k: As in ``BatchAttentionSchedule``.
        schedule: An existing schedule, instead of options; available as an attribute in either case.
        options: Further options of ``BatchAttentionSchedule``.

    Raises:
        OptionError: If an option has a value that is not allowed, or options are given together with a schedule.
        ProtocolError: If the schedule belongs to a sampler.
    """

    def __init__(
        self, model: Any, k: float | None = None, *, schedule: BatchAttentionSchedule | None = None, **options: Any
    ) -> None:
        if not isinstance(model, keras.Model):
            raise OptionError(f"model is {short_repr(model)}; it must be a keras.Model")
        self.model = model
        self.schedule = replay.schedule_from(schedule, {"k": k, **options})
        self._repeating = _Repeating(model, self.schedule)

    @property
    def repeats(self) -> int:
        """Number of repeats so far, in all epochs: ``optimizer.iterations`` minus the base batches."""
        return self._repeating.repeats

    def fit(self, x: Any = None, y: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Call ``model.fit`` with repeats; the history also has ``batch_attention_repeats`` of each epoch.

        Takes the arguments of ``keras.Model.fit``. Each call begins an epoch. An epoch that ends early, by an error or
        by ``stop_training``, sets no threshold.
        """
        refuse_own_loader(x, "BatchAttention.fit repeats batches")
        replay.refuse_own_callbacks(callbacks or [])
        try:
            # Ours comes first, so that the schedule's epoch has ended when other callbacks are called.
            callbacks = [self._repeating, *keras.tree.flatten(callbacks or [])]
            return self.model.fit(x, y, *args, callbacks=callbacks, **kwargs)
        finally:
            self._repeating.uninstall()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save along with the model, as plain JSON types.

        Like Keras, it resumes at the beginning of an epoch: an epoch in progress starts again.
        """
        return checkpoint.seal({"schedule": self.schedule.state_dict(), "repeats": self.repeats})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state that ``state_dict`` returned.

        Raises:
            StateError: If the state has another version or other options, or is damaged. Nothing is changed then.
        """
        fields = checkpoint.unseal("the attention's state", state_dict, {"schedule", "repeats"})
        self.schedule.load_state_dict(fields["schedule"])
        self._repeating.repeats = fields["repeats"]


def fit_samples(model: Any, attention: SampleAttention, data: Any, **options: Any) -> Any:
    """Call ``model.fit`` on the batches of a ``SampleAttention``; save its ``state_dict()`` along with the model.

    Args:
        model: A ``keras.Model``, compiled with one ``keras.losses.Loss``, whose values are compared between samples.
        attention: Used in one process. Finish an epoch in progress by a call for that epoch only.
        data: Maps indices, an array, to a batch: ``lambda rows: (x[rows], y[rows])``; or a DataLoader on the attention.
        options: Options of ``keras.Model.fit``.

    Raises:
        ProtocolError: If losses would be attributed to other samples, or epochs are not those of the attention.
    """
    attended = attention.attend(None if callable(data) else data)
    if attention.updates == len(attention):
        next(iter(attended), None)  # which ends the epoch
    if not isinstance(model.loss, keras.losses.Loss) or model.loss.reduction == "mean_with_sample_weight":
        raise ProtocolError(f"loss={short_repr(model.loss)}; compile with a Loss that divides by the batch size alone")
    is_resumed = attention.updates and options.get("epochs", 1) != options.get("initial_epoch", 0) + 1
    if is_resumed or "steps_per_epoch" in options:
        raise ProtocolError(
            f"{attention.updates} of {len(attention)} updates of this epoch are made. Finish it with epochs="
            "initial_epoch + 1; and in place of steps_per_epoch=n, give SampleAttention updates=n"
        )
    pruned = "sample_attention_pruned"  # in the logs of a step, the losses
    loss, call, step, compute = copy.copy(model.loss), model.loss.call, model.train_step, model.compute_metrics

    def one_each(y: Any, y_pred: Any) -> Any:
        # Keras would apply the weights of samples to another dimension of the same length.
        losses = call(y, y_pred)
        return keras.ops.mean(keras.ops.reshape(losses, (losses.shape[0], -1)), axis=1)

    loss.reduction, loss.call = None, one_each

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(attention) - attention.updates or len(attention)

        def on_epoch_begin(self) -> None:
            self.iterator = iter(attended)  # starts again with the batch that Keras may have drawn to build the model

        def __getitem__(self, index: int) -> Any:
            batch = next(self.iterator)  # whatever number Keras asks for
            batch = data(np.asarray(batch)) if callable(data) else batch
            return (*batch, np.asarray(attention.weights, "float32"))

    def compute_metrics(x: Any, y: Any, y_pred: Any, *weights: Any, **named: Any) -> dict[str, Any]:
        return {**compute(x, y, y_pred, *weights, **named), pruned: keras.ops.stop_gradient(loss(y, y_pred))}

    def train_step(*args: Any) -> Any:
        with replay.standing_in(model, compute_metrics=compute_metrics):
            return step(*args)

    report = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: attention.report(np.atleast_1d(logs.pop(pruned, None))),
        on_epoch_end=lambda _, logs: logs.update({pruned: attention.summary.pruned}),
    )
    options["callbacks"] = [report, *keras.tree.flatten(options.get("callbacks") or [])]
    step_in = replay.standing_in(model, train_step=train_step, train_function=None)  # Keras makes a new function of it
    with step_in, replay.standing_in(model.loss, call=one_each):
        return model.fit(Batches(), **options)


class _Repeating(keras.callbacks.Callback):  # type: ignore[misc]
    """Replaces a model's ``train_step`` and ``train_function`` during ``fit``, which calls it as a callback."""

    def __init__(self, model: Any, schedule: BatchAttentionSchedule) -> None:
        super().__init__()
        self.repeats = 0
        # Not self.model: when it is read, Keras on jax copies its training state back into the model.
        self._model = model
        self._replay = replay.Replay(schedule)
        self._train_step = model.train_step
        self._installed = ExitStack()
        # The model's function and its compiled replacement, kept since fit may be called for each epoch.
        self._compiled: tuple[Any, Any] = (None, None)
        self._initial_epoch: int | None = None
        self._is_first_epoch = True
        # In this epoch: its batches so far, and the repeats made before it.
        self._batches = 0
        self._repeats_before = 0

    def uninstall(self) -> None:
        self._replay.end_epoch(finished=False)
        self._installed.close()

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
        model, backend = self._model, keras.config.backend()
        steps, metrics = model.steps_per_execution, [metric.name for metric in model.metrics]
        accumulated = _innermost(model.optimizer).gradient_accumulation_steps
        refusals = (
            (backend not in ("torch", "jax"), f"Keras runs on {backend!r}; set KERAS_BACKEND to torch or jax"),
            (steps != 1, f"the model has steps_per_execution={steps}; compile it with 1"),
            (accumulated, f"the optimizer has gradient_accumulation_steps={accumulated}; use larger batches"),
            ("loss" not in metrics, "the model has no metric 'loss'; update keras.metrics.Mean('loss') in train_step"),
        )
        for is_due, refusal in refusals:
            if is_due:
                raise ProtocolError(f"BatchAttention decides by each batch's loss, but {refusal}. Or {_BY_HAND}")
        self._initial_epoch, self._is_first_epoch = getattr(model, "_initial_epoch", None), True
        # Keras has made the train_function.
        plain, self._train_step = model.train_function, model.train_step
        stand_in = self._on_torch if backend == "torch" else self._on_jax
        self._installed.enter_context(replay.standing_in(model, train_step=self._logged_step, train_function=stand_in))
        if plain is not self._compiled[0]:
            model.make_train_function(force=True)
            self._compiled = (plain, model.train_function)
            vars(model)["train_function"] = stand_in

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        schedule, steps = self._replay.schedule, self.params["steps"]
        if self._is_first_epoch:
            self._is_first_epoch = False
            # BackupAndRestore sets _initial_epoch as training begins, after our callback.
            if getattr(self._model, "_initial_epoch", None) != self._initial_epoch and epoch != schedule.epoch:
                raise ProtocolError(
                    f"BackupAndRestore set the model back to epoch {epoch}, and the attention's state is of epoch "
                    f"{schedule.epoch}. Save attention.state_dict() as each epoch ends, and load it before fit"
                )
            replay.warn_of_too_few_epochs(schedule, self.params["epochs"] - epoch, steps)
        self._batches, self._repeats_before = 0, self.repeats
        self._replay.begin_epoch(steps, at=0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        # Keras ends an epoch that stop_training cuts short like any other.
        self._replay.end_epoch(finished=not self._model.stop_training)
        if logs is not None:
            logs["batch_attention_repeats"] = self.repeats - self._repeats_before

    def _logged_step(self, *args: Any) -> Any:
        """Call the model's ``train_step``, and add its loss to the logs."""
        # As in Keras, on jax after the training state; but here the data comes with the number of repeats so far.
        *state, (data, repeats) = args
        with self._listening(repeats) as losses:
            result = self._train_step(*state, data)
        if len(losses) != 1:
            raise replay.no_one_loss(f"train_step of the model updates the metric 'loss' {len(losses)} times")
        loss = keras.ops.stop_gradient(losses[0])
        if state:
            logs, *others = result
            return {**logs, _LOSS: loss}, *others
        return {**result, _LOSS: loss}

    @contextmanager
    def _listening(self, repeats: Any) -> Iterator[list[Any]]:
        """Collect the losses that the model's metric receives, while the learning rate is the base batch's."""
        model, losses = self._model, []
        metric = next(metric for metric in model.metrics if metric.name == "loss")
        update_state = metric.update_state

        def listen(loss: Any, *args: Any, **kwargs: Any) -> Any:
            losses.append(loss)
            return update_state(loss, *args, **kwargs)

        optimizer = _innermost(model.optimizer)
        rate, of_base_batch = vars(optimizer)["_learning_rate"], {}
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            of_base_batch["_learning_rate"] = lambda: rate(optimizer.iterations - repeats)
        with replay.standing_in(metric, update_state=listen), replay.standing_in(optimizer, **of_base_batch):
            yield losses

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
                # A step donates the memory of its inputs.
                kept = kept or _copied((logs, state[3]))
                _, state = visit(again)
        except BaseException:
            # During an epoch, all values are outside the model; Keras restores what it finds here.
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
        for (data,) in self._replay.repeats(is_last=self._batches == self.params["steps"]):
            self.repeats += 1
            yield data


def _copied(values: Any) -> Any:
    return keras.tree.map_structure(keras.ops.copy, values)


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside one that scales losses, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
