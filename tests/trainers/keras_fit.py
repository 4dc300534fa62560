"""Keras's fit with repeats is the loop by hand, or refuses what it cannot repeat; run by test_keras.py."""

import json

import keras
import numpy as np
import pytest

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.accumulation import accumulate
from batch_sampler_attn.errors import (
    BatchAttentionWarning,
    BatchChangedError,
    NonfiniteLossError,
    OptionError,
    ProtocolError,
    StateError,
)
from batch_sampler_attn.trainers.keras import BatchAttention
from tests.trainers.keras_runs import (
    BACKEND,
    BATCHES,
    EPOCHS,
    SAMPLES,
    SIZE,
    Case,
    attended,
    by_hand,
    by_keras,
    finish,
    fit,
    make_attention,
    make_data,
    make_loader,
    make_loss,
    make_model,
    make_network,
    make_rate,
    weights_of,
)

pytestmark = [
    # Keras reads torch's tensors by way of NumPy.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    # Some fits here are one epoch of several.
    pytest.mark.filterwarnings("ignore:no batch will be repeated"),
]

# Where the backends have their code in common, and XLA would take seconds.
slow_on_jax = pytest.mark.slow if BACKEND == "jax" else lambda test: test

# It repeats often, and all that remains from one epoch to the next is in it.
CASE = Case(batch_norm=True, rate="steps")
CASES = {
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
    "loader": Case(data="loader"),
    "eager": Case(compiled={"run_eagerly": True}, rate="steps"),
    "last": Case(options={"epoch_loss": "last", "k": 0.8, "budget": 0.7}),
    "all": Case(options={"epoch_loss": "all", "max_visits": 2}),
}
QUICK = {"torch": ("fancy", "bfloat16", "float16", "sample weights", "class weights", "stream", "loader", "last")}
QUICK["jax"] = ("float16",)


@pytest.fixture(scope="module")
def whole():
    return by_keras(CASE)[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK[BACKEND] else pytest.mark.slow) for name in CASES]
)
def test_a_run_is_that_of_the_loop_by_hand(name):
    run, history, repeats = by_keras(CASES[name])
    assert run == by_hand(CASES[name])
    assert repeats == sum(repeats for repeats, _ in run.epochs) > 2
    assert run.iterations == EPOCHS * BATCHES + repeats
    assert history["batch_attention_repeats"] == [repeats for repeats, _ in run.epochs]


# What Keras counts and logs


class Noting(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.losses = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(batch)
        assert set(logs) == {"loss", "accuracy"}
        self.losses.append(float(logs["loss"]))


def test_callbacks_see_each_batch_once_and_what_is_logged_is_of_first_visits(whole):
    noting = Noting()
    run, history, _ = by_keras(CASE, callbacks=[noting])
    assert run == whole
    assert noting.begun == noting.ended == [*range(BATCHES)] * EPOCHS
    sizes = np.array([SIZE] * (BATCHES - 1) + [SAMPLES - SIZE * (BATCHES - 1)])
    first = np.reshape([visit[3] for visit in run.visits if visit[2] == 1], (EPOCHS, BATCHES))
    means = np.cumsum(first * sizes, axis=1) / np.cumsum(sizes)
    assert noting.losses == pytest.approx(means.ravel(), rel=1e-5)
    assert history["loss"] == pytest.approx(means[:, -1], rel=1e-5)


@slow_on_jax
def test_validation_and_saving_in_between_change_nothing(whole, tmp_path):
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_freq=3)
    run, history, _ = by_keras(CASE, callbacks=[saving], validation_data=make_data())
    assert run == whole
    assert len(history["val_loss"]) == EPOCHS
    # Nothing of ours is in what was saved.
    model = keras.models.load_model(tmp_path / "2.keras")
    assert type(vars(model.optimizer)["_learning_rate"]) is type(make_rate("steps"))


@slow_on_jax
def test_a_schedule_that_never_repeats_leaves_training_as_it_is():
    attention, _ = attended(CASE, max_visits=1)
    history, model = fit(attention, CASE), make_model(CASE)
    plain = model.fit(*make_data(), SIZE, epochs=EPOCHS, shuffle=False, verbose=0).history
    assert np.array_equal(weights_of(attention.model), weights_of(model))
    assert {**plain, "batch_attention_repeats": [0] * EPOCHS} == history


# Where fits begin and end


def test_a_fit_for_each_epoch_is_one_fit_and_is_compiled_once(whole):
    steps = []

    class Counting(keras.Model):
        def train_step(self, *args):
            steps.append(None)
            return super().train_step(*args)

    attention, recorder = attended(CASE, make_model(CASE, Counting))
    plain = set()
    for epoch in range(EPOCHS):
        fit(attention, CASE, epochs=epoch + 1, initial_epoch=epoch)
        plain.add(attention.model.train_function)
        assert "train_step" not in vars(attention.model)
    assert finish(attention.schedule, recorder, attention.model) == whole
    assert len(plain) == 1
    assert len(steps) == (1 if BACKEND == "jax" else len(whole.visits))


