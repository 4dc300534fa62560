"""Keras's fit with repeats, beside a loop by hand on the same backend: the same visits, losses and weights.

Run by test_keras.py, in a process for each backend.
"""

import numpy as np
import pytest

from tests.trainers.keras_runs import BATCHES, CASES, EPOCHS, by_hand, by_keras

# Each value of a case with each other's at least once; functions that XLA compiles take seconds.
QUICK = ("fancy", "bfloat16", "sample weights", "stream")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_a_run_is_that_of_the_loop_by_hand(name):
    run, expected = by_keras(CASES[name]), by_hand(CASES[name])
    for what in ("visits", "threshold", "epochs"):
        assert run[what] == expected[what], what
    assert np.array_equal(run["weights"], expected["weights"])
    repeats = sum(repeats for repeats, _ in expected["epochs"])
    assert run["repeats"] == repeats > 2
    assert run["iterations"] == EPOCHS * BATCHES + repeats
    assert run["history"]["batch_attention_repeats"] == [repeats for repeats, _ in expected["epochs"]]
