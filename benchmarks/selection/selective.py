"""Selective Backprop (Jiang et al., 2019): when it selects, and which half of the samples it keeps."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.errors import PlanError

# Composer's defaults: half of the samples are kept, between these shares of training.
KEPT_SHARE = 0.5
SELECTING = (0.5, 0.9)
COMPOSER_PACKAGE = "mosaicml"


class Rule(Protocol):
    """Says when to select, and what to keep."""

    def selects(self, update: int, updates: int) -> bool:
        """Whether the update, from 0, of so many is one of selected samples."""

    def keep(self, losses: Tensor) -> Tensor:
        """(kept,): places in ``losses``, which is (candidates,)."""


class OurReading:
    """Selects at every update of its share of training, which is Composer's rule with ``interrupt=0``.

    A sample's chance goes with the percentile of its loss, to the power of 1 over the kept share, less 1.

    Args:
        seed: Of the chances.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 7])

    def selects(self, update: int, updates: int) -> bool:
        """Between the two shares of training."""
        return SELECTING[0] <= update / updates < SELECTING[1]

    def keep(self, losses: Tensor) -> Tensor:
        """Half of them, by chance."""
        samples = len(losses)
        percentiles = (np.arange(samples) + 0.5) / samples
        chances = percentiles ** (1 / KEPT_SHARE - 1)
        places = self._rng.choice(samples, int(samples * KEPT_SHARE), replace=False, p=chances / chances.sum())
        return losses.argsort()[torch.from_numpy(places)]


class Composers:
    """Composer's own functions with their defaults, by which every other update is a plain one.

    Args:
        seed: Of the chances.

    Raises:
        PlanError: If Composer cannot be imported.
    """

    def __init__(self, seed: int) -> None:
        self._composer = load_composer()
        self._seed = seed
        self._draws = 0

    def selects(self, update: int, updates: int) -> bool:
        """As Composer decides."""
        return bool(self._composer.should_selective_backprop(update / updates, update))

    def keep(self, losses: Tensor) -> Tensor:
        """As Composer selects; it is handed the losses as if they were computed by its own forward pass."""

        def loss_as_computed(output: Tensor, target: Tensor, reduction: str) -> Tensor:
            del target, reduction
            return output

        places = torch.arange(len(losses))
        # Composer draws from NumPy's global generator: seeded for the run to be repeatable, and left as it was.
        before = np.random.get_state()  # noqa: NPY002
        try:
            np.random.seed([self._seed, 7, self._draws])  # noqa: NPY002
            kept, _ = self._composer.select_using_loss(places, places, lambda at: losses[at], loss_as_computed)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        self._draws += 1
        return torch.as_tensor(kept)


def load_composer() -> Any:
    """Composer's module of Selective Backprop.

    Raises:
        PlanError: If it cannot be imported.
    """
    try:
        module = importlib.import_module("composer.algorithms.selective_backprop")
    except ImportError as error:
        raise PlanError(
            f"selective_backprop_composer needs Composer, which cannot be imported ({error}); pip install "
            f"{COMPOSER_PACKAGE} (with --no-deps, and what it misses, if it asks for another torch), or leave the "
            "arm out"
        ) from error
    return module
