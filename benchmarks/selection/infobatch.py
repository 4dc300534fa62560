"""InfoBatch (Qin et al., 2024) by its authors' own code: which samples a pass leaves out, and what the others weigh."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from benchmarks.errors import PlanError
from benchmarks.selection.choices import Choice

INFOBATCH_PACKAGE = "infobatch"
# The default of its ``delta``: after this share of training, every pass is whole.
PRUNING_SHARE = 0.875


class InfoBatch:
    """An arm: passes over the training set, pruned by InfoBatch with its defaults.

    InfoBatch ends its pruning by the number of the epoch. Here training is so many updates long, and so it is ended by
    their number; InfoBatch's sampler, which counts the epochs, is not used.

    Args:
        samples: In the training set.
        batch_size: Samples in a batch; one that a pass does not fill is filled up from the next.
        updates: Of the whole training.
        seed: Of the order and of what is left out.

    Raises:
        PlanError: If InfoBatch cannot be imported.
    """

    def __init__(self, samples: int, batch_size: int, updates: int, seed: int) -> None:
        self.extra_updates = self.left_out = 0
        # Of the set it uses the length alone, and of the epochs what is replaced here.
        self._pruning = load_infobatch().InfoBatch(range(samples), num_epochs=updates)
        self._batch_size = batch_size
        self._updates = updates
        self._seed = seed
        self._passes = 0
        # What is left of the passes that have begun.
        self._indices, self._weights = torch.empty(0, dtype=torch.int64), torch.empty(0)
        self._batch = self._indices

    def choose(self, update: int) -> Choice:
        """The next batch of the pass, with its weights."""
        while len(self._indices) < self._batch_size:
            indices = self._begin_pass(update / self._updates < PRUNING_SHARE)
            self._indices = torch.cat([self._indices, indices])
            self._weights = torch.cat([self._weights, self._pruning.weights[indices]])
        self._batch, self._indices = self._indices.tensor_split([self._batch_size])
        weights, self._weights = self._weights.tensor_split([self._batch_size])
        return Choice(self._batch, update, weights)

    def _begin_pass(self, prunes: bool) -> Tensor:
        # InfoBatch draws from NumPy's global generator: seeded for the run to be repeatable, and left as it was.
        before = np.random.get_state()  # noqa: NPY002
        try:
            np.random.seed([self._seed, 11, self._passes])  # noqa: NPY002
            if prunes:
                indices = self._pruning.prune()
            else:
                self._pruning.reset_weights()
                indices = self._pruning.no_prune()
        finally:
            np.random.set_state(before)  # noqa: NPY002
        self.left_out = int(self._pruning.get_pruned_count())
        self._passes += 1
        return torch.tensor(indices)

    def keep(self, losses: Tensor) -> Tensor:
        """All of them."""
        return torch.arange(len(losses))

    def report(self, losses: Tensor) -> None:
        """Told to InfoBatch, without the weights."""
        self._pruning.set_active_indices(self._batch)
        # It multiplies what it is given in place.
        self._pruning.update(losses.clone())


def load_infobatch() -> Any:
    """InfoBatch's module, without what its import does to every DataLoader.

    Raises:
        PlanError: If it cannot be imported.
    """
    before = _BaseDataLoaderIter.__next__
    try:
        return importlib.import_module(INFOBATCH_PACKAGE)
    except ImportError as error:
        raise PlanError(
            f"{INFOBATCH_PACKAGE} cannot be imported ({error}); install it from a checkout of its repository, or leave "
            "the arm out"
        ) from error
    finally:
        _BaseDataLoaderIter.__next__ = before  # type: ignore[method-assign]
