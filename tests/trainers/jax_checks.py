"""JAX and optax: the loop around ``attend`` is the loop by hand, and learning rates follow base batches.

``test_jax.py`` runs this in a process of its own: JAX has threads, beside which no test can fork workers any more.
"""

import functools

import numpy as np
import pytest

from batch_sampler_attn import Decision
from batch_sampler_attn.errors import LossError
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.recorders import MemoryRecorder
from batch_sampler_attn.schedule import BatchAttentionSchedule

EPOCHS, BATCHES = 4, 7


@functools.cache
def make_batches():
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((BATCHES, 8, 6)).astype("float32")
    noise = 1.5 * generator.standard_normal((BATCHES, 8))
    return list(zip(inputs, (inputs.sum(2) + noise > 0).astype("float32"), strict=True))


def rate(step):
    return np.float32(0.05) * np.float32(0.95) ** step


def begin(optimizer):
    import jax
    import optax

    weights = {"kernel": np.zeros(6, np.float32), "bias": np.float32(0)}

    @jax.jit
    def update(weights, state, x, y):
        def loss_of(weights):
            return optax.sigmoid_binary_cross_entropy(x @ weights["kernel"] + weights["bias"], y).mean()

        loss, gradients = jax.value_and_grad(loss_of)(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return loss, optax.apply_updates(weights, updates), state

    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(k=0.97, max_visits=4, recorders=[recorder])
    return schedule, recorder, update, weights, optimizer.init(weights)


def by_attend():
    import optax

    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=float(rate(0)))
    schedule, recorder, update, weights, state = begin(optimizer)
    rates, step = [], 0
    for _ in range(EPOCHS):
        for x, y in schedule.attend(make_batches()):
            rates.append(float(state.hyperparams["learning_rate"]))
            loss, weights, state = update(weights, state, x, y)
            if schedule.decide(loss) is Decision.ADVANCE:
                step += 1
                state.hyperparams["learning_rate"] = rate(step)
    return recorder.visits, weights, rates


def by_hand():
    """With the rate outside of optax: Adam's direction, times a number."""
    import optax

    schedule, recorder, update, weights, state = begin(optax.inject_hyperparams(optax.adam)(learning_rate=1.0))
    rates = []
    for epoch in range(EPOCHS):
        for index, (x, y) in enumerate(make_batches()):
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                rates.append(float(rate(epoch * BATCHES + index)))
                state.hyperparams["learning_rate"] = rates[-1]
                loss, weights, state = update(weights, state, x, y)
                decision = schedule.decide(loss)
        schedule.end_epoch()
    return recorder.visits, weights, rates


def test_the_loop_around_attend_is_the_loop_by_hand():
    import jax

    (visits, weights, rates), (expected_visits, expected_weights, expected_rates) = by_attend(), by_hand()
    assert visits == expected_visits
    assert rates == expected_rates
    assert jax.tree.all(jax.tree.map(np.array_equal, weights, expected_weights))
    assert len(visits) > EPOCHS * BATCHES + 2
    assert len(set(rates)) == EPOCHS * BATCHES


def test_a_schedule_inside_of_optax_counts_repeats():
    import optax

    schedule, recorder, update, weights, state = begin(optax.adam(rate))
    for x, y in [batch for _ in range(EPOCHS) for batch in make_batches()]:
        while True:
            loss, weights, state = update(weights, state, x, y)
            if schedule.decide(loss) is Decision.ADVANCE:
                break
        if schedule.batches == BATCHES:
            schedule.end_epoch()
    counts = {int(part.count) for part in state if hasattr(part, "count")}
    assert counts == {len(recorder.visits)}
    assert len(recorder.visits) > EPOCHS * BATCHES


@pytest.mark.parametrize("transform", ["jit", "vmap"])
def test_a_tracer_of_jax_is_told_where_to_decide(transform):
    import jax

    schedule = BatchAttentionSchedule()

    def update(x):
        schedule.decide((x**2).sum())

    with pytest.raises(LossError, match=r"JAX tracer, .*float32\[\].* no value yet.* call decide on what it returns"):
        getattr(jax, transform)(update)(np.ones((2, 3), np.float32))
    assert schedule.batches == 0
    # The losses of samples, likewise.
    with pytest.raises(LossError, match="JAX tracer"):
        jax.jit(lambda x: as_floats(x))(np.ones(3, np.float32))


def test_a_loss_that_jax_differentiates_and_does_not_trace_has_its_value():
    import jax

    schedule = BatchAttentionSchedule()

    def loss_of(x):
        loss = (x**2).sum()
        schedule.decide(loss)
        return loss

    jax.grad(loss_of)(np.ones(3, np.float32))
    assert schedule.summary.mean_loss == 3.0
