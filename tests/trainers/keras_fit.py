"""Keras's fit with repeats is the loop by hand, or refuses what it cannot repeat; run by test_keras.py."""

import json

import keras
import numpy as np
import pytest

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import BatchAttentionWarning, OptionError, ProtocolError, StateError
from batch_sampler_attn.trainers.keras import BatchAttention
from tests.trainers import keras_runs
from tests.trainers.keras_runs import BACKEND, BATCHES, EPOCHS, SAMPLES, SIZE, Case, make_data, make_model

pytestmark = [
    # Keras reads torch's tensors by way of NumPy.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    # Some fits here are one epoch of several.
    pytest.mark.filterwarnings("ignore:no batch will be repeated"),
]

# It repeats often, and all that remains from one epoch to the next is in it.
CASE = Case(batch_norm=True, rate="steps")
CASES = {
    "fancy": Case(optimizer="fancy", rate="steps", data="stream"),
    "float16": Case(precision="mixed_float16", rate="steps"),
    "bfloat16": Case(precision="mixed_bfloat16", batch_norm=True, rate="steps", weights="class"),
    "cosine": Case(rate="cosine", trainer={"run_eagerly": True}, options={"epoch_loss": "all", "max_visits": 2}),
    "loader": Case(rate="steps", optimizer="sgd", data="loader", options={"epoch_loss": "last", "k": 0.8}),
    "sample weights": Case(weights="sample", optimizer="sgd", batch_norm=True, options={"budget": 0.7}),
}


@pytest.fixture(scope="module")
def whole():
    return keras_runs.by_keras(CASE)[0]


@pytest.mark.parametrize("name", ["fancy", *(pytest.param(name, marks=pytest.mark.slow) for name in [*CASES][1:])])
def test_a_run_is_that_of_the_loop_by_hand(name):
    run, history, attention = keras_runs.by_keras(CASES[name])
    assert run == keras_runs.by_hand(CASES[name])
    assert attention.repeats == run.repeats > 2
    assert int(attention.model.optimizer.iterations) == EPOCHS * BATCHES + run.repeats
    assert history["batch_attention_repeats"] == [repeats for repeats, _ in run.epochs]


def test_callbacks_see_each_batch_once_and_what_is_logged_is_of_first_visits(whole, tmp_path):
    begun, ended = [], []
    noting = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: begun.append(batch),
        on_train_batch_end=lambda batch, logs: ended.append((batch, {**logs})),
    )
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_freq=3)
    # Evaluations and saving in between change nothing.
    run, history, _ = keras_runs.by_keras(CASE, callbacks=[noting, saving], validation_data=make_data())
    assert run == whole
    assert begun == [*range(BATCHES)] * EPOCHS
    assert [batch for batch, _ in ended] == begun
    assert all(set(logs) == {"loss", "accuracy"} for _, logs in ended)
    sizes = np.array([SIZE] * (BATCHES - 1) + [SAMPLES - SIZE * (BATCHES - 1)])
    first = np.reshape(run.first_losses, (EPOCHS, BATCHES))
    means = np.cumsum(first * sizes, axis=1) / np.cumsum(sizes)
    assert [float(logs["loss"]) for _, logs in ended] == pytest.approx(means.ravel(), rel=1e-5)
    assert history["loss"] == pytest.approx(means[:, -1], rel=1e-5)
    assert len(history["val_loss"]) == EPOCHS
    # Nothing of ours is in what was saved.
    model = keras.models.load_model(tmp_path / "2.keras")
    assert type(vars(model.optimizer)["_learning_rate"]) is type(keras_runs.make_rate("steps"))


def test_a_fit_for_each_epoch_is_one_fit_and_is_compiled_once(whole):
    steps = []

    class Counting(keras.Model):
        def train_step(self, *args):
            steps.append(None)
            return super().train_step(*args)

    attention, recorder = keras_runs.attended(CASE, make_model(CASE, Counting))
    plain = set()
    for epoch in range(EPOCHS):
        keras_runs.fit(attention, CASE, epochs=epoch + 1, initial_epoch=epoch)
        plain.add(attention.model.train_function)
        assert "train_step" not in vars(attention.model)
    assert keras_runs.finish(attention.schedule, recorder, attention.model) == whole
    assert len(plain) == 1
    assert len(steps) == (1 if BACKEND == "jax" else len(whole.visits))


def test_a_run_that_is_saved_and_resumed_elsewhere_has_the_same_tail(whole, tmp_path):
    attention, _ = keras_runs.attended(CASE)
    keras_runs.fit(attention, CASE, epochs=3)
    attention.model.save(tmp_path / "model.keras")
    state = json.dumps(attention.state_dict())
    model = keras.models.load_model(tmp_path / "model.keras")
    # Keras saves no seeds: those of dropout begin again, unless they are carried over.
    for variable, saved in zip(model.non_trainable_variables, attention.model.non_trainable_variables, strict=True):
        variable.assign(saved.value)
    attention, recorder = keras_runs.attended(CASE, model)
    attention.load_state_dict(json.loads(state))
    assert attention.repeats > 0
    keras_runs.fit(attention, CASE, initial_epoch=3)
    run = keras_runs.finish(attention.schedule, recorder, model)
    assert run.visits == [visit for visit in whole.visits if visit[0] >= 3]
    assert (run.threshold, run.weights) == (whole.threshold, whole.weights)


def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start():
    attention, recorder = keras_runs.attended(CASE)
    words = r"no batch will be repeated: training ends after 1 epoch, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words):
        keras_runs.fit(attention, CASE, epochs=1)
    assert len(recorder.visits) == BATCHES


def at(attention, epoch, act):
    """A callback that acts in an epoch, after its fourth batch."""
    return keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: act() if (attention.schedule.epoch, batch) == (epoch, 3) else None
    )


