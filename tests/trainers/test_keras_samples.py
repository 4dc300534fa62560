"""Attention to samples in Keras, on each backend in a process of its own, since Keras chooses one as it is imported."""

from importlib.util import find_spec

import pytest

from tests.trainers.test_keras import BACKENDS, run_tests

# Importing it would choose a backend, in this process.
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras")


@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_samples_is_the_loop_by_hand_or_refuses_with_words(backend, tmp_path):
    run_tests(backend, tmp_path, modules=["keras_samples"])
