"""The same training by Keras and by hand, on the backend that KERAS_BACKEND names.

Nothing of the loops by hand is the package's but ``decide`` and ``report``.
"""

import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import Decision, SampleAttention
from batch_sampler_attn.trainers.keras import BatchAttention, fit_samples
from tests.trainers.cases import Points
from tests.trainers.plain_loop import make_schedule

BACKEND = keras.config.backend()
EPOCHS, BATCHES, SIZE = 4, 7, 8
# On torch, the last batch of an epoch has 4; XLA would compile for each size.
SAMPLES = 52 if BACKEND == "torch" else 56
SAMPLE_WEIGHTS = np.random.default_rng(5).uniform(0, 3, SAMPLES).astype("float32")


@dataclass
class Case:
    """How to train."""

    dtype: str = "float32"  # Keras's policy
    optimizer: str = "adam"  # or "sgd", or "fancy" for AdamW with clipping and an average of weights
    rate: str = "constant"  # or "cosine" or "steps"
    batch_norm: bool = False
    weights: str | None = None  # "sample" or "class"
    data: str = "arrays"  # or "stream" for a generator without a length, or "loader" for torch's
    workers: int = 0  # of a loader
    accumulation: int | None = None  # Keras's own
    compiled: dict[str, Any] = field(default_factory=dict)  # options of compile
    options: dict[str, Any] = field(default_factory=dict)  # of the schedule, or of the attention to samples


def make_data():
    data = Points(SAMPLES)
    return data.inputs.numpy(), data.targets.numpy().astype("int32")


def make_loader(batch_sampler=None, workers=0):
    dataset = TensorDataset(*map(torch.from_numpy, make_data()))
    if batch_sampler is None:
        return DataLoader(dataset, SIZE)
    context = "fork" if workers else None
    return DataLoader(dataset, batch_sampler=batch_sampler, num_workers=workers, multiprocessing_context=context)


def make_network(case, model_class=keras.Model):
    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy(case.dtype)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    if case.batch_norm:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2, seed=6)(keras.layers.Activation("relu")(x))
    return model_class(inputs, keras.layers.Dense(2, dtype="float32")(x))


def make_rate(name):
    if name == "cosine":
        return keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * BATCHES, alpha=0.1)
    if name == "steps":
        rates = [0.02, 0.015, 0.01, 0.005, 0.003]
        return keras.optimizers.schedules.PiecewiseConstantDecay([3, 9, 16, 22], rates)
    return 0.01


def make_loss(**options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **options)


def make_model(case, model_class=keras.Model):
    """A compiled model."""
    model, rate = make_network(case, model_class), make_rate(case.rate)
    if case.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, gradient_accumulation_steps=case.accumulation)
    elif case.optimizer == "fancy":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=0.5, use_ema=True)
    else:
        optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, make_loss(), metrics=["accuracy"], **case.compiled)
    return model


def weights_of(model):
    # Keras's own way has torch warn that NumPy cannot share.
    values = [weight.value.detach().numpy() if BACKEND == "torch" else weight.value for weight in model.weights]
    return np.concatenate([np.asarray(value, "float64").ravel() for value in values])


def finish(schedule, recorder, model):
    """Visits, repeats and threshold of each epoch, updates by the optimizer's count, and weights."""
    return SimpleNamespace(
        visits=[tuple(visit[:5]) for visit in recorder.visits],
        epochs=[(summary.repeats, summary.threshold) for summary in recorder.summaries],
        threshold=schedule.threshold,
        iterations=int(model.optimizer.iterations),
        weights=weights_of(model).tobytes(),
    )


def attended(case, model=None, **options):
    """A model with attention to batches, and its recorder."""
    schedule, recorder = make_schedule(**{**case.options, **options})
    return BatchAttention(model or make_model(case), schedule=schedule), recorder


def fit(attention, case, **options):
    x, y = make_data()
    options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, **options}
    if case.data == "loader":
        return attention.fit(make_loader(), **options).history
    if case.data == "stream":
        batches = [(x[begin : begin + SIZE], y[begin : begin + SIZE]) for begin in range(0, SAMPLES, SIZE)]
        stream = (batch for _ in range(EPOCHS + 1) for batch in batches)
        return attention.fit(stream, steps_per_epoch=BATCHES, **options).history
    if case.weights == "sample":
        options["sample_weight"] = SAMPLE_WEIGHTS
    if case.weights == "class":
        options["class_weight"] = {0: 0.5, 1: 2.0}
    return attention.fit(x, y, SIZE, **options).history


def by_keras(case, **options):
    """The run, the history, and the repeats by the attention's count."""
    attention, recorder = attended(case)
    history = fit(attention, case, **options)
    return finish(attention.schedule, recorder, attention.model), history, attention.repeats


