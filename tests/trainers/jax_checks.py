"""JAX: where to decide; run by test_keras.py."""

import numpy as np
import pytest

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import LossError
from batch_sampler_attn.losses import as_floats

jax = pytest.importorskip("jax")


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
