"""Batch-attention with scikit-learn's ``partial_fit``, in a loop that ends its epochs itself.

This loop does without ``attend``: it calls ``decide``, and repeats while the decision is REPEAT. Use this form if other
code iterates over the data.
"""

import math
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

from batch_sampler_attn import BatchAttentionSchedule, Decision

EPOCHS = 6
BATCH_SIZE = 32
CLASSES = np.arange(10)


def train_on(model: Any, x: Any, y: Any) -> float:
    """Train on one batch, and return its loss before the update."""
    if hasattr(model, "coef_"):
        loss = float(log_loss(y, model.predict_proba(x), labels=CLASSES))
    else:
        # An unfitted model cannot predict. With its zero weights, all classes are equally likely.
        loss = math.log(len(CLASSES))
    model.partial_fit(x, y, classes=CLASSES)
    return loss


def main() -> None:
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    train_images, test_images = images[:1400] / 16, images[1400:] / 16
    train_labels, test_labels = labels[:1400], labels[1400:]
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=0)
    schedule = BatchAttentionSchedule(k=1.2, budget=0.2)

    for _ in range(EPOCHS):
        order = rng.permutation(len(train_images))
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            while schedule.decide(train_on(model, train_images[batch], train_labels[batch])) is Decision.REPEAT:
                pass

        print(schedule.end_epoch())

    print(f"test accuracy: {model.score(test_images, test_labels):.3f}")


if __name__ == "__main__":
    main()
