"""Keras chooses a backend as it is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
