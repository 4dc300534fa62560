"""The trainers, each imported where a test first needs it, since that takes seconds."""

import gc
import os
import sys
from importlib import import_module

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")  # read as Keras is imported


def load(name):
    module = f"tests.trainers.by_{name}"
    if module not in sys.modules:
        import_module(module)
        gc.freeze()  # a Trainer collects garbage each time, which takes a second where there are so many modules
    return sys.modules[module]


@pytest.fixture
def lightning():
    return load("lightning")


@pytest.fixture
def transformers():
    return load("transformers")


@pytest.fixture
def accelerate():
    return load("accelerate")


@pytest.fixture
def trainer(request):
    """The one that the test is parametrized with, indirectly."""
    return load(request.param)
