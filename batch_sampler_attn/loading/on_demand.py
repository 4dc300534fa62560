"""Fetching one batch at once, beside a DataLoader's own batches, as its own are fetched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler


class OnDemandFetcher:
    """Fetches immediate repeats, collated and pinned as the loader's own batches are.

    Where the loader has workers, a worker fetches: a data set that opens its files lazily, or is set up by
    ``worker_init_fn``, must not be read in the process that trains, whose forked workers would share its files. It is
    one worker, started at the first repeat and kept, since starting one takes as long as many batches. Its random
    numbers follow from the seed of the loader's generator, or of torch's global one, without a draw from either, and
    are those of no other worker.

    Args:
        loader: Whose data set it fetches from.
        moment: Of the run, at which it begins to.

    Attributes:
        outlives_epoch: Whether the copy of the data set that it fetches from may grow old, as those of the loader's
            workers do.
    """

    def __init__(self, loader: DataLoader[Any], moment: tuple[int, ...]) -> None:
        # No reference to the loader is kept: it is to end, and its workers with it, when the user lets it go.
        self.outlives_epoch = loader.persistent_workers or not loader.num_workers
        self._request = _Request()
        seed = (loader.generator or torch.default_generator).initial_seed()
        # The very seed would give the worker the draws of the loader's first one. Texts are hashed alike in all runs.
        generator = torch.Generator().manual_seed(random.Random(f"repeats, {seed}, {moment}").getrandbits(63))
        self._repeats = DataLoader(
            loader.dataset,
            batch_sampler=self._request,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            # Making an iterator draws a seed; the user's generator is not ours to draw from.
            generator=generator,
            **(_one_worker_like(loader) if loader.num_workers else {}),
        )

    def fetch(self, indices: list[Any]) -> Any:
        """The batch of ``indices``."""
        self._request.indices = indices
        (batch,) = self._repeats
        return batch


def _one_worker_like(loader: DataLoader[Any]) -> dict[str, Any]:
    return {
        "num_workers": 1,
        "prefetch_factor": 1,
        "persistent_workers": True,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
    }


class _Request(Sampler[list[Any]]):
    """One batch for each iteration: the one that is wanted now."""

    def __init__(self) -> None:
        self.indices: list[Any] = []

    def __iter__(self) -> Iterator[list[Any]]:
        yield self.indices

    def __len__(self) -> int:
        return 1
