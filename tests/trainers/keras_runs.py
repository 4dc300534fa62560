"""The same training by Keras and by hand, on the backend that KERAS_BACKEND names.

Nothing of the loop by hand is the package's but ``decide``.
"""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.recorders import MemoryRecorder
from batch_sampler_attn.trainers.keras import BatchAttention

EPOCHS = 4
# Batches of 8, the last of 4: 7 in all.
SAMPLES, BATCH_SIZE, BATCHES = 52, 8, 7
BACKEND = keras.config.backend()


@dataclass
class Case:
    """How to train.

    Attributes:
        dtype: Keras's policy.
        optimizer: "adam" or "sgd", or "fancy" for AdamW with clipping and an average of weights.
        rate: "constant" or a schedule's name.
        batch_norm: Whether the network has one.
        weights: None, "sample" or "class".
        data: How batches come: "known", or "stream" for a generator without a length.
        compiled: Options of ``compile``.
        options: Of the schedule.
    """

    dtype: str = "float32"
    optimizer: str = "adam"
    rate: str = "constant"
    batch_norm: bool = False
    weights: str | None = None
    data: str = "known"
    compiled: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {
    "adam": Case(),
    "sgd": Case(optimizer="sgd", batch_norm=True),
    "fancy": Case(optimizer="fancy", rate="steps"),
    "cosine": Case(rate="cosine"),
    "steps": Case(rate="steps", optimizer="sgd"),
    "bfloat16": Case(dtype="mixed_bfloat16", batch_norm=True, rate="steps"),
    "float16": Case(dtype="mixed_float16", rate="steps"),
    "sample weights": Case(weights="sample"),
    "class weights": Case(weights="class", dtype="mixed_bfloat16"),
    "stream": Case(data="stream", rate="steps"),
    "eager": Case(compiled={"run_eagerly": True}, rate="steps"),
    "last": Case(options={"epoch_loss": "last", "k": 0.8, "budget": 0.7}),
    "all": Case(options={"epoch_loss": "all", "max_visits": 2}),
}


def make_schedule(**options):
    recorder = MemoryRecorder()
    options = {"k": 0.97, "max_visits": 4, **options}
    return BatchAttentionSchedule(**options, recorders=[recorder]), recorder


def make_data():
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((SAMPLES, 6)).astype("float32")
    targets = (inputs.sum(1) + 1.5 * generator.standard_normal(SAMPLES) > 0).astype("int32")
    weights = generator.uniform(0, 3, SAMPLES).astype("float32")
    return inputs, targets, weights


class Batches(keras.utils.PyDataset):
    """Batches in an order of each epoch's own."""

    def __init__(self, weights=None):
        super().__init__()
        self.arrays = make_data()[: 3 if weights == "sample" else 2]
        self.generator = np.random.default_rng(4)
        self.shuffle()

    def shuffle(self):
        order = self.generator.permutation(SAMPLES)
        self.order = [order[begin : begin + BATCH_SIZE] for begin in range(0, SAMPLES, BATCH_SIZE)]

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        return tuple(array[self.order[index]] for array in self.arrays)


