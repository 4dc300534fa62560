"""Random augmentation that is the same after a resume, in any process and with any number of workers."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, get_worker_info

from batch_sampler_attn.errors import warn

_WAY_OUT = (
    "It must be the dataset of the DataLoader itself, around all others, as in "
    "DataLoader(SeededDataset(Subset(dataset, indices)), batch_sampler=sampler), under schedule.attend(loader)"
)


class SeededDataset(Dataset[Any]):
    """Wraps a dataset so that a visit draws the same random numbers whenever it is made, also after a resume.

    A DataLoader seeds its workers whenever it starts them, so a resumed run would augment differently. Here, the draws
    of a batch depend only on ``seed``, the epoch, the batch's position in it, and the number of the visit. The global
    generators of PyTorch, Python and NumPy are seeded while a batch is fetched, and restored; others are unaffected.

    It works only in an attended DataLoader with a ``BatchAttentionSampler`` or ``SampleAttention``. Inside another
    dataset, such as a ``Subset``, it has no effect and warns: put it around all others.

    Args:
        dataset: A map-style dataset, with ``__getitem__`` or ``__getitems__``.
        seed: An integer.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        with self._draws_of(index):
            return self.dataset[index]

    def __getitems__(self, indices: list[Any]) -> Any:
        """The items of a batch, as a DataLoader requests them."""
        with self._draws_of(indices):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]

    def _draws_of(self, indices: Any) -> contextlib.AbstractContextManager[None]:
        # The list of indices carries the visit: nothing else reaches a worker from the sampler.
        visit = getattr(indices, "visit", None)
        if visit is not None:
            return _drawing(f"{self.seed}, {visit}")
        if get_worker_info() is not None:
            # The training process draws from its global generators, which users save with their checkpoints.
            warn(f"a SeededDataset has no effect on the batches of a worker. {_WAY_OUT}")
        return contextlib.nullcontext()


def warn_if_inside(dataset: object) -> None:
    """Warn if a ``SeededDataset`` is anywhere inside ``dataset``, by its attributes and collections in them."""
    waiting = [] if isinstance(dataset, SeededDataset) else [dataset]
    # A dataset may refer to itself.
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, SeededDataset):
            warn(f"the SeededDataset inside a {type(dataset).__name__} has no effect. {_WAY_OUT}")
            return
        attributes = {} if id(part) in seen else getattr(part, "__dict__", {})
        seen.add(id(part))
        for value in attributes.values():
            values = value.values() if isinstance(value, dict) else value
            values = values if isinstance(value, (dict, list, tuple)) else (value,)
            # The first item shows the kind of all: a collection of samples may be long.
            first = next(iter(values), None)
            if hasattr(first, "__getitem__") and hasattr(first, "__dict__") and not hasattr(first, "__array__"):
                waiting += values


@contextlib.contextmanager
def _drawing(words: str) -> Iterator[None]:
    """Seed the global generators with a string, and restore them afterwards."""
    # A string gives the same seed in all processes.
    source = random.Random(words)
    numpy = sys.modules.get("numpy")
    before = torch.default_generator.get_state(), random.getstate(), numpy and numpy.random.get_state()
    try:
        # torch.manual_seed() would seed the GPUs as well.
        torch.default_generator.manual_seed(source.getrandbits(63))
        random.seed(source.getrandbits(64))
        if numpy:
            numpy.random.seed(source.getrandbits(32))
        yield
    finally:
        torch.default_generator.set_state(before[0])
        random.setstate(before[1])
        if numpy:
            numpy.random.set_state(before[2])
