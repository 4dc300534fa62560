"""Where repeats inside Keras go wrong in silence, unless one thinks of it.

Run by test_keras.py, in a process for each backend.
"""

import json
import warnings

import keras
import numpy as np
import pytest

from batch_sampler_attn import Decision, EqualComputeControl
from batch_sampler_attn.errors import BatchAttentionWarning, BatchChangedError, NonfiniteLossError, ProtocolError
from batch_sampler_attn.recorders import visit_counts
from batch_sampler_attn.trainers.keras import BatchAttention
from tests.trainers.keras_runs import (
    BACKEND,
    BATCH_SIZE,
    BATCHES,
    EPOCHS,
    SAMPLES,
    Batches,
    Case,
    Shuffling,
    by_keras,
    compiled,
    finish,
    make_data,
    make_model,
    make_rate,
    make_schedule,
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

# It repeats often, and all that goes on from one epoch to the next is in it.
CASE = Case(batch_norm=True, rate="steps")


def attended(model=None, case=CASE, **options):
    schedule, recorder = make_schedule(**options)
    return BatchAttention(model or compiled(case, make_model(case)), schedule=schedule), recorder


def fit(attention, batches=None, epochs=EPOCHS, callbacks=(), **options):
    batches = batches or Batches()
    callbacks = [*callbacks, Shuffling(batches)]
    return attention.fit(batches, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0, **options).history


@pytest.fixture(scope="module")
def whole():
    return by_keras(CASE)


def same(run, other):
    assert run["visits"] == other["visits"]
    assert run["epochs"] == other["epochs"]
    assert np.array_equal(run["weights"], other["weights"])


# What Keras counts and logs


class Hearing(keras.callbacks.Callback):
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
    hearing = Hearing()
    attention, recorder = attended()
    history = fit(attention, callbacks=[hearing])
    same(finish(attention.schedule, recorder, attention.model), whole)
    assert hearing.begun == hearing.ended == [*range(BATCHES)] * EPOCHS
    sizes = np.array([BATCH_SIZE] * (BATCHES - 1) + [SAMPLES % BATCH_SIZE])
    means = []
    for epoch in range(EPOCHS):
        losses = [visit.loss for visit in recorder.visits if visit.epoch == epoch and visit.visit == 1]
        means += list(np.cumsum(losses * sizes) / np.cumsum(sizes))
    assert attention.repeats > 2
    assert hearing.losses == pytest.approx(means, rel=1e-5)
    assert history["loss"] == pytest.approx(means[BATCHES - 1 :: BATCHES], rel=1e-5)
    assert history["batch_attention_repeats"] == [repeats for repeats, _ in whole["epochs"]]


@slow_on_jax
def test_validation_and_saving_in_between_change_nothing(whole, tmp_path):
    attention, recorder = attended()
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", save_freq=3)
    x, y, _ = make_data()
    history = fit(attention, callbacks=[saving], validation_data=(x, y))
    same(finish(attention.schedule, recorder, attention.model), whole)
    assert len(history["val_loss"]) == EPOCHS
    # Nothing of ours is in what was saved.
    model = keras.models.load_model(tmp_path / "2.keras")
    assert type(getattr(model.optimizer, "_learning_rate")) is type(make_rate("steps"))  # noqa: B009


@slow_on_jax
def test_a_schedule_that_never_repeats_leaves_training_as_it_is():
    attention, _ = attended(max_visits=1)
    history = fit(attention)
    model, batches = compiled(CASE, make_model(CASE)), Batches()
    plain = model.fit(batches, epochs=EPOCHS, callbacks=[Shuffling(batches)], shuffle=False, verbose=0).history
    assert np.array_equal(weights_of(attention.model), weights_of(model))
    assert {**plain, "batch_attention_repeats": [0] * EPOCHS} == history


# Where fits begin and end


def test_a_fit_for_each_epoch_is_one_fit_and_is_compiled_once(whole):
    steps = []

    class Counting(keras.Model):
        def train_step(self, *args):
            steps.append(None)
            return super().train_step(*args)

    attention, recorder = attended(compiled(CASE, make_model(CASE, Counting)))
    batches, plain = Batches(), set()
    for epoch in range(EPOCHS):
        fit(attention, batches, epoch + 1, initial_epoch=epoch)
        plain.add(attention.model.train_function)
        assert "train_step" not in vars(attention.model)
    same(finish(attention.schedule, recorder, attention.model), whole)
    assert len(plain) == 1
    # On jax, for each of the two sizes of batches.
    assert len(steps) == (2 if BACKEND == "jax" else len(whole["visits"]))


def test_a_run_that_is_saved_and_goes_on_elsewhere_has_the_same_tail(whole, tmp_path):
    attention, _ = attended()
    batches = Batches()
    fit(attention, batches, 3)
    attention.model.save(tmp_path / "model.keras")
    seeds = [variable.numpy() for variable in attention.model.non_trainable_variables if "seed" in variable.path]
    (tmp_path / "attention.json").write_text(json.dumps(attention.state_dict()))

    model = keras.models.load_model(tmp_path / "model.keras")
    # Keras saves no seeds: those of dropout begin anew, unless they are carried over.
    of_seeds = [variable for variable in model.non_trainable_variables if "seed" in variable.path]
    for variable, seed in zip(of_seeds, seeds, strict=True):
        variable.assign(seed)
    attention, recorder = attended(model)
    attention.load_state_dict(json.loads((tmp_path / "attention.json").read_text()))
    assert attention.repeats > 0
    fit(attention, batches, initial_epoch=3)
    run = finish(attention.schedule, recorder, attention.model)
    assert run["visits"] == [visit for visit in whole["visits"] if visit[0] >= 3]
    assert run["threshold"] == whole["threshold"]
    assert np.array_equal(run["weights"], whole["weights"])


def test_a_training_in_which_nothing_can_repeat_is_warned_of_at_its_start():
    attention, recorder = attended()
    words = r"no batch will be repeated: training ends after 1 epoch, .* warmup_epochs=1\. .*epoch_length=2"
    with pytest.warns(BatchAttentionWarning, match=words):
        fit(attention, epochs=1)
    assert len(recorder.visits) == BATCHES
    with warnings.catch_warnings():
        warnings.simplefilter("error", BatchAttentionWarning)
        fit(attention, epochs=1)
        fit(attended(epoch_length=2)[0], epochs=1)
    assert attention.schedule.epoch == 2


class Stopping(keras.callbacks.Callback):
    def __init__(self, error=None, at=3, epoch=1):
        super().__init__()
        self.epoch, self.error, self.where = 0, error, (epoch, at)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            if self.error is not None:
                raise self.error
            self.model.stop_training = True


def test_an_epoch_that_is_stopped_sets_no_threshold_and_begins_anew():
    attention, recorder = attended()
    batches = Batches()
    fit(attention, batches, callbacks=[Stopping()])
    schedule = attention.schedule
    assert (schedule.epoch, schedule.batches, len(recorder.summaries)) == (1, 4, 1)
    threshold = schedule.threshold
    state = attention.state_dict()
    fit(attention, batches, 1)
    assert (schedule.epoch, recorder.summaries[-1].batches) == (2, BATCHES)
    assert recorder.summaries[-1].threshold == threshold
    # From the state, too.
    attention, recorder = attended()
    attention.load_state_dict(state)
    fit(attention, batches, 1)
    assert [summary.batches for summary in recorder.summaries] == [BATCHES]


def test_an_epoch_that_is_stopped_at_its_last_batch_is_whole(whole):
    attention, recorder = attended()
    fit(attention, callbacks=[Stopping(at=BATCHES - 1)])
    assert attention.schedule.epoch == 2
    assert [(summary.repeats, summary.threshold) for summary in recorder.summaries] == whole["epochs"][:2]


def test_an_error_in_mid_epoch_sets_no_threshold_and_leaves_the_model_as_it_was():
    attention, _ = attended()
    model = attention.model
    with pytest.raises(KeyError, match="of the user's"):
        fit(attention, callbacks=[Stopping(KeyError("of the user's"))])
    assert attention.schedule.epoch == 1
    assert "train_step" not in vars(model)
    assert set(model.fit(Batches(), verbose=0).history) == {"loss", "accuracy"}
    assert attention.schedule.epoch == 1


def test_a_loss_that_is_refused_leaves_the_weights_as_they_came_to_be():
    class Broken(Batches):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x * np.float32(np.nan) if index == 4 else x), y

    attention, recorder = attended(nonfinite="raise")
    with pytest.raises(NonfiniteLossError, match="epoch 0, batch 4, visit 1"):
        fit(attention, Broken())
    assert len(recorder.visits) == 4
    assert int(attention.model.optimizer.iterations) == 5
    assert np.isnan(weights_of(attention.model)).any()