def test_a_run_that_is_saved_and_resumed_elsewhere_has_the_same_tail(whole, tmp_path):
    attention, _ = attended(CASE)
    fit(attention, CASE, epochs=3)
    attention.model.save(tmp_path / "model.keras")
    state = json.dumps(attention.state_dict())
    model = keras.models.load_model(tmp_path / "model.keras")
    # Keras saves no seeds: those of dropout begin again, unless they are carried over.
    for variable, saved in zip(model.non_trainable_variables, attention.model.non_trainable_variables, strict=True):
        variable.assign(saved.value)
    attention, recorder = attended(CASE, model)
    attention.load_state_dict(json.loads(state))
    assert attention.repeats > 0
    fit(attention, CASE, initial_epoch=3)
    run = finish(attention.schedule, recorder, model)
    assert run.visits == [visit for visit in whole.visits if visit[0] >= 3]
    assert (run.threshold, run.weights) == (whole.threshold, whole.weights)


def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start():
    attention, recorder = attended(CASE)
    words = r"no batch will be repeated: training ends after 1 epoch, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words):
        fit(attention, CASE, epochs=1)
    assert len(recorder.visits) == BATCHES


class Stopping(keras.callbacks.Callback):
    """Stops the training after a batch, or raises an error there."""

    def __init__(self, error=None, epoch=1):
        super().__init__()
        self.epoch, self.error, self.where = 0, error, (epoch, 3)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            if self.error is not None:
                raise self.error
            self.model.stop_training = True


def test_an_epoch_that_is_stopped_sets_no_threshold_and_begins_again():
    attention, recorder = attended(CASE)
    fit(attention, CASE, callbacks=[Stopping()])
    schedule, threshold = attention.schedule, attention.schedule.threshold
    assert (schedule.epoch, schedule.batches, len(recorder.summaries)) == (1, 4, 1)
    state = attention.state_dict()
    fit(attention, CASE, epochs=1)
    assert (schedule.epoch, recorder.summaries[-1].batches) == (2, BATCHES)
    assert recorder.summaries[-1].threshold == threshold
    # From the state, too.
    attention, recorder = attended(CASE)
    attention.load_state_dict(state)
    fit(attention, CASE, epochs=1)
    assert [summary.batches for summary in recorder.summaries] == [BATCHES]


@slow_on_jax
def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_model_as_it_was():
    attention, _ = attended(CASE)
    with pytest.raises(KeyError, match="of the user's"):
        fit(attention, CASE, callbacks=[Stopping(KeyError("of the user's"))])
    assert attention.schedule.epoch == 1
    assert "train_step" not in vars(attention.model)
    assert set(attention.model.fit(*make_data(), verbose=0).history) == {"loss", "accuracy"}
    assert attention.schedule.epoch == 1


def test_a_loss_that_is_refused_leaves_the_weights_as_they_came_to_be():
    attention, recorder = attended(CASE, nonfinite="raise")
    x, y = make_data()
    x[4 * SIZE] = np.nan
    with pytest.raises(NonfiniteLossError, match="epoch 0, batch 4, visit 1"):
        attention.fit(x, y, SIZE, epochs=2, shuffle=False, verbose=0)
    assert len(recorder.visits) == 4
    assert int(attention.model.optimizer.iterations) == 5
    assert np.isnan(weights_of(attention.model)).any()


@pytest.mark.filterwarnings("ignore:.*Your input ran out of data")
@slow_on_jax
def test_data_of_a_length_that_nobody_knows_are_an_epoch():
    x, y = make_data()
    attention, recorder = attended(CASE, k=0.4)
    for _ in range(2):
        stream = ((x[begin : begin + SIZE], y[begin : begin + SIZE]) for begin in range(0, 5 * SIZE, SIZE))
        attention.fit(stream, shuffle=False, verbose=0)
    assert [summary.batches for summary in recorder.summaries] == [5, 5]
    assert attention.repeats > 0


@slow_on_jax
def test_a_model_that_keras_puts_back_resumes_with_its_own_state_alone(tmp_path):
    states = [None]

    def callbacks(attention):
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: states.append(attention.state_dict()))
        return [keras.callbacks.BackupAndRestore(tmp_path), keep]

    attention, _ = attended(CASE)
    with pytest.raises(KeyError):
        fit(attention, CASE, callbacks=[*callbacks(attention), Stopping(KeyError("crash"), epoch=2)])
    for state, words in ((None, "of epoch 0"), (states[1], "of epoch 1"), (states[2], None)):
        attention, recorder = attended(CASE)
        if state is not None:
            attention.load_state_dict(state)
        if words is not None:
            with pytest.raises(ProtocolError, match=f"back to epoch 2, and the attention's state is {words}"):
                fit(attention, CASE, callbacks=callbacks(attention))
            assert recorder.visits == []
            assert "train_step" not in vars(attention.model)
    fit(attention, CASE, callbacks=callbacks(attention))
    assert [summary.batches for summary in recorder.summaries] == [BATCHES] * 2
    assert recorder.visits[0].epoch == 2
    assert int(attention.model.optimizer.iterations) == EPOCHS * BATCHES + attention.repeats


