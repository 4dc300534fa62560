"""Fetching single batches on demand, in the way in which a DataLoader fetches its own."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.utils.data import DataLoader


class OnDemandFetcher:
    """Fetches immediate repeats, collated and pinned like the loader's own batches; ``moment`` enters its seed.

    If the loader has workers, one more worker fetches them. In the training process, a dataset that opens its files
    lazily would share them with forked workers, and ``worker_init_fn`` would not have set it up. The worker is started
    at the first repeat and kept, since starting one takes as long as many batches.
    """

    def __init__(self, loader: DataLoader[Any], moment: tuple[int, ...]) -> None:
        # No reference to the loader is kept: when the user drops it, it must end, and its workers with it.
        # Whether to keep the dataset over several epochs, as the loader's workers do.
        self.outlives_epoch = loader.persistent_workers or not loader.num_workers
        self._batches: list[list[Any]] = []
        seed = (loader.generator or torch.default_generator).initial_seed()
        # The loader's seed would give this worker the draws of its first. A string seeds the same in all processes.
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
    """Whether the loader yields batches exactly as its dataset and ``collate_fn`` make them."""
    if not isinstance(loader, DataLoader):
        return False
    overriding = type(loader).__iter__
    return overriding is DataLoader.__iter__ or overriding.__module__.partition(".")[0] == "torchdata"
