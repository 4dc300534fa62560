"""JAX and optax: a learning rate that follows base batches, and where to decide; run by test_keras.py."""

import numpy as np
import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import LossError
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.recorders import MemoryRecorder

jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")

EPOCHS, BATCHES = 4, 7


def make_batches():
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((BATCHES, 8, 6)).astype("float32")
    noise = 1.5 * generator.standard_normal((BATCHES, 8))
    return list(zip(inputs, (inputs.sum(2) + noise > 0).astype("float32"), strict=True))


def rate(step):
    return np.float32(0.05) * np.float32(0.95) ** step


def train(optimizer, set_rate=None):
    """As in the guide: ``set_rate`` sets the optimizer's rate by the base batch."""
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(k=0.97, max_visits=4, recorders=[recorder])
    weights, step = {"kernel": np.zeros(6, np.float32), "bias": np.float32(0)}, 0
    state = optimizer.init(weights)

    @jax.jit
    def update(weights, state, x, y):
        def loss_of(weights):
            return optax.sigmoid_binary_cross_entropy(x @ weights["kernel"] + weights["bias"], y).mean()

        loss, gradients = jax.value_and_grad(loss_of)(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return loss, optax.apply_updates(weights, updates), state

    for _ in range(EPOCHS):
        for x, y in schedule.attend(make_batches()):
            if set_rate:
                set_rate(state, rate(step))
            loss, weights, state = update(weights, state, x, y)
            step += schedule.decide(loss) is Decision.ADVANCE
    return recorder.visits, weights, state


def test_a_learning_rate_that_is_set_follows_base_batches_and_one_inside_of_optax_counts_repeats():
    def set_rate(state, value):
        state.hyperparams["learning_rate"] = value

    visits, weights, _ = train(optax.inject_hyperparams(optax.adam)(learning_rate=1.0), set_rate)
    assert len(visits) > EPOCHS * BATCHES + 2
    # By hand: the rates that these visits have to have had.
    rates = iter([rate(visit.epoch * BATCHES + visit.batch) for visit in visits])
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1.0)
    same, expected, _ = train(optimizer, lambda state, _: set_rate(state, next(rates)))
    assert same == visits
    assert jax.tree.all(jax.tree.map(np.array_equal, weights, expected))
    visits, _, state = train(optax.adam(rate))
    assert {int(part.count) for part in state if hasattr(part, "count")} == {len(visits)}


@pytest.mark.parametrize("transform", ["jit", "vmap"])
def test_a_tracer_of_jax_is_refused_with_where_to_decide(transform):
    schedule = BatchAttentionSchedule()

    def update(x):
        schedule.decide((x**2).sum())

    with pytest.raises(LossError, match=r"JAX tracer, .*float32\[\].* no value yet.* call decide on what it returns"):
        getattr(jax, transform)(update)(np.ones((2, 3), np.float32))
    assert schedule.batches == 0
    # And the losses of samples.
    with pytest.raises(LossError, match="JAX tracer"):
        jax.jit(lambda x: as_floats(x))(np.ones(3, np.float32))


def test_a_loss_that_jax_differentiates_and_does_not_trace_has_its_value():
    schedule = BatchAttentionSchedule()

    def loss_of(x):
        loss = (x**2).sum()
        schedule.decide(loss)
        return loss

    jax.grad(loss_of)(np.ones(3, np.float32))
    assert schedule.summary.mean_loss == 3.0
