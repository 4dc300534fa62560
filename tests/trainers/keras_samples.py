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
from tests.trainers.keras_runs import (
    BACKEND,
    EPOCHS,
    SAMPLES,
    make_data,
    make_loss,
    make_optimizer,
    make_rate,
    weights_of,
)

# What NumPy says of Keras's tensors of torch.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
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
    attention, visits = SampleAttention(SAMPLES, SIZE, **{"seed": 1, "weighted": True, **options}), []
    report = attention.report

    def note(losses):
        visit = (attention.indices, attention.weights, np.asarray(losses).tolist())
        weights = report(losses)
        visits.append(visit)
        return weights

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


# Those that JAX is compiled for; it cannot have forked workers beside its threads.
if BACKEND == "jax":
    names = ("prunes", "both, plain at the end", "float16", "loader")
    CASES = {name: CASES[name] for name in names}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # forked workers
@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_the_loop_by_hand(name):
    case = CASES[name]
    model, attention, visits, history = by_keras(case)
    expected, by_loop, expected_visits, pruned = by_hand(case)
    assert visits == expected_visits
    check_equal(model, expected)
    assert (attention.epoch, attention.updates) == (EPOCHS, 0)
    assert attention.last_summary == by_loop.last_summary
    assert history["sample_attention_pruned"] == pruned
    assert (sum(by_loop.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(by_loop.doses["pooled"]) > 0) == ("k" in case.options)


class Saving(keras.callbacks.Callback):
    """Saves after some updates, and ends the run there; counts ``updates`` over all epochs."""

    def __init__(self, attention, folder, updates, *, at_end=False):
        super().__init__()
        self.attention, self.folder, self.left, self.at_end = attention, folder, updates, at_end

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left and not self.at_end:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        if self.left <= 0:
            self.save()

    def save(self):
        self.model.save(self.folder / "model.keras")
        (self.folder / "attention.json").write_text(json.dumps(self.attention.state_dict()))
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("updates", "at_end"),
    [(3, False), (UPDATES, True)] + [(UPDATES, False), (2 * UPDATES - 1, False)] * (BACKEND == "torch"),
)
def test_a_run_that_was_stopped_resumes_exactly(updates, at_end, tmp_path):
    case = Case(options={**BOTH, "epochs": 3}, rate="steps", batch_norm=True)

    def make():
        model = make_model(case)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # Keras saves no seeds
        return model

    whole, _, expected_visits, _ = by_keras(case, epochs=3, model=make())
    attention, visits = make_attention(**case.options)
    saving = Saving(attention, tmp_path, updates, at_end=at_end)
    with pytest.raises(KeyboardInterrupt):
        fit_samples(make(), attention, make_rows(case, attention), epochs=3, verbose=0, callbacks=saving)
    attention, after = make_attention(**case.options)
    attention.load_state_dict(json.loads((tmp_path / "attention.json").read_text()))
    model = keras.saving.load_model(tmp_path / "model.keras")
    rows = make_rows(case, attention)
    if 0 < attention.updates < UPDATES:
        with pytest.raises(ProtocolError, match=rf"{attention.updates} of 7 updates .* epochs=initial_epoch \+ 1"):
            fit_samples(model, attention, rows, epochs=3, verbose=0)
        epoch = attention.epoch
        fit_samples(model, attention, rows, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    fit_samples(model, attention, rows, initial_epoch=-(-updates // UPDATES), epochs=3, verbose=0)
    assert visits + after == expected_visits
    check_equal(model, whole)


# What is refused, and what is not


def data_of(attention):
    return make_rows(Case(), attention)


def refused(words, model=None, attention=None, data=None, error=ProtocolError, **options):
    """A fit that stops before an update, and leaves the model as it was."""
    attention = attention or make_attention()[0]
    model = model or make_model(Case())
    before, train_step = weights_of(model), model.train_step
    with pytest.raises(error, match=words):
        fit_samples(model, attention, data or data_of(attention), verbose=0, **options)
    assert np.array_equal(weights_of(model), before)
    assert (attention.epoch, attention.updates) == (0, 0)
    assert model.train_step == train_step
    assert "compute_metrics" not in vars(model)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        [make_loss()],
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
    ],
    ids=["name", "list", "divided by weights"],
)
def test_losses_that_samples_cannot_be_compared_by_are_refused(loss):
    model = keras_runs.make_model(Case())
    model.compile("sgd", loss)
    refused("compile with a Loss that divides by the batch size alone", model)


def test_epochs_of_another_length_are_refused():
    refused("in place of steps_per_epoch=n, give SampleAttention updates=n", steps_per_epoch=3)


def test_a_loader_of_another_sampler_or_of_other_data_is_refused():
    from torch.utils.data import DataLoader, TensorDataset

    attention, _ = make_attention()
    loader = make_rows(Case(workers=0), attention)
    refused("has another batch sampler", attention=attention, data=DataLoader(loader.dataset, 8))
    grown = TensorDataset(*(values[[*range(SAMPLES), 0]] for values in loader.dataset.tensors))
    refused("has 53 samples, not 52", attention=attention, data=DataLoader(grown, batch_sampler=attention))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras itself refuses it on torch, and reads nothing ahead")
@pytest.mark.parametrize("kind", ["steps", "ahead"])
def test_batches_drawn_before_the_losses_are_refused(kind, monkeypatch):
    model = make_model(Case(compiled={"steps_per_execution": 2} if kind == "steps" else {}))
    if kind == "ahead":
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention, visits = make_attention()
    with pytest.raises(ProtocolError, match="the next batch was requested before"):
        fit_samples(model, attention, data_of(attention), verbose=0)
    assert visits == []


@pytest.mark.skipif(BACKEND == "torch", reason="of JAX alone")
def test_jax_reads_nothing_ahead_with_a_distribution(monkeypatch):
    import jax

    expected, _, expected_visits, _ = by_keras(Case(options=BOTH), epochs=2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0"]))
    try:
        model, _, visits, _ = by_keras(Case(options=BOTH), epochs=2)
        assert visits == expected_visits
        check_equal(model, expected)
    finally:
        keras.distribution.set_distribution(None)


def test_a_step_without_metrics_reports_nothing():
    class Silent(keras.Model):
        def train_step(self, *args):
            result = super().train_step(*args)
            logs = result if BACKEND == "torch" else result[0]
            del logs["sample_attention_pruned"]
            return result

    attention, visits = make_attention()
    with pytest.raises(LossError):
        fit_samples(make_model(Case(), Silent), attention, data_of(attention), verbose=0)
    assert visits == []


def test_an_evaluation_in_mid_epoch_changes_nothing():
    class Evaluating(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.model.evaluate(*make_data()[:2], batch_size=SIZE, verbose=0)

    case = Case(options=BOTH)
    expected, _, expected_visits, _ = by_keras(case, epochs=2)
    model, _, visits, _ = by_keras(case, epochs=2, callbacks=[Evaluating()])
    assert visits == expected_visits
    check_equal(model, expected)


def test_the_batch_that_builds_a_model_comes_again():
    x, y, _ = make_data()
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), make_loss())
    drawn, (attention, visits) = [], make_attention()
    fit_samples(model, attention, lambda rows: (drawn.append([*rows]), (x[rows], y[rows]))[1], epochs=2, verbose=2)
    assert drawn[0] == drawn[1]
    assert [indices for indices, _, _ in visits] == drawn[1:]
    assert (attention.epoch, len(visits)) == (2, 2 * UPDATES)


# As long as a batch, so that weights on the wrong axis would not be an error.
@pytest.mark.parametrize("shape", [(SIZE, 4), (SIZE, SIZE, 4)], ids=["sequences", "images"])
def test_samples_with_many_losses_are_compared_and_weighted_by_their_means(shape):
    inputs = np.random.default_rng(3).standard_normal((SAMPLES, *shape)).astype("float32")
    attention, visits = make_attention()
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    fit_samples(model, attention, lambda rows: (inputs[rows], inputs[rows, ..., :1]), epochs=3, verbose=0)
    kernel = np.ones((4, 1))
    for indices, weights, losses in visits:
        x = inputs[indices].astype("float64")
        errors = x @ kernel - x[..., :1]
        axes = tuple(range(1, errors.ndim))
        assert losses == pytest.approx((errors**2).mean(axis=axes), rel=1e-4)
        weighted = np.reshape(weights, (SIZE, *(1 for _ in axes)))
        kernel -= 0.1 * np.mean(2 * weighted * errors * x, axis=tuple(range(x.ndim - 1)))[:, None]
    assert np.asarray(model.get_weights()[0]) == pytest.approx(kernel, rel=1e-4, abs=1e-5)
    assert len({weight for _, weights, _ in visits for weight in weights}) > 2


def test_an_epoch_left_early_is_resumed_and_plain_fits_before_and_after_are_as_ever():
    class Stopping(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    case, (x, y, _) = Case(), make_data()
    attention, visits = make_attention()
    model, twin = make_model(case), make_model(case)
    for each in (model, twin):
        each.fit(x, y, batch_size=SIZE, shuffle=False, verbose=0)
    fit_samples(model, attention, data_of(attention), verbose=0, callbacks=[Stopping()])
    assert (attention.epoch, attention.updates) == (0, 3)
    fit_samples(model, attention, data_of(attention), verbose=0)
    assert (attention.epoch, attention.updates, len(visits)) == (1, 0, UPDATES)
    model.set_weights(twin.get_weights())
    assert model.fit(x, y, batch_size=SIZE, verbose=0).history.keys() == {"accuracy", "loss"}


def test_repeats_and_samples_are_not_combined():
    attention, _ = make_attention()
    loader = make_rows(Case(workers=0), attention)
    for data in (loader, attention.attend(loader)):
        with pytest.raises((ProtocolError, OptionError), match="repeats"):
            BatchAttention(make_model(Case())).fit(data, verbose=0)
