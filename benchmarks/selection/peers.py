"""The code of others: Composer's Selective Backprop and InfoBatch, which the benchmarks do not install."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from benchmarks.errors import PlanError
from benchmarks.selection.choices import Batch, Batches, Counts, Rule

# InfoBatch's default ``delta``: after this share of training, every pass is whole.
PRUNING_SHARE = 0.875
# The package of each arm that calls one.
PEERS = {"selective_backprop_composer": "mosaicml", "infobatch": "infobatch"}
_MODULES = {"selective_backprop_composer": "composer.algorithms.selective_backprop", "infobatch": "infobatch"}


def composers_rule(seed: int) -> Rule:
    """Composer's own functions with their defaults, by which every other update is a plain one."""
    composer, numbers = load("selective_backprop_composer"), iter(range(2**32))

    def selects(update: int, updates: int) -> bool:
        return bool(composer.should_selective_backprop(update / updates, update))

    def keep(losses: Tensor) -> Tensor:
        places = torch.arange(len(losses))
        with _seeded([seed, 7, next(numbers)]):
            # It is given the losses as if its own forward pass had computed them.
            kept, _ = composer.select_using_loss(places, places, losses.__getitem__, lambda output, *_, **__: output)
        return torch.as_tensor(kept)

    return selects, keep


def infobatch(samples: int, batch_size: int, updates: int, seed: int, counts: Counts) -> Batches:
    """Passes over the training data, pruned by InfoBatch with its defaults; a batch may join two passes.

    InfoBatch ends its pruning by the number of the epoch. Here training is so many updates long, and their number ends
    it; InfoBatch's sampler, which counts the epochs, is not used.
    """
    # It uses the length of the data alone, and of the epochs what is replaced here.
    pruning = load("infobatch").InfoBatch(range(samples), num_epochs=updates)
    rest, weights, passes = torch.empty(0, dtype=torch.int64), torch.empty(0), 0
    for update in range(updates):
        while len(rest) < batch_size:
            with _seeded([seed, 11, passes]):
                if update / updates < PRUNING_SHARE:
                    order = torch.tensor(pruning.prune())
                else:
                    pruning.reset_weights()
                    order = torch.tensor(pruning.no_prune())
            passes += 1
            counts.doses = {"pruned": [int(pruning.get_pruned_count())]}
            rest, weights = torch.cat([rest, order]), torch.cat([weights, pruning.weights[order]])
        indices, rest = rest.tensor_split([batch_size])
        of_batch, weights = weights.tensor_split([batch_size])
        losses = yield Batch(indices, update, update / updates, of_batch)
        pruning.set_active_indices(indices)
        # It multiplies what it is given in place.
        pruning.update(losses.clone())


def load(arm: str) -> Any:
    """The module of a peer, without what InfoBatch's import does to every DataLoader.

    Raises:
        PlanError: If it cannot be imported.
    """
    before = _BaseDataLoaderIter.__next__
    try:
        return importlib.import_module(_MODULES[arm])
    except ImportError as error:
        raise PlanError(
            f"{arm} needs {PEERS[arm]}, which cannot be imported ({error}); leave the arm out, or install it: mosaicml "
            "with pip (--no-deps, and what it misses, if it asks for another torch), infobatch from a checkout of "
            "github.com/NUS-HPC-AI-Lab/InfoBatch"
        ) from error
    finally:
        _BaseDataLoaderIter.__next__ = before  # type: ignore[method-assign]


@contextmanager
def _seeded(seed: list[int]) -> Iterator[None]:
    """Peers draw from NumPy's global generator: it is seeded for a run to be repeatable, and restored."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
