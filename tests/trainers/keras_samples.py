"""Attention to samples in Keras is that of a plain loop, bit for bit, or refused; run by test_keras.py."""

import json

import keras
import numpy as np
import pytest

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.keras import fit_samples
from tests.trainers import keras_runs
from tests.trainers.cases import BATCHES, EPOCHS
from tests.trainers.keras_runs import BACKEND, SAMPLES, SIZE, Case, make_data, make_model
from tests.trainers.sample_loop import make_attention

pytestmark = [
    # What NumPy says of Keras's tensors of torch.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forked workers
]

BOTH = {"k": 1.1, "max_visits": 3}
CASES = {
    "float16": Case(options={**BOTH, "final_full_share": 0.3}, precision="mixed_float16", rate="cosine"),
    "accumulation": Case(options={"weighted": False}, accumulation=2, optimizer="sgd", data="loader"),
    "pools": Case(
        options={"k": 1.1, "prune_probability": 0.0}, precision="mixed_bfloat16", trainer={"run_eagerly": True}
    ),
    "its own epochs": Case(options={**BOTH, "updates": 5}, batch_norm=True),
    "fancy": Case(options=BOTH, optimizer="fancy", rate="steps"),
    # JAX cannot have forked workers beside its threads.
    "loader with workers": Case(options=BOTH, data="loader", workers=2 if BACKEND == "torch" else 0),
}
QUICK = ("float16", "accumulation")


class Evaluating(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.model.evaluate(*make_data(), batch_size=SIZE, verbose=0)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in [*CASES][2:])])
def test_a_fit_is_the_loop_by_hand_whatever_is_evaluated_in_between(name):
    case = CASES[name]
    evaluations = {"validation_data": make_data(), "validation_batch_size": 20, "callbacks": [Evaluating()]}
    attention, *run = keras_runs.samples_by_keras(case, **(evaluations if name in QUICK else {}))
    by_loop, *expected = keras_runs.samples_by_hand(case)
    assert attention.batches == by_loop.batches
    assert run == expected
    assert (attention.epoch, attention.updates) == (EPOCHS, 0)
    assert attention.last_summary == by_loop.last_summary
    assert (sum(by_loop.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(by_loop.doses["pooled"]) > 0) == ("k" in case.options)


HOOKS = ("on_train_batch_end", "on_epoch_end")


@pytest.mark.parametrize(
    ("updates", "hook"),
    [(3, "on_train_batch_end"), *(pytest.param(BATCHES, hook, marks=pytest.mark.slow) for hook in HOOKS)],
)
def test_a_run_that_was_stopped_resumes_exactly(updates, hook, tmp_path):
    # Keras saves no seeds, from which dropout is drawn.
    case = Case(options=BOTH, rate="steps", batch_norm=True, dropout=0.0)
    whole, *expected = keras_runs.samples_by_keras(case, epochs=2)
    begun, attention = (make_attention(SIZE, SAMPLES, **case.options) for _ in range(2))
    model = make_model(case)

    def save(*_, **__):
        if begun.updates == updates:
            model.save(tmp_path / "model.keras")
            attention.load_state_dict(json.loads(json.dumps(begun.state_dict())))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keras_runs.samples_by_keras(case, model, begun, callbacks=keras.callbacks.LambdaCallback(**{hook: save}))
    resumed = {"case": case, "model": keras.saving.load_model(tmp_path / "model.keras"), "attention": attention}
    if 0 < attention.updates < BATCHES:
        with pytest.raises(ProtocolError, match=rf"{attention.updates} of 7 updates .* epochs=initial_epoch \+ 1"):
            keras_runs.samples_by_keras(**resumed, epochs=2)
        keras_runs.samples_by_keras(**resumed, epochs=1)
    _, _, *rest = keras_runs.samples_by_keras(**resumed, initial_epoch=1, epochs=2)
    assert begun.batches + attention.batches == whole.batches
    assert rest == expected[1:]


def refused(words, model=None, data=None, **options):
    attention, model = make_attention(SIZE, SAMPLES), model or make_model(Case())
    data = data or keras_runs.make_rows(Case(), attention)
    keras_runs.refused(words, model, lambda: fit_samples(model, attention, data, verbose=0, **options))
    assert (attention.epoch, attention.updates) == (0, 0)


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
    model = make_model(Case(trainer={"steps_per_execution": 2} if kind == "steps" else {}))
    if kind == "ahead":
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    attention = make_attention(SIZE, SAMPLES)
    with pytest.raises(ProtocolError, match="the next batch was requested before"):
        fit_samples(model, attention, keras_runs.make_rows(Case(), attention), verbose=0)
    assert attention.batches == []


def test_the_batch_that_builds_a_model_comes_again():
    x, y = make_data()
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), keras_runs.make_loss())
    drawn, attention = [], make_attention(SIZE, SAMPLES)
    fit_samples(model, attention, lambda rows: (drawn.append([*rows]), (x[rows], y[rows]))[1], epochs=2, verbose=2)
    assert drawn[0] == drawn[1]
    assert [batch[1] for batch in attention.batches] == drawn[1:]
    assert (attention.epoch, len(drawn)) == (2, 1 + 2 * BATCHES)


def test_samples_with_many_losses_are_compared_and_weighted_by_their_means():
    shape = (SIZE, SIZE, 4)  # as long as a batch, so that weights on the wrong axis would not be an error
    inputs = np.random.default_rng(3).standard_normal((SAMPLES, *shape)).astype("float32")
    attention = make_attention(SIZE, SAMPLES)
    model = keras.Sequential([keras.Input(shape), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    fit_samples(model, attention, lambda rows: (inputs[rows], inputs[rows, ..., :1]), epochs=3, verbose=0)
    kernel = np.ones((4, 1))
    for _, indices, weights, losses, _ in attention.batches:
        x = inputs[indices].astype("float64")
        errors = x @ kernel - x[..., :1]
        axes = tuple(range(1, errors.ndim))
        assert losses == pytest.approx((errors**2).mean(axis=axes), rel=1e-4)
        weighted = np.reshape(weights, (SIZE, *(1 for _ in axes)))
        kernel -= 0.1 * np.mean(2 * weighted * errors * x, axis=tuple(range(x.ndim - 1)))[:, None]
    assert np.asarray(model.get_weights()[0]) == pytest.approx(kernel, rel=1e-4, abs=1e-5)
    assert len({weight for batch in attention.batches for weight in batch[2]}) > 2
