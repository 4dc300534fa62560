"""Fetching one batch at once, next to a DataLoader's own batches, the way its own are fetched."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.utils.data import DataLoader


class OnDemandFetcher:
    """Fetches immediate repeats, from ``moment`` of the run on, collated and pinned as the loader's own batches are.

    Where the loader has workers, a worker fetches: a dataset that opens its files lazily, or that ``worker_init_fn``
    sets up, must not be read in the process that trains, whose forked workers would share its files. It is one worker,
    started at the first repeat and kept, since starting one takes as long as many batches.
    """

    def __init__(self, loader: DataLoader[Any], moment: tuple[int, ...]) -> None:
        # No reference to the loader is kept: it is to end, and its workers with it, when the user drops it.
        # Whether the dataset that it fetches from may grow old, as those of the loader's workers may.
        self.outlives_epoch = loader.persistent_workers or not loader.num_workers
        self._batches: list[list[Any]] = []
        seed = (loader.generator or torch.default_generator).initial_seed()
        # The very seed would give the worker the draws of the loader's first one. Texts are hashed alike in all runs.
        own_seed = random.Random(f"repeats, {seed}, {moment}").getrandbits(63)
        workers: dict[str, Any] = {
            "num_workers": 1,
            "prefetch_factor": 1,
            "persistent_workers": True,
            "timeout": loader.timeout,
            "worker_init_fn": loader.worker_init_fn,
            "multiprocessing_context": loader.multiprocessing_context,
        }
        self._repeats = DataLoader(
            loader.dataset,
            batch_sampler=self._batches,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            # Making an iterator draws a seed; the user's generator is not ours to draw from.
            generator=torch.Generator().manual_seed(own_seed),
            **(workers if loader.num_workers else {}),
        )

    def fetch(self, indices: list[Any]) -> Any:
        """The batch of ``indices``."""
        self._batches[:] = [indices]
        (batch,) = self._repeats
        return batch


def yields_what_it_fetches(loader: object) -> bool:
    """Whether batches come out of it as its dataset and ``collate_fn`` make them."""
    if not isinstance(loader, DataLoader):
        return False
    overriding = type(loader).__iter__
    return overriding is DataLoader.__iter__ or overriding.__module__.partition(".")[0] == "torchdata"
