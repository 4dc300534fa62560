"""Batch-attention in a training loop of plain NumPy: softmax regression on scikit-learn's 8x8 digits.

``attend`` takes any iterable of batches, and ``decide`` takes the loss as a number.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from batch_sampler_attn import BatchAttentionSchedule

EPOCHS = 10
BATCH_SIZE = 32
LEARNING_RATE = 0.5


def predict(weights: NDArray[np.float64], images: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = images @ weights[:-1] + weights[-1]
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def main() -> None:
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    train_images, test_images = images[:1400] / 16, images[1400:] / 16
    train_labels, test_labels = labels[:1400], labels[1400:]
    weights = np.zeros((65, 10))  # 64 pixels and the bias
    schedule = BatchAttentionSchedule(k=1.2, budget=0.2)

    for _ in range(EPOCHS):
        order = rng.permutation(len(train_images))
        batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]

        for batch in schedule.attend(batches):
            x, y = train_images[batch], train_labels[batch]
            probabilities = predict(weights, x)
            loss = -np.log(probabilities[np.arange(len(y)), y]).mean()

            errors = (probabilities - np.eye(10)[y]) / len(y)
            weights[:-1] -= LEARNING_RATE * x.T @ errors
            weights[-1] -= LEARNING_RATE * errors.sum(axis=0)

            schedule.decide(loss)

        print(schedule.last_summary)

    accuracy = np.mean(predict(weights, test_images).argmax(axis=1) == test_labels)
    print(f"test accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