@pytest.mark.filterwarnings("ignore:.*Your input ran out of data")
@slow_on_jax
def test_data_of_a_length_that_nobody_knows_are_an_epoch():
    def stream():
        batches = Batches()
        yield from (batches[index] for index in range(5))

    attention, recorder = attended(k=0.4)
    for _ in range(2):
        attention.fit(stream(), shuffle=False, verbose=0)
    assert [summary.batches for summary in recorder.summaries] == [5, 5]
    assert attention.repeats > 0


@slow_on_jax
def test_a_model_that_keras_puts_back_goes_on_with_its_own_state_alone(tmp_path):
    states = [None]

    def saving(attention):
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: states.append(attention.state_dict()))
        return [backup, keep]

    attention, _ = attended()
    batches = Batches()
    with pytest.raises(KeyError):
        fit(attention, batches, callbacks=[*saving(attention), Stopping(KeyError("crash"), epoch=2)])
    for state, words in ((None, "of epoch 0"), (states[1], "of epoch 1")):
        attention, recorder = attended()
        if state is not None:
            attention.load_state_dict(state)
        with pytest.raises(ProtocolError, match=f"back to epoch 2, and the attention's state is {words}"):
            fit(attention, batches, callbacks=saving(attention))
        assert recorder.visits == []
        assert "train_step" not in vars(attention.model)

    attention, recorder = attended()
    attention.load_state_dict(states[2])
    fit(attention, batches, callbacks=saving(attention))
    assert [summary.batches for summary in recorder.summaries] == [BATCHES] * 2
    assert recorder.visits[0].epoch == 2
    assert attention.schedule.epoch == EPOCHS
    assert int(attention.model.optimizer.iterations) == EPOCHS * BATCHES + attention.repeats


