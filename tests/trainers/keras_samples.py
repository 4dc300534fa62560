"""Attention to samples in Keras is that of a plain loop, bit for bit, or refused; run by test_keras.py."""

import json

import keras
import numpy as np
import pytest

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.keras import fit_samples
from tests.trainers import keras_runs
from tests.trainers.keras_runs import (
    BACKEND,
    BATCHES,
    EPOCHS,
    SAMPLES,
    SIZE,
    Case,
    make_attention,
    make_data,
    make_model,
)

pytestmark = [
    # What NumPy says of Keras's tensors of torch.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forked workers
]
slow_on_jax = pytest.mark.slow if BACKEND == "jax" else lambda test: test

BOTH = {"k": 1.1, "max_visits": 3}
CASES = {
    "prunes, unweighted": Case(options={"weighted": False}, optimizer="sgd", compiled={"run_eagerly": True}),
    "pools": Case(options={"k": 1.1, "prune_probability": 0.0}, dtype="mixed_bfloat16"),
    "its own epochs": Case(options={**BOTH, "updates": 5}, batch_norm=True),
    "float16": Case(options={**BOTH, "epochs": 4, "final_full_share": 0.3}, dtype="mixed_float16", rate="cosine"),
    "fancy": Case(options=BOTH, optimizer="fancy", rate="steps"),
    "accumulation": Case(options=BOTH, accumulation=2, optimizer="sgd", data="loader"),
    # JAX cannot have forked workers beside its threads.
    "loader with workers": Case(options=BOTH, data="loader", workers=2 if BACKEND == "torch" else 0),
}
QUICK = {"torch": ("prunes, unweighted", "float16", "accumulation"), "jax": ("float16",)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK[BACKEND] else pytest.mark.slow) for name in CASES]
)
def test_a_fit_is_the_loop_by_hand(name):
    case = CASES[name]
    run, attention = keras_runs.samples_by_keras(case)
    expected, by_loop = keras_runs.samples_by_hand(case)
    assert run == expected
    assert (attention.epoch, attention.updates) == (EPOCHS, 0)
    assert attention.last_summary == by_loop.last_summary
    assert (sum(by_loop.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(by_loop.doses["pooled"]) > 0) == ("k" in case.options)


class Saving(keras.callbacks.Callback):
    """Saves after some updates of all epochs, or as that epoch ends, and ends the run there."""

    def __init__(self, attention, folder, updates, *, at_end):
        super().__init__()
        self.attention, self.folder, self.left, self.at_end = attention, folder, updates, at_end

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        self.save_if(self.left == 0 and not self.at_end)

    def on_epoch_end(self, epoch, logs=None):
        self.save_if(self.left <= 0)

    def save_if(self, is_due):
        if is_due:
            self.model.save(self.folder / "model.keras")
            (self.folder / "attention.json").write_text(json.dumps(self.attention.state_dict()))
            raise KeyboardInterrupt


@slow_on_jax
@pytest.mark.parametrize(
    ("updates", "at_end"), [(3, False), (BATCHES, False), pytest.param(BATCHES, True, marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_resumes_exactly(updates, at_end, tmp_path):
    case = Case(options={**BOTH, "epochs": 3}, rate="steps", batch_norm=True)

    def make():
        model = make_model(case)
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0  # Keras saves no seeds
        return model

    whole, _ = keras_runs.samples_by_keras(case, make(), epochs=3)
    attention, before = make_attention(**case.options)
    saving = Saving(attention, tmp_path, updates, at_end=at_end)
    with pytest.raises(KeyboardInterrupt):
        fit_samples(make(), attention, keras_runs.make_rows(case, attention), epochs=3, verbose=0, callbacks=saving)
    attention, after = make_attention(**case.options)
    attention.load_state_dict(json.loads((tmp_path / "attention.json").read_text()))
    model, rows = keras.saving.load_model(tmp_path / "model.keras"), keras_runs.make_rows(case, attention)
    if 0 < attention.updates < BATCHES:
        with pytest.raises(ProtocolError, match=rf"{attention.updates} of 7 updates .* epochs=initial_epoch \+ 1"):
            fit_samples(model, attention, rows, epochs=3, verbose=0)
        epoch = attention.epoch
        fit_samples(model, attention, rows, initial_epoch=epoch, epochs=epoch + 1, verbose=0)
    fit_samples(model, attention, rows, initial_epoch=-(-updates // BATCHES), epochs=3, verbose=0)
    assert keras_runs.finish_samples(before + after, whole[1], model) == whole


def refused(words, model=None, attention=None, data=None, **options):
    """A fit that stops before an update, and leaves the model as it was."""
    attention, model = attention or make_attention()[0], model or make_model(Case())
    before, train_step = keras_runs.weights_of(model), model.train_step
    with pytest.raises(ProtocolError, match=words):
        fit_samples(model, attention, data or keras_runs.make_rows(Case(), attention), verbose=0, **options)
    assert np.array_equal(keras_runs.weights_of(model), before)
    assert (attention.epoch, attention.updates) == (0, 0)
    assert model.train_step == train_step
    assert "compute_metrics" not in vars(model)


def test_losses_epochs_and_loaders_that_do_not_go_with_the_samples_are_refused():
    for loss in ("sparse_categorical_crossentropy", keras_runs.make_loss(reduction="mean_with_sample_weight")):
        model = keras_runs.make_network(Case())
        model.compile("sgd", loss)
        refused("compile with a Loss that divides by the batch size alone", model)
    refused("in place of steps_per_epoch=n, give SampleAttention updates=n", steps_per_epoch=3)
    refused("has another batch sampler", data=keras_runs.make_loader())


@pytest.mark.skipif(BACKEND == "torch", reason="Keras itself refuses it on torch, and reads nothing ahead")
@pytest.mark.parametrize("kind", ["steps", "ahead"])
def test_batches_drawn_before_the_losses_are_refused(kind, monkeypatch):
    model = make_model(Case(compiled={"steps_per_execution": 2} if kind == "steps" else {}))
    if kind == "ahead":
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    attention, batches = make_attention()
    with pytest.raises(ProtocolError, match="the next batch was requested before"):
        fit_samples(model, attention, keras_runs.make_rows(Case(), attention), verbose=0)
    assert batches == []


@slow_on_jax
def test_evaluations_in_mid_epoch_and_at_its_end_change_nothing():
    class Evaluating(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.model.evaluate(*make_data(), batch_size=SIZE, verbose=0)

    case = Case(options=BOTH)
    expected, _ = keras_runs.samples_by_keras(case, epochs=2)
    options = {"validation_data": make_data(), "validation_batch_size": 20, "callbacks": [Evaluating()]}
    assert keras_runs.samples_by_keras(case, epochs=2, **options)[0] == expected


@slow_on_jax
def test_the_batch_that_builds_a_model_comes_again():
    x, y = make_data()
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), keras_runs.make_loss())
    drawn, (attention, batches) = [], make_attention()
    fit_samples(model, attention, lambda rows: (drawn.append([*rows]), (x[rows], y[rows]))[1], epochs=2, verbose=2)
    assert drawn[0] == drawn[1]
    assert [indices for indices, _, _ in batches] == drawn[1:]
    assert (attention.epoch, len(batches)) == (2, 2 * BATCHES)


@slow_on_jax
def test_samples_with_many_losses_are_compared_and_weighted_by_their_means():
    shape = (SIZE, SIZE, 4)  # as long as a batch, so that weights on the wrong axis would not be an error
    inputs = np.random.default_rng(3).standard_normal((SAMPLES, *shape)).astype("float32")
    attention, batches = make_attention()
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    fit_samples(model, attention, lambda rows: (inputs[rows], inputs[rows, ..., :1]), epochs=3, verbose=0)
    kernel = np.ones((4, 1))
    for indices, weights, losses in batches:
        x = inputs[indices].astype("float64")
        errors = x @ kernel - x[..., :1]
        axes = tuple(range(1, errors.ndim))
        assert losses == pytest.approx((errors**2).mean(axis=axes), rel=1e-4)
        weighted = np.reshape(weights, (SIZE, *(1 for _ in axes)))
        kernel -= 0.1 * np.mean(2 * weighted * errors * x, axis=tuple(range(x.ndim - 1)))[:, None]
    assert np.asarray(model.get_weights()[0]) == pytest.approx(kernel, rel=1e-4, abs=1e-5)
    assert len({weight for _, weights, _ in batches for weight in weights}) > 2
