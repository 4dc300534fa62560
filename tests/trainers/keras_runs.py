"""The same training by Keras and by hand, on the backend that KERAS_BACKEND names.

Nothing of the loops by hand is the package's but ``decide`` and ``report``.
"""

import itertools
import sys
from dataclasses import dataclass, replace

import keras
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import Decision
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.keras import BatchAttention, fit_samples
from tests.trainers import cases, plain_loop
from tests.trainers.cases import BATCHES, EPOCHS, Points
from tests.trainers.plain_loop import make_schedule
from tests.trainers.sample_loop import make_attention

BACKEND = keras.config.backend()
SIZE = 8
# On torch, the last batch of an epoch has 4; XLA would compile for each size.
SAMPLES = cases.SAMPLES if BACKEND == "torch" else BATCHES * SIZE
SAMPLE_WEIGHTS = np.random.default_rng(5).uniform(0, 3, SAMPLES).astype("float32")


@dataclass
class Case(cases.Case):
    """How to train; ``trainer`` has options of ``compile``."""

    precision: str = "float32"  # Keras's policy
    optimizer: str = "adam"  # or "sgd", or "fancy" for AdamW with clipping and an average of weights
    rate: str = "constant"  # or "cosine" or "steps"
    weights: str | None = None  # "sample", or "class" for those of two classes
    data: str = "arrays"  # or "stream" for a generator without a length, or "loader" for torch's


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
    keras.config.set_dtype_policy(case.precision)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    if case.batch_norm:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(case.dropout, seed=6)(keras.layers.Activation("relu")(x))
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
        steps = case.accumulation if case.accumulation > 1 else None
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, gradient_accumulation_steps=steps)
    elif case.optimizer == "fancy":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=0.5, use_ema=True)
    else:
        optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, make_loss(), metrics=["accuracy"], **case.trainer)
    return model


def weights_of(model):
    # Keras's own way has torch warn that NumPy cannot share.
    values = [weight.value.detach().numpy() if BACKEND == "torch" else weight.value for weight in model.weights]
    return np.concatenate([np.asarray(value, "float64").ravel() for value in values]).tolist()


def refused(words, model, fit):
    """A fit stops before an update, and leaves the model as it was."""
    before = weights_of(model)
    with pytest.raises(ProtocolError, match=words):
        fit()
    assert weights_of(model) == before
    assert not {"train_step", "compute_metrics"} & set(vars(model))


def finish(schedule, recorder, model):
    return plain_loop.finish(schedule, recorder, model, weights_of=weights_of)


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
        stream = (batch for batch in itertools.cycle(batches))  # a generator, of which Keras knows no length
        return attention.fit(stream, steps_per_epoch=BATCHES, **options).history
    if case.weights == "sample":
        options["sample_weight"] = SAMPLE_WEIGHTS
    elif case.weights == "class":
        options["class_weight"] = {0: 0.5, 1: 2.0}
    return attention.fit(x, y, SIZE, **options).history


def by_keras(case, **options):
    """The run, the history, and the attention."""
    attention, recorder = attended(case)
    history = fit(attention, case, **options)
    return finish(attention.schedule, recorder, attention.model), history, attention


def by_hand(case):
    """A loop around ``decide``, with the learning rate of the base batch."""
    schedule, recorder = make_schedule(**case.options)
    model, rate = make_model(replace(case, rate="constant"), Telling), make_rate(case.rate)
    if case.rate != "constant" and BACKEND == "jax" and not case.trainer.get("run_eagerly"):
        rate = sys.modules["jax"].jit(rate)
    x, y = make_data()
    weights = {"sample": SAMPLE_WEIGHTS, "class": np.where(y == 0, 0.5, 2.0).astype("float32")}.get(case.weights)
    for epoch in range(EPOCHS):
        for index in range(BATCHES):
            if case.rate != "constant":
                model.optimizer.learning_rate = float(rate(np.int32(epoch * BATCHES + index)))
            rows = slice(index * SIZE, (index + 1) * SIZE)
            batch = [values[rows] for values in (x, y, weights) if values is not None]
            while schedule.decide(update(model, *batch)[0]) is Decision.REPEAT:
                pass
        schedule.end_epoch()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return finish(schedule, recorder, model)


class Telling(keras.Model):
    """Returns the losses of samples, too."""

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        losses = keras.ops.stop_gradient(make_loss(reduction="none")(y, y_pred))
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "losses": losses}


def update(model, *batch):
    """An update by Keras itself; the loss, and those of samples."""
    model.reset_metrics()
    logs = model.train_on_batch(*batch, return_dict=True)
    return logs["loss"], logs["losses"]


def make_rows(case, attention):
    x, y = make_data()
    return make_loader(attention, case.workers) if case.data == "loader" else lambda rows: (x[rows], y[rows])


def samples_by_keras(case, model=None, attention=None, **options):
    """The attention, the samples that were pruned in each epoch, updates, and weights."""
    model, attention = model or make_model(case), attention or make_attention(SIZE, SAMPLES, **case.options)
    options = {"epochs": EPOCHS, "verbose": 0, **options}
    history = fit_samples(model, attention, make_rows(case, attention), **options).history
    return attention, history["sample_attention_pruned"], int(model.optimizer.iterations), weights_of(model)


def samples_by_hand(case):
    attention = make_attention(SIZE, SAMPLES, **case.options)
    model, rows_of, pruned = make_model(case, Telling), make_rows(case, attention), []
    for _ in range(EPOCHS):
        for batch in attention.attend(None if callable(rows_of) else rows_of):
            x, y = map(np.asarray, rows_of(batch) if callable(rows_of) else batch)
            _, losses = update(model, x, y, np.asarray(attention.weights, "float32"))
            attention.report(np.asarray(losses))
        pruned.append(attention.last_summary.pruned)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return attention, pruned, int(model.optimizer.iterations), weights_of(model)