# Steps and data of the user's


def test_a_batch_that_is_changed_in_place_is_not_trained_on_again():
    if BACKEND != "torch":
        pytest.skip("nothing is changed in place on jax")

    class Changing(keras.Model):
        def train_step(self, data):
            data[0].mul_(0.5)
            return super().train_step(data)

    attention, _ = attended(compiled(CASE, make_model(CASE, Changing)))
    with (
        pytest.warns(UserWarning, match="changed tensors of its batch in place"),
        pytest.raises(BatchChangedError, match="changed tensors of it in place"),
    ):
        fit(attention)


class OfTheGuideOnTorch(keras.Model):
    """As in Keras's guide to custom steps of training."""

    def train_step(self, data):
        import torch

        x, y = data
        y_pred = self(x, training=True)
        self.zero_grad()
        loss = self.compute_loss(y=y, y_pred=y_pred)
        loss.backward()
        gradients = [variable.value.grad for variable in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        for metric in self.metrics:
            metric.update_state(loss) if metric.name == "loss" else metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


class OfTheGuideOnJax(keras.Model):
    """As in Keras's guide to custom steps of training."""

    def losses_and_updates(self, trainable, others, x, y):
        y_pred, others, losses = self.stateless_call(trainable, others, x, training=True, return_losses=True)
        return self.compute_loss(x, y, y_pred) + sum(losses), (y_pred, others)

    def train_step(self, state, data):
        import jax

        trainable, others, of_optimizer, of_metrics = state
        x, y = data
        step = jax.value_and_grad(self.losses_and_updates, has_aux=True)
        (loss, (y_pred, others)), gradients = step(trainable, others, x, y)
        trainable, of_optimizer = self.optimizer.stateless_apply(of_optimizer, gradients, trainable)
        logs, after = {}, []
        for metric in self.metrics:
            mine = of_metrics[len(after) : len(after) + len(metric.variables)]
            told = (loss,) if metric.name == "loss" else (y, y_pred)
            mine = metric.stateless_update_state(mine, *told)
            logs[metric.name] = metric.stateless_result(mine)
            after += mine
        return logs, (trainable, others, of_optimizer, after)


OfTheGuide = {"torch": OfTheGuideOnTorch, "jax": OfTheGuideOnJax}[BACKEND]


def without_regularizer(model_class):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(2)(keras.layers.Dense(16, activation="relu")(inputs))
    return compiled(Case(), model_class(inputs, outputs))


def test_a_step_of_the_user_s_is_repeated_as_keras_s_own():
    runs = []
    for model_class in (keras.Model, OfTheGuide):
        attention, recorder = attended(without_regularizer(model_class))
        fit(attention)
        runs.append(finish(attention.schedule, recorder, attention.model))
    same(*runs)
    assert attention.repeats > 0


@pytest.mark.parametrize("losses", [0, 2])
def test_a_step_that_does_not_tell_one_loss_is_found_out(losses):
    class Odd(keras.Model):
        def train_step(self, *args):
            if losses == 0:
                return {} if BACKEND == "torch" else ({}, args[0])
            first = super().train_step(*args)
            return super().train_step(*args) if BACKEND == "torch" else super().train_step(first[1], args[1])

    attention, recorder = attended(compiled(CASE, make_model(CASE, Odd)))
    before = weights_of(attention.model)
    with pytest.raises(ProtocolError, match=f"train_step of the model updates the metric 'loss' {losses} times"):
        fit(attention)
    assert recorder.visits == []
    if BACKEND == "jax":
        assert np.array_equal(weights_of(attention.model), before)


@slow_on_jax
def test_arrays_and_loaders_are_data_as_any():
    x, y, _ = make_data()
    runs = []
    for data in ("arrays", "loader"):
        attention, recorder = attended()
        if data == "arrays":
            attention.fit(x, y, BATCH_SIZE, 3, 0, shuffle=False)
        else:
            import torch
            from torch.utils.data import DataLoader, TensorDataset

            loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), BATCH_SIZE)
            attention.fit(loader, epochs=3, shuffle=False, verbose=0)
        runs.append(finish(attention.schedule, recorder, attention.model))
    same(*runs)
    assert attention.repeats > 0


