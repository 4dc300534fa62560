"""Gradient accumulation: the batches of one update, and their mean loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from batch_sampler_attn.errors import OptionError, ProtocolError, short_repr
from batch_sampler_attn.losses import as_float, detached
from batch_sampler_attn.options import positive_int, sample_weight

Batch = TypeVar("Batch")

_PACKAGE = __name__.partition(".")[0]


class AccumulatedLoader(Iterable[list[Batch]], Generic[Batch]):
    """A loader of lists of batches, made by ``accumulate``. All other attributes are the inner loader's.

    Attributes:
        loader: Yields the batches.
        size: Batches in a list.
    """

    def __init__(self, loader: Iterable[Batch], size: int) -> None:
        self.loader = loader
        self.size = size

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self.loader)
        while window := list(islice(batches, self.size)):
            yield window

    def __len__(self) -> int:
        return -(-len(self.loader) // self.size)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # copy and pickle look names up before __init__ has run, and special methods are not the loader's.
        if name in ("loader", "size") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.loader, name)


def accumulate(loader: Iterable[Batch], size: int) -> AccumulatedLoader[Batch]:
    """Group a loader's batches into lists of ``size``, one list for each update; the last list may be shorter.

    ``schedule.attend(accumulate(loader, 4))`` repeats whole lists. Pass ``decide`` the mean of an ``AccumulatedLoss``.

    Raises:
        OptionError: If ``size`` is not an integer of at least 1.
        ProtocolError: If the loader is already attended, or has a sampler of this package.

    Example:
        >>> list(accumulate("abcde", 2)), len(accumulate("abcde", 2))
        ([['a', 'b'], ['c', 'd'], ['e']], 3)
    """
    refuse_own_loader(loader, "lists of its batches are repeated as wholes")
    return AccumulatedLoader(loader, positive_int("size", size, "the batches of one update"))


def refuse_own_loader(loader: object, instead: str) -> None:
    """Refuse a loader of this package or with one of its samplers; ``instead`` says what repeats batches here."""
    parts = [loader]
    for part in parts:
        for cls in type(part).__mro__:
            if cls.__module__.partition(".")[0] == _PACKAGE:
                raise ProtocolError(
                    f"the loader is or holds {cls.__name__} of batch_sampler_attn, which repeats by itself. Give a "
                    f"plain DataLoader(dataset, batch_size=..., shuffle=...): {instead}"
                )
        # Samplers hold samplers, but not endlessly, as a mock may.
        inner = (getattr(part, name, None) for name in ("batch_sampler", "sampler"))
        parts.extend(part for part in inner if part is not None and len(parts) < 10)


class AccumulatedLoss:
    """The mean loss over the samples of an update, from the mean losses of its batches.

    Losses on a device stay there until ``decide`` reads the mean. Sums are in double precision, in order.

    Example:
        >>> loss = AccumulatedLoss()
        >>> loss.add(1.0, samples=32)
        >>> loss.add(2.5, samples=16)
        >>> loss.mean, loss.samples
        (1.5, 48.0)
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Any, object]] = []

    def __len__(self) -> int:
        """Number of losses added."""
        return len(self._parts)

    def add(self, loss: object, samples: object = 1) -> None:
        """Add the loss of one batch.

        Args:
            loss: Mean loss over the batch's samples, neither scaled nor divided by the number of batches.
            samples: Number of samples in that mean, or the sum of their weights. With 0, the loss has no effect.
        """
        self._parts.append((detached(loss), samples))

    @property
    def samples(self) -> float:
        """Number of samples in all batches. Reading it waits for counts on a device."""
        return sum(sample_weight("samples", samples) for _, samples in self._parts)

    @property
    def mean(self) -> Any:
        """Mean loss over all samples, to be passed to ``schedule.decide``; NaN if no batch has a sample.

        Raises:
            OptionError: If a batch's ``samples`` is not a finite number of at least 0.
            ProtocolError: If no loss was added.
        """
        if not self._parts:
            raise ProtocolError("no loss was added to this window; call add(loss, samples) for each batch")
        if len(self._parts) == 1:
            # Unchanged: multiplying and dividing it by the samples might round it.
            return self._parts[0][0]
        total, all_samples = 0.0, 0.0
        for loss, samples in self._parts:
            # A batch without samples may have a loss of NaN.
            if number := sample_weight("samples", samples):
                total += _in_double(loss) * number
                all_samples += number
        return total / all_samples if all_samples else math.nan


def samples_in(batch: object) -> int:
    """Number of samples in a batch, taken as the length of its first array; ``OptionError`` if it has none."""
    length = _first_length(batch)
    if length is None:
        raise OptionError(
            f"the batch {short_repr(batch)} holds no array to count its samples by. Give samples=lambda batch: ..."
        )
    return length


def _first_length(value: object) -> int | None:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    if isinstance(value, Mapping):
        parts: Iterable[object] = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        return None
    return next((length for part in parts if (length := _first_length(part)) is not None), None)


def _in_double(loss: Any) -> Any:
    """The loss as a double, on its device if the device has doubles."""
    try:
        return loss.double()
    except (AttributeError, TypeError):  # JAX's arrays have no such method, and Apple's devices no doubles
        return as_float(loss)
