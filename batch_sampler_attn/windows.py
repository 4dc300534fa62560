"""Windows of batches, which one update is made from: gradient accumulation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from batch_sampler_attn.attended import AttendedLoader
from batch_sampler_attn.errors import OptionError, ProtocolError, shown
from batch_sampler_attn.losses import as_float, held
from batch_sampler_attn.option_values import count, weight

Batch = TypeVar("Batch")

_HINT = "the batches that one update is made from"


class Windows(Iterable[list[Batch]], Generic[Batch]):
    """What ``windows`` returns; all attributes but its length are the loader's."""

    def __init__(self, loader: Iterable[Batch], size: int) -> None:
        self._loader = loader
        self._size = size

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self._loader)
        while window := list(islice(batches, self._size)):
            yield window

    def __len__(self) -> int:
        return -(-len(self._loader) // self._size)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look attributes up before __init__ has run, and special methods are not the loader's.
        if name in ("_loader", "_size") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def windows(loader: Iterable[Batch], size: int) -> Windows[Batch]:
    """The batches of a loader in lists of ``size``, the last of which may be shorter.

    With gradient accumulation one update is made from several batches, and what is decided on, and repeated, is all of
    them together: ``schedule.attend(windows(loader, 4))``. The loss to decide on is a ``WindowLoss``'s mean.

    Args:
        loader: A DataLoader or other iterable of batches; each iteration goes through it anew.
        size: Batches in a window, at least 1.

    Returns:
        An iterable of lists of batches, with a length where the loader has one.

    Raises:
        OptionError: If ``size`` is not a whole number of at least 1.
        ProtocolError: If the loader is attended already, or its batches are a sampler's of this package, which decides
            on each batch by itself.

    Example:
        >>> list(windows("abcde", 2)), len(windows("abcde", 2))
        ([['a', 'b'], ['c', 'd'], ['e']], 3)
    """
    size = count("size", size, _HINT)
    if isinstance(loader, AttendedLoader):
        raise ProtocolError(
            "windows() was given what attend() returned, which may repeat each batch by itself; attend to the windows "
            "instead: schedule.attend(windows(loader, size))"
        )
    if hasattr(getattr(loader, "batch_sampler", None), "schedule"):
        raise ProtocolError(
            "windows() was given a loader with a BatchAttentionSampler, which repeats each batch by itself. Make the "
            "DataLoader with batch_size= and shuffle= or with torch's BatchSampler, and the schedule attend to its "
            "windows: schedule.attend(windows(loader, size))"
        )
    return Windows(loader, size)


class WindowLoss:
    """The mean loss over the samples of a window, from the mean losses of its batches.

    Losses on a device stay there, and nothing waits for them. Sums are made in double precision, in the order in which
    losses come. The loss of a single batch is left exactly as it is.

    Example:
        >>> loss = WindowLoss()
        >>> loss.add(1.0, samples=32)
        >>> loss.add(2.5, samples=16)
        >>> loss.mean, loss.samples
        (1.5, 48.0)
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Any, object]] = []

    def __len__(self) -> int:
        """How many losses were added."""
        return len(self._parts)

    def add(self, loss: object, samples: object = 1) -> None:
        """One batch of the window.

        Args:
            loss: The mean over its samples, as ``schedule.decide`` takes it: not scaled, and not divided by the
                number of batches.
            samples: How many these are, or the sum of their weights; at least 0. With 0, the loss has no effect.

        Raises:
            LossError: If the loss is not one real number, as far as that can be told without waiting.
        """
        self._parts.append((held(loss), samples))

    @property
    def samples(self) -> float:
        """Of all batches. Where it was given on a device, this waits for it.

        Raises:
            OptionError: If a batch's is not a finite number of at least 0.
        """
        return sum(weight("samples", samples) for _, samples in self._parts)

    @property
    def mean(self) -> Any:
        """Of all batches, by samples, as ``schedule.decide`` takes it; NaN if no batch has a sample.

        Raises:
            OptionError: If a batch's samples are not a finite number of at least 0.
            ProtocolError: If no loss was added.
        """
        if not self._parts:
            raise ProtocolError("no loss was added to this window; call add(loss, samples) for each of its batches")
        if len(self._parts) == 1:
            # Not by way of a product, which might round it.
            return self._parts[0][0]
        weighed = [(_in_double(loss), weight("samples", samples)) for loss, samples in self._parts]
        weighed = [(loss, samples) for loss, samples in weighed if samples]
        if not weighed:
            return math.nan
        total: Any = 0.0
        samples_in_all = 0.0
        for loss, samples in weighed:
            total = total + loss * samples
            samples_in_all += samples
        return total / samples_in_all


def samples_in(batch: object) -> int:
    """How many samples a batch has: the length of the first array or tensor in it, in the order of its containers.

    Args:
        batch: An array, or mappings, sequences and data classes of arrays, whose first dimension is that of samples.

    Raises:
        OptionError: If there is no array of at least one dimension in it.
    """
    length = _first_length(batch)
    if length is None:
        raise OptionError(
            f"cannot tell how many samples are in a batch of type {type(batch).__name__} ({shown(batch)}), which holds "
            "no array of at least one dimension. Say how to count them, with samples=lambda batch: ..."
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
    """As a double, on its device where that is possible."""
    if isinstance(loss, float):
        return loss
    double = getattr(loss, "double", None)
    if callable(double):
        try:
            return double()
        except TypeError:  # Apple's devices have no doubles
            pass
    return as_float(loss)
