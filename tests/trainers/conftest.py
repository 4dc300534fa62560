"""The trainers, each imported where a test first needs it, since that takes seconds."""

import os
from importlib import import_module

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")  # read as Keras is imported


@pytest.fixture
def lightning():
    return import_module("tests.trainers.by_lightning")


@pytest.fixture
def transformers():
    return import_module("tests.trainers.by_transformers")


@pytest.fixture
def accelerate():
    return import_module("tests.trainers.by_accelerate")


@pytest.fixture
def trainer(request):
    """The one that the test is parametrized with, indirectly."""
    return import_module(f"tests.trainers.by_{request.param}")