def test_an_epoch_that_is_stopped_sets_no_threshold_and_begins_again():
    attention, recorder = keras_runs.attended(CASE)
    stopping = at(attention, 1, lambda: setattr(attention.model, "stop_training", True))
    keras_runs.fit(attention, CASE, callbacks=[stopping])
    schedule, threshold = attention.schedule, attention.schedule.threshold
    assert (schedule.epoch, schedule.batches, len(recorder.summaries)) == (1, 4, 1)
    state = attention.state_dict()
    keras_runs.fit(attention, CASE, epochs=1)
    assert (schedule.epoch, recorder.summaries[-1].batches) == (2, BATCHES)
    assert recorder.summaries[-1].threshold == threshold
    # From the state, too.
    attention, recorder = keras_runs.attended(CASE)
    attention.load_state_dict(state)
    keras_runs.fit(attention, CASE, epochs=1)
    assert [summary.batches for summary in recorder.summaries] == [BATCHES]


@pytest.mark.filterwarnings("ignore:.*Your input ran out of data")
def test_data_of_a_length_that_nobody_knows_are_an_epoch():
    x, y = make_data()
    attention, recorder = keras_runs.attended(CASE, k=0.4)
    for _ in range(2):
        stream = ((x[begin : begin + SIZE], y[begin : begin + SIZE]) for begin in range(0, 5 * SIZE, SIZE))
        attention.fit(stream, shuffle=False, verbose=0)
    assert [summary.batches for summary in recorder.summaries] == [5, 5]
    assert attention.repeats > 0


def test_a_model_that_keras_puts_back_resumes_with_its_own_state_alone(tmp_path):
    states = [None]

    def callbacks(attention):
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: states.append(attention.state_dict()))
        return [keras.callbacks.BackupAndRestore(tmp_path), keep]

    attention, _ = keras_runs.attended(CASE)
    with pytest.raises(KeyError):
        keras_runs.fit(attention, CASE, callbacks=[*callbacks(attention), at(attention, 2, {}.popitem)])
    for state, words in ((None, "of epoch 0"), (states[1], "of epoch 1"), (states[2], None)):
        attention, recorder = keras_runs.attended(CASE)
        if state is not None:
            attention.load_state_dict(state)
        if words is not None:
            with pytest.raises(ProtocolError, match=f"to epoch 2, and the attention's state is {words}"):
                keras_runs.fit(attention, CASE, callbacks=callbacks(attention))
            assert recorder.visits == []
            assert "train_step" not in vars(attention.model)
    keras_runs.fit(attention, CASE, callbacks=callbacks(attention))
    assert [summary.batches for summary in recorder.summaries] == [BATCHES] * 2
    assert recorder.visits[0].epoch == 2
    assert int(attention.model.optimizer.iterations) == EPOCHS * BATCHES + attention.repeats


@pytest.mark.parametrize("losses", [0, 2])
def test_a_step_that_does_not_have_one_loss_is_found_out(losses):
    class Odd(keras.Model):
        def train_step(self, *args):
            if losses == 0:
                return {} if BACKEND == "torch" else ({}, args[0])
            first = super().train_step(*args)
            return super().train_step(*args) if BACKEND == "torch" else super().train_step(first[1], args[1])

    attention, recorder = keras_runs.attended(CASE, make_model(CASE, Odd))
    with pytest.raises(ProtocolError, match=f"train_step of the model updates the metric 'loss' {losses} times"):
        keras_runs.fit(attention, CASE)
    assert recorder.visits == []


def refused(words, model=None, data=None):
    model, data = model or make_model(Case()), make_data() if data is None else [data]
    keras_runs.refused(words, model, lambda: BatchAttention(model, k=1.2).fit(*data, epochs=2, verbose=0))


def test_what_cannot_be_repeated_is_refused_before_an_update(monkeypatch):
    model = keras_runs.make_network(Case())
    sgd = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    for optimizer in (sgd, keras.optimizers.LossScaleOptimizer(sgd)):
        model.compile(optimizer, keras_runs.make_loss())
        refused("gradient_accumulation_steps=3; use larger batches", model)
    if BACKEND == "jax":  # Keras itself refuses it on torch
        refused("steps_per_execution=2; compile it with 1", make_model(Case(trainer={"steps_per_execution": 2})))
    silent = make_model(Case(), type("Silent", (keras.Model,), {"metrics": []}))
    refused("the model has no metric 'loss'", silent)
    attended = BatchAttentionSchedule().attend(keras_runs.make_loader())
    refused("holds AttendedLoader of batch_sampler_attn.*BatchAttention.fit repeats batches", data=attended)
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    refused(r"ranks=MeanOverRanks\(\)")
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    refused("Keras runs on 'tensorflow'; set KERAS_BACKEND to torch or jax")


def test_what_is_no_option_no_model_or_no_callback_is_refused_where_it_arrives():
    with pytest.raises(OptionError, match="k is 0"):
        BatchAttention(keras_runs.make_network(Case()), k=0)
    with pytest.raises(OptionError, match=r"model is 1.2; it must be a keras.Model"):
        BatchAttention(1.2)
    with pytest.raises(OptionError, match="no callback of this trainer"):
        keras_runs.fit(BatchAttention(make_model(Case())), Case(), callbacks=[BatchAttentionSchedule()])


def test_a_state_that_does_not_fit_is_refused_whole():
    attention = BatchAttention(keras_runs.make_network(Case()), k=1.2)
    before = attention.state_dict()
    other = BatchAttention(keras_runs.make_network(Case()), k=1.5).state_dict()
    for state in (before["schedule"], {**before, "schedule": {}}, other):
        with pytest.raises(StateError):
            attention.load_state_dict(state)
        assert attention.state_dict() == before