def by_hand(case):
    """A loop around ``decide``, with the learning rate of the base batch."""
    schedule, recorder = make_schedule(**case.options)
    model, rate = make_model(replace(case, rate="constant")), make_rate(case.rate)
    update = make_update(model, case)
    if case.rate != "constant" and BACKEND == "jax":
        rate = sys.modules["jax"].jit(rate)
    x, y = make_data()
    weights = {"sample": SAMPLE_WEIGHTS, "class": np.where(y == 0, 0.5, 2.0).astype("float32")}.get(case.weights)
    for epoch in range(EPOCHS):
        for index in range(BATCHES):
            if case.rate != "constant":
                model.optimizer.learning_rate = float(rate(np.int32(epoch * BATCHES + index)))
            rows = slice(index * SIZE, (index + 1) * SIZE)
            batch = [values[rows] for values in (x, y, weights) if values is not None]
            while schedule.decide(update(*batch)[0]) is Decision.REPEAT:
                pass
        schedule.end_epoch()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return finish(schedule, recorder, model)


def make_update(model, case):
    """An update by hand, from inputs, targets and weights; it returns the loss, and those of samples."""
    if case.dtype == "mixed_float16" and not hasattr(model.optimizer, "inner_optimizer"):
        model.optimizer = keras.optimizers.LossScaleOptimizer(model.optimizer)
    model.optimizer.build(model.trainable_variables)
    return {"torch": torch_update, "jax": jax_update}[BACKEND](model, model.optimizer, case)


def torch_update(model, optimizer, case):
    loss_of, losses_of = make_loss(), make_loss(reduction="none")

    def update(*batch):
        x, y, *weights = map(torch.from_numpy, batch)
        predicted = model(x, training=True)
        loss = loss_of(y, predicted, *weights) + sum(model.losses)
        model.zero_grad()
        optimizer.scale_loss(loss).backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in model.trainable_variables], model.trainable_variables)
        return loss, losses_of(y, predicted).detach()

    return update


def jax_update(model, optimizer, case):
    import jax

    loss_of, losses_of = make_loss(), make_loss(reduction="none")

    def step(trainable, others, of_optimizer, x, y, *weights):
        def scaled(trainable):
            predicted, after, losses = model.stateless_call(trainable, others, x, training=True, return_losses=True)
            loss = loss_of(y, predicted, *weights) + sum(losses)
            with keras.StatelessScope(state_mapping=list(zip(optimizer.variables, of_optimizer, strict=True))):
                return optimizer.scale_loss(loss), (loss, predicted, after)

        gradients, (loss, predicted, after) = jax.grad(scaled, has_aux=True)(trainable)
        trainable, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trainable)
        return (loss, losses_of(y, predicted)), (trainable, after, of_optimizer)

    step = step if case.compiled.get("run_eagerly") else jax.jit(step)

    def update(*batch):
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        losses, state = step(*([variable.value for variable in part] for part in variables), *batch)
        for part, values in zip(variables, state, strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(value)
        return losses

    return update


def make_attention(**options):
    """An attention, and its batches: indices, weights and losses that are reported."""
    attention, batches = SampleAttention(SAMPLES, SIZE, **{"seed": 1, "weighted": True, **options}), []
    report = attention.report

    def note(losses):
        batch = (attention.indices, attention.weights, np.asarray(losses).tolist())
        weights = report(losses)
        batches.append(batch)
        return weights

    attention.report = note
    return attention, batches


def make_rows(case, attention):
    x, y = make_data()
    return make_loader(attention, case.workers) if case.data == "loader" else lambda rows: (x[rows], y[rows])


def finish_samples(batches, pruned, model):
    return batches, pruned, int(model.optimizer.iterations), weights_of(model).tobytes()


def samples_by_keras(case, model=None, **options):
    """The run, and the attention."""
    attention, batches = make_attention(**case.options)
    model = model or make_model(case)
    options = {"epochs": EPOCHS, "verbose": 0, **options}
    history = fit_samples(model, attention, make_rows(case, attention), **options).history
    return finish_samples(batches, history["sample_attention_pruned"], model), attention


def samples_by_hand(case):
    attention, batches = make_attention(**case.options)
    model, rows_of, pruned = make_model(case), make_rows(case, attention), []
    update = make_update(model, case)
    for _ in range(EPOCHS):
        for batch in attention.attend(None if callable(rows_of) else rows_of):
            x, y = map(np.asarray, rows_of(batch) if callable(rows_of) else batch)
            _, losses = update(x, y, np.asarray(attention.weights, "float32"))
            attention.report(np.asarray(losses))
        pruned.append(attention.last_summary.pruned)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return finish_samples(batches, pruned, model), attention