@slow_on_jax
def test_the_control_at_equal_compute_runs_in_fit():
    attention, recorder = attended()
    fit(attention)
    control = EqualComputeControl(visit_counts(recorder.visits), seed=1)
    history = fit(BatchAttention(compiled(CASE, make_model(CASE)), schedule=control))
    assert history["batch_attention_repeats"] == [summary.repeats for summary in recorder.summaries]


# By hand


def test_train_on_batch_is_repeated_by_hand_as_fit_repeats():
    case = Case(batch_norm=True)
    expected = by_keras(case)
    schedule, recorder = make_schedule()
    model, batches = compiled(case, make_model(case)), Batches()
    for _ in range(EPOCHS):
        for x, y in schedule.attend([batches[index] for index in range(BATCHES)]):
            schedule.decide(model.train_on_batch(x, y, return_dict=True)["loss"])
        batches.shuffle()
    same(finish(schedule, recorder, model), expected)


@slow_on_jax
def test_a_learning_rate_by_hand_follows_base_batches(whole):
    schedule, recorder = make_schedule()
    model, batches, rate, step = compiled(Case(batch_norm=True), make_model(CASE)), Batches(), make_rate("steps"), 0
    for _ in range(EPOCHS):
        for x, y in schedule.attend([batches[index] for index in range(BATCHES)]):
            model.optimizer.learning_rate = float(rate(step))
            loss = model.train_on_batch(x, y, return_dict=True)["loss"]
            step += schedule.decide(loss) is Decision.ADVANCE
        batches.shuffle()
    same(finish(schedule, recorder, model), whole)