# Steps of the user's


@pytest.mark.skipif(BACKEND != "torch", reason="nothing is changed in place on jax")
def test_a_batch_that_is_changed_in_place_is_not_trained_on_again():
    class Changing(keras.Model):
        def train_step(self, data):
            data[0].mul_(0.5)
            return super().train_step(data)

    attention, _ = attended(CASE, make_model(CASE, Changing))
    with (
        pytest.warns(BatchAttentionWarning, match="changed tensors of its batch in place"),
        pytest.raises(BatchChangedError, match="changed tensors of it in place"),
    ):
        fit(attention, CASE)


@pytest.mark.parametrize("losses", [0, 2])
def test_a_step_that_does_not_have_one_loss_is_found_out(losses):
    class Odd(keras.Model):
        def train_step(self, *args):
            if losses == 0:
                return {} if BACKEND == "torch" else ({}, args[0])
            first = super().train_step(*args)
            return super().train_step(*args) if BACKEND == "torch" else super().train_step(first[1], args[1])

    attention, recorder = attended(CASE, make_model(CASE, Odd))
    with pytest.raises(ProtocolError, match=f"train_step of the model updates the metric 'loss' {losses} times"):
        fit(attention, CASE)
    assert recorder.visits == []


# Refusals


def refusal(model=None, x=None, **options):
    """What fit raises, with the weights as they were."""
    model, y = model or make_model(Case()), None
    if x is None:
        x, y = make_data()
    before = weights_of(model)
    with pytest.raises(ProtocolError) as refused:
        BatchAttention(model, k=1.2).fit(x, y, verbose=0, **options)
    assert np.array_equal(weights_of(model), before)
    assert "train_step" not in vars(model)
    assert int(model.optimizer.iterations) == 0
    return str(refused.value)


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    text = refusal()
    assert "Keras runs on 'tensorflow'; set KERAS_BACKEND to torch or jax" in text
    assert "model.train_on_batch" in text


def test_several_batches_in_one_step_are_refused():
    model = make_network(Case())
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    for optimizer in (keras.optimizers.SGD(0.1, gradient_accumulation_steps=3), scaled):
        model.compile(optimizer, make_loss())
        assert "gradient_accumulation_steps=3; use larger batches" in refusal(model)
    if BACKEND == "jax":  # Keras itself refuses it on torch
        model = make_model(Case(compiled={"steps_per_execution": 2}))
        assert "steps_per_execution=2; compile it with 1" in refusal(model)


def test_a_model_that_has_no_metric_of_its_loss_is_refused():
    silent = type("Silent", (keras.Model,), {"metrics": []})
    assert "the model has no metric 'loss'" in refusal(make_model(Case(), silent))


def test_data_of_this_package_are_refused():
    schedule = BatchAttentionSchedule()
    sampler = BatchAttentionSampler(range(SAMPLES), SIZE, schedule=BatchAttentionSchedule())
    attention, _ = make_attention()
    for name, data in {
        "AttendedLoader": schedule.attend(make_loader()),
        "AccumulatedLoader": accumulate(make_loader(), 2),
        "BatchAttentionSampler": make_loader(sampler),
        "SampleAttention": make_loader(attention),
    }.items():
        text = refusal(x=data)
        assert f"holds {name} of batch_sampler_attn" in text
        assert "Give a plain DataLoader" in text
        assert "BatchAttention.fit repeats batches" in text
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        BatchAttention(make_network(Case()), schedule=sampler.schedule)


def test_ranks_without_the_option_are_refused(monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    assert "ranks=MeanOverRanks()" in refusal(epochs=2)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (None, {"k": 1.2, "schedule": BatchAttentionSchedule()}, "schedule= and also k; give these options to"),
        (None, {"schedule": 1.2}, "schedule is 1.2; it must be like BatchAttentionSchedule"),
        (None, {"k": 0}, "k is 0"),
        (1.2, {}, "model is 1.2; it must be a keras.Model"),
    ],
)
def test_options_that_are_not_allowed_are_refused(model, options, words):
    with pytest.raises(OptionError, match=words):
        BatchAttention(model or make_network(Case()), **options)


def test_what_is_of_this_package_and_no_callback_is_refused_where_it_arrives():
    with pytest.raises(OptionError, match="no callback of this trainer"):
        fit(BatchAttention(make_model(Case())), Case(), callbacks=[BatchAttentionSchedule()])


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["schedule"],
        lambda state: {**state, "schedule": {}},
        lambda state: BatchAttention(make_network(Case()), k=1.5).state_dict(),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(damage):
    attention = BatchAttention(make_network(Case()), k=1.2)
    before = attention.state_dict()
    with pytest.raises(StateError):
        attention.load_state_dict(damage(attention.state_dict()))
    assert attention.state_dict() == before
