"""Attention to samples in Keras is that of a plain loop, bit for bit, or refused with words.

Run by test_keras_samples.py, in a process for each backend.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError
from batch_sampler_attn.trainers.keras import BatchAttention, fit_samples
from tests.trainers import keras_runs
from tests.trainers.keras_runs import BACKEND, EPOCHS, SAMPLES, make_data, make_loss, make_optimizer, make_rate, weights_of

SIZE, UPDATES = 8, 7
BOTH = {"k": 1.1, "max_visits": 3}


@dataclass
class Case(keras_runs.Case):
    """Also: ``workers`` of a DataLoader in place of arrays, or None; and Keras's own ``accumulation``."""

    workers: int | None = None
    accumulation: int | None = None
    fit: dict[str, Any] = field(default_factory=dict)


CASES = {
    "prunes": Case(),
    "prunes, unweighted": Case(options={"weighted": False}, optimizer="sgd"),
    "pools": Case(options={"k": 1.1, "prune_probability": 0.0}),
    "both, plain at the end": Case(options={**BOTH, "epochs": 4, "final_full_share": 0.3}, rate="steps"),
    "its own epochs": Case(options={**BOTH, "updates": 5}, batch_norm=True),
    "bfloat16": Case(options=BOTH, dtype="mixed_bfloat16"),
    "float16": Case(options=BOTH, dtype="mixed_float16", rate="cosine"),
    "fancy": Case(options=BOTH, optimizer="fancy", rate="steps"),
    "accumulation": Case(options=BOTH, accumulation=2, optimizer="sgd"),
    "eager": Case(options=BOTH, compiled={"run_eagerly": True}),
    "evaluated": Case(options=BOTH, fit={"validation_data": make_data()[:2], "validation_batch_size": 20}),
    "loader": Case(options=BOTH, workers=0),
    "loader with workers": Case(options=BOTH, workers=2),
}


def make_attention(**options):
    """An attention, and what is reported to it: indices, weights and losses of each batch."""
    attention, visits = SampleAttention(SAMPLES, SIZE, **{"seed": 1, **options}), []
    report = attention.report

    def note(losses):
        visits.append((attention.indices, attention.weights, np.asarray(losses).tolist()))
        return report(losses)

    attention.report = note
    return attention, visits


def make_model(case, model_class=keras.Model):
    model = keras_runs.make_model(case, model_class)
    optimizer = make_optimizer(case.optimizer, 0.01 if case.rate == "constant" else make_rate(case.rate))
    if case.accumulation:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=case.accumulation)
    model.compile(optimizer, make_loss(), metrics=["accuracy"], **case.compiled)
    return model


def make_rows(case, attention):
    x, y, _ = make_data()
    if case.workers is None:
        return lambda rows: (x[rows], y[rows])
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    context = "fork" if case.workers else None
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    return DataLoader(dataset, batch_sampler=attention, num_workers=case.workers, multiprocessing_context=context)


def check_equal(model, other):
    assert np.array_equal(weights_of(model), weights_of(other))
    assert int(model.optimizer.iterations) == int(other.optimizer.iterations)


def by_keras(case, epochs=EPOCHS, model=None, **options):
    attention, visits = make_attention(**case.options)
    model = model or make_model(case)
    history = fit_samples(
        model, attention, make_rows(case, attention), epochs=epochs, verbose=0, **{**case.fit, **options}
    )
    return model, attention, visits, history.history


def by_hand(case):
    attention, visits = make_attention(**case.options)
    model, rows_of = make_model(case), make_rows(case, attention)
    model.optimizer.build(model.trainable_variables)
    update = {"torch": torch_update, "jax": jax_update}[BACKEND](model, case)
    pruned = []
    for _ in range(EPOCHS):
        for batch in attention.attend(None if callable(rows_of) else rows_of):
            x, y = map(np.asarray, rows_of(batch) if callable(rows_of) else batch)
            attention.report(np.asarray(update(x, y, np.asarray(attention.weights, "float32"))))
        pruned.append(attention.last_summary.pruned)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return model, attention, visits, pruned


def torch_update(model, case):
    import torch

    loss_of, each = make_loss(), keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def update(x, y, weights):
        x, y, weights = map(torch.from_numpy, (x, y, weights))
        predicted = model(x, training=True)
        model.zero_grad()
        model.optimizer.scale_loss(loss_of(y, predicted, weights) + sum(model.losses)).backward()
        variables = model.trainable_variables
        with torch.no_grad():
            model.optimizer.apply([variable.value.grad for variable in variables], variables)
        return each(y, predicted).detach()

    return update


def jax_update(model, case):
    import jax

    optimizer, loss_of = model.optimizer, make_loss()
    each = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(trainable, others, of_optimizer, x, y, weights):
        def loss(trainable):
            predicted, after, losses = model.stateless_call(trainable, others, x, training=True, return_losses=True)
            with keras.StatelessScope(state_mapping=list(zip(optimizer.variables, of_optimizer, strict=True))):
                return optimizer.scale_loss(loss_of(y, predicted, weights) + sum(losses)), (predicted, after)

        gradients, (predicted, after) = jax.grad(loss, has_aux=True)(trainable)
        trainable, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trainable)
        return each(y, predicted), (trainable, after, of_optimizer)

    step = step if case.compiled.get("run_eagerly") else jax.jit(step)

    def update(*batch):
        variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        losses, state = step(*([variable.value for variable in part] for part in variables), *batch)
        for part, values in zip(variables, state, strict=True):
            for variable, value in zip(part, values, strict=True):
                variable.assign(value)
        return losses

    return update


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forked workers
@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_the_loop_by_hand(name):
    case = CASES[name]
    if case.workers and BACKEND == "jax":
        pytest.skip("beside JAX's threads no test can fork workers")
    model, attention, visits, history = by_keras(case)
    expected, by_loop, expected_visits, pruned = by_hand(case)
    assert visits == expected_visits
    check_equal(model, expected)
    assert (attention.epoch, attention.updates) == (EPOCHS, 0)
    assert attention.last_summary == by_loop.last_summary
    assert history["sample_attention_pruned"] == pruned
    assert (sum(by_loop.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(by_loop.doses["pooled"]) > 0) == ("k" in case.options)
