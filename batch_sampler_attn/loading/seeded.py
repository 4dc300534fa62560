"""Random augmentation that is the same in a resumed run, whichever process draws it."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from batch_sampler_attn.errors import OptionError, short_repr


class SeededDataset(Dataset[Any]):
    """A data set whose items are drawn alike for the same visit, and afresh for every other one.

    A DataLoader seeds its workers anew whenever they are started, so that a resumed run augments otherwise than the
    uninterrupted one. Here, what a batch draws follows from ``seed``, the epoch, the batch's position in it and the
    number of the visit alone: the same after a resume, with any number of workers, and for every process. Torch's,
    Python's and NumPy's global generators are set for the time in which a batch is fetched, and put back after it.
    What draws from generators of its own (as some augmentation libraries do) is not reached.

    It takes effect for the batches of a ``BatchAttentionSampler`` under ``attend``; any other is fetched as without it.

    Args:
        dataset: Of map style: with ``__getitem__``, or ``__getitems__``.
        seed: A whole number.

    Attributes:
        dataset: The same.
        seed: The same.

    Raises:
        OptionError: If an argument is something else.

    Example:
        >>> from torch.utils.data import DataLoader, SequentialSampler
        >>> from batch_sampler_attn import BatchAttentionSampler
        >>> class Noisy(Dataset):
        ...     def __getitem__(self, index):
        ...         return index + torch.rand(())
        >>> runs = []
        >>> for _ in range(2):
        ...     sampler = BatchAttentionSampler(SequentialSampler(range(4)), 2)
        ...     loader = DataLoader(SeededDataset(Noisy(), seed=7), batch_sampler=sampler)
        ...     batch = next(iter(sampler.schedule.attend(loader)))
        ...     runs.append(batch.tolist())
        >>> runs[0] == runs[1]
        True
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
        ):
            raise OptionError(f"dataset is {short_repr(dataset)}; it must be one whose items are fetched by index")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise OptionError(f"seed is {short_repr(seed)}; it must be a whole number")
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: list[Any]) -> Any:
        """The items of a batch, as a DataLoader asks for them."""
        # Which visit a batch is for comes with its indices: nothing else gets from the sampler to a worker.
        visit = getattr(indices, "visit", None)
        with contextlib.nullcontext() if visit is None else _drawing(f"{self.seed}, {visit}"):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]


@contextlib.contextmanager
def _drawing(words: str) -> Iterator[None]:
    """Let the global generators draw what follows from the words, and then go on as if nothing had been drawn."""
    # A text is hashed alike in all processes.
    source = random.Random(words)
    numpy = sys.modules.get("numpy")
    before = torch.default_generator.get_state(), random.getstate(), numpy and numpy.random.get_state()
    try:
        # Not torch.manual_seed(), which would seed every GPU, too.
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