class Shuffling(keras.callbacks.Callback):
    """Keras goes through the first batch, and through ends of epochs, in ways that differ between its backends."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_epoch_end(self, epoch, logs=None):
        self.batches.shuffle()


def make_model(case, model_class=keras.Model):
    keras.utils.set_random_seed(5)
    keras.config.set_dtype_policy(case.dtype)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, kernel_regularizer=keras.regularizers.L2(1e-3))(inputs)
    if case.batch_norm:
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.2, seed=6)(keras.layers.Activation("relu")(x))
    outputs = keras.layers.Dense(2, dtype="float32")(x)
    return model_class(inputs, outputs)


def make_rate(name):
    schedules = keras.optimizers.schedules
    if name == "cosine":
        return schedules.CosineDecay(0.01, EPOCHS * BATCHES, alpha=0.1)
    return schedules.PiecewiseConstantDecay([3, 9, 16, 22], [0.02, 0.015, 0.01, 0.005, 0.003])


def make_optimizer(name, rate):
    if name == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9)
    if name == "fancy":
        return keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=0.5, use_ema=True)
    return keras.optimizers.Adam(rate)


def make_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def class_weights(case):
    return {0: 0.5, 1: 2.0} if case.weights == "class" else None


def compiled(case, model):
    rate = 0.01 if case.rate == "constant" else make_rate(case.rate)
    optimizer = make_optimizer(case.optimizer, rate)
    model.compile(optimizer, make_loss(), metrics=["accuracy"], **case.compiled)
    return model


def finish(schedule, recorder, model):
    return {
        "visits": [tuple(visit[:5]) for visit in recorder.visits],
        "weights": weights_of(model),
        "threshold": schedule.threshold,
        "epochs": [(summary.repeats, summary.threshold) for summary in recorder.summaries],
    }


def weights_of(model):
    # Keras's own way has torch warn that NumPy cannot share.
    values = [weight.value.detach().numpy() if BACKEND == "torch" else weight.value for weight in model.weights]
    return np.concatenate([np.asarray(value, "float64").ravel() for value in values])


def by_keras(case, epochs=EPOCHS, callbacks=(), **fit_options):
    schedule, recorder = make_schedule(**case.options)
    model = compiled(case, make_model(case))
    attention = BatchAttention(model, schedule=schedule)
    batches = Batches(case.weights)
    data = batches

    def stream():
        while True:
            yield from (batches[index] for index in range(BATCHES))
            batches.shuffle()

    if case.data == "stream":
        data, fit_options = stream(), {"steps_per_epoch": BATCHES, **fit_options}
    else:
        callbacks = [*callbacks, Shuffling(batches)]
    history = attention.fit(
        data,
        epochs=epochs,
        callbacks=callbacks,
        class_weight=class_weights(case),
        shuffle=False,
        verbose=0,
        **fit_options,
    )
    run = finish(schedule, recorder, model)
    run.update(history=history.history, iterations=int(model.optimizer.iterations), repeats=attention.repeats)
    return run


def by_hand(case):
    """A loop around ``decide``, with the learning rate set once a batch."""
    schedule, recorder = make_schedule(**case.options)
    model = make_model(case)
    optimizer = make_optimizer(case.optimizer, 0.01)
    if case.dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    update = {"torch": torch_update, "jax": jax_update}[BACKEND](model, optimizer, make_loss(), case)
    rate = None if case.rate == "constant" else make_rate(case.rate)
    if rate is not None and BACKEND == "jax":
        import jax

        rate = jax.jit(rate)
    batches, number = Batches(case.weights), 0
    for _ in range(EPOCHS):
        for index in range(BATCHES):
            x, y, *weights = batches[index]
            if case.weights == "class":
                weights = [np.where(y == 0, 0.5, 2.0).astype("float32")]
            if rate is not None:
                optimizer.learning_rate = float(rate(np.int32(number)))
            while schedule.decide(update(x, y, *weights)) is Decision.REPEAT:
                pass
            number += 1
        batches.shuffle()
        schedule.end_epoch()
    optimizer.finalize_variable_values(model.trainable_variables)
    return finish(schedule, recorder, model)


def torch_update(model, optimizer, loss_fn, case):
    import torch

    def update(*batch):
        x, y, *weights = map(torch.from_numpy, batch)
        loss = loss_fn(y, model(x, training=True), *weights) + sum(model.losses)
        model.zero_grad()
        optimizer.scale_loss(loss).backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in model.trainable_variables], model.trainable_variables)
        return loss

    return update


def jax_update(model, optimizer, loss_fn, case):
    import jax

    def step(trainable, others, of_optimizer, x, y, *weights):
        def loss_of(trainable):
            predicted, after, losses = model.stateless_call(trainable, others, x, training=True, return_losses=True)
            loss = loss_fn(y, predicted, *weights) + sum(losses)
            with keras.StatelessScope(state_mapping=list(zip(optimizer.variables, of_optimizer, strict=True))):
                return optimizer.scale_loss(loss), (loss, after)

        gradients, (loss, after) = jax.grad(loss_of, has_aux=True)(trainable)
        trainable, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trainable)
        return loss, (trainable, after, of_optimizer)

    step = step if case.compiled.get("run_eagerly") else jax.jit(step)

    def update(*batch):
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        loss, state = step(*([variable.value for variable in part] for part in variables), *batch)
        for part, values in zip(variables, state, strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(value)
        return loss

    return update
