"""Batch-attention with JAX and optax: the update is jitted, and the decision is made outside.

The learning-rate schedule counts base batches: ``optax.inject_hyperparams`` makes the rate part of the optimizer's
state, and the loop sets it once per batch. A schedule inside the optimizer would count repeats too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from batch_sampler_attn import BatchAttentionSchedule, Decision

EPOCHS = 10
BATCH_SIZE = 32

Weights = list[tuple[jax.Array, jax.Array]]


def make_weights(sizes: tuple[int, ...]) -> Weights:
    keys = jax.random.split(jax.random.key(0), len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(key, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n)) for key, m, n in shapes]


def predict(weights: Weights, x: jax.Array) -> jax.Array:
    *hidden, (kernel, bias) = weights
    for inner_kernel, inner_bias in hidden:
        x = jax.nn.relu(x @ inner_kernel + inner_bias)
    return x @ kernel + bias


def loss_of(weights: Weights, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(predict(weights, x), y))


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    train_images, test_images = images[:1400] / 16, images[1400:] / 16
    train_labels, test_labels = labels[:1400], labels[1400:]
    batches_per_epoch = -(-len(train_images) // BATCH_SIZE)

    # It ends above zero: updates too small to lower a batch's loss would repeat it to no effect.
    rate = optax.cosine_decay_schedule(3e-3, EPOCHS * batches_per_epoch, alpha=0.1)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=rate(0))
    weights = make_weights((64, 64, 10))
    state = optimizer.init(weights)
    schedule = BatchAttentionSchedule(k=1.2, budget=0.2)

    @jax.jit
    def update(
        weights: Weights, state: optax.OptState, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, Weights, optax.OptState]:
        loss, gradients = jax.value_and_grad(loss_of)(weights, x, y)
        updates, state = optimizer.update(gradients, state)
        return loss, optax.apply_updates(weights, updates), state

    rng = np.random.default_rng(0)
    step = 0  # of base batches
    for _ in range(EPOCHS):
        order = rng.permutation(len(train_images))
        batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]

        for batch in schedule.attend(batches):
            loss, weights, state = update(weights, state, train_images[batch], train_labels[batch])
            # Not inside update: a jitted function has a tracer in place of a loss.
            if schedule.decide(loss) is Decision.ADVANCE:
                step += 1
                state.hyperparams["learning_rate"] = rate(step)

        print(schedule.last_summary)

    accuracy = np.mean(predict(weights, test_images).argmax(axis=1) == test_labels)
    print(f"test accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
