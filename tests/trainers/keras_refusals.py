"""What cannot be repeated exactly in Keras is refused before the first update, with what to do instead.

Run by test_keras.py, in a process for each backend.
"""

import keras
import numpy as np
import pytest
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.accumulation import accumulate
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.trainers.keras import BatchAttention
from tests.trainers.keras_runs import BACKEND, Batches, Case, compiled, make_data, make_loss, make_model, weights_of


def refusal(model=None, x=None, **options):
    """What fit raises, with the weights as they were."""
    model = model or compiled(Case(), make_model(Case()))
    before = weights_of(model)
    with pytest.raises(ProtocolError) as refused:
        BatchAttention(model, k=1.2).fit(Batches() if x is None else x, verbose=0, **options)
    assert np.array_equal(weights_of(model), before)
    assert "train_step" not in vars(model)
    assert int(model.optimizer.iterations) == 0
    return str(refused.value)


def torch_data():
    import torch

    return TensorDataset(*map(torch.from_numpy, make_data()[:2]))


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    text = refusal()
    assert "Keras runs on 'tensorflow'; set KERAS_BACKEND to torch or jax" in text
    assert "model.train_on_batch" in text


@pytest.mark.skipif(BACKEND == "torch", reason="Keras itself refuses it on torch")
def test_several_steps_in_one_execution_are_refused():
    text = refusal(compiled(Case(compiled={"steps_per_execution": 2}), make_model(Case())))
    assert "steps_per_execution=2" in text
    assert "compile it with 1" in text


@pytest.mark.parametrize("callback", [BatchAttentionSchedule, BatchAttentionSchedule()], ids=["class", "schedule"])
def test_what_is_of_this_package_and_no_callback_is_refused_where_it_arrives(callback):
    attention = BatchAttention(compiled(Case(), make_model(Case())), k=1.2)
    with pytest.raises(OptionError, match="no callback of this trainer"):
        attention.fit(Batches(), callbacks=[callback])


def test_accumulation_is_refused():
    model = make_model(Case())
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), make_loss())
    assert "gradient_accumulation_steps=2" in refusal(model)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    model.compile(optimizer, make_loss())
    assert "gradient_accumulation_steps=3; use larger batches" in refusal(model)


def test_data_that_are_attended_already_are_refused():
    schedule = BatchAttentionSchedule()
    loader = DataLoader(torch_data(), 8)
    text = refusal(x=schedule.attend(loader))
    assert "holds AttendedLoader of batch_sampler_attn" in text
    assert "BatchAttention.fit repeats batches" in text
    assert "Give a plain DataLoader" in refusal(x=accumulate(loader, 2))

    def generator():
        yield from schedule.attend([tuple(array[:4] for array in make_data()[:2])] * 5)

    assert "before decide() had the loss" in refusal(x=generator(), shuffle=False)


def test_a_sampler_of_ours_is_refused():
    data = torch_data()
    sampler = BatchAttentionSampler(RandomSampler(data), 8, schedule=BatchAttentionSchedule())
    text = refusal(x=DataLoader(data, batch_sampler=sampler))
    assert "holds BatchAttentionSampler of batch_sampler_attn, which repeats by itself" in text
    attention = SampleAttention(len(data), 8, prune_probability=0.5, epochs=4)
    assert "holds SampleAttention" in refusal(x=DataLoader(data, batch_sampler=attention))
    with pytest.raises(ProtocolError, match="belongs to a BatchAttentionSampler"):
        BatchAttention(make_model(Case()), schedule=sampler.schedule)


def test_a_model_that_has_no_metric_of_its_loss_is_refused():
    class Silent(keras.Model):
        @property
        def metrics(self):
            return []

    assert "the model has no metric 'loss'" in refusal(compiled(Case(), make_model(Case(), Silent)))


def test_ranks_without_the_option_are_refused(monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    assert "ranks=MeanOverRanks()" in refusal(epochs=2)


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_a_decision_inside_of_the_compiled_step_is_refused():
    schedule = BatchAttentionSchedule()

    class Deciding(keras.Model):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            schedule.decide(loss)
            return loss

    model = compiled(Case(), make_model(Case(), Deciding))
    with pytest.raises(TypeError, match="call decide on what it returns"):
        model.fit(Batches(), verbose=0)
    assert schedule.batches == 0


def test_a_model_that_is_not_compiled_is_refused_in_keras_s_words():
    with pytest.raises(ValueError, match="compile"):
        BatchAttention(make_model(Case())).fit(Batches())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 1.2, "schedule": BatchAttentionSchedule()}, "schedule= and also k; give these options to the schedule"),
        ({"k": 0}, "k is 0"),
        ({"schedule": 1.2}, "schedule is 1.2; it must be like BatchAttentionSchedule"),
        ({"schedule": BatchAttentionSchedule}, r"it must be like BatchAttentionSchedule\(k=1.2\)"),
        ({"k": BatchAttentionSchedule()}, "k is <BatchAttentionSchedule"),
    ],
)
def test_options_that_are_not_allowed_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        BatchAttention(make_model(Case()), **options)


@pytest.mark.parametrize("model", [1.2, keras.Sequential])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(OptionError, match=r"model is .*; it must be a keras.Model"):
        BatchAttention(model)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: None,
        lambda state: state["schedule"],
        lambda state: {**state, "version": 1},
        lambda state: {**state, "repeats": 1},
        lambda state: {**state, "schedule": {}},
        lambda state: BatchAttention(make_model(Case()), k=1.5).state_dict(),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(damage):
    attention = BatchAttention(make_model(Case()), k=1.2)
    before = attention.state_dict()
    with pytest.raises(StateError):
        attention.load_state_dict(damage(attention.state_dict()))
    assert attention.state_dict() == before
