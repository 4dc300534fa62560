"""Random orders that are computed rather than stored. NumPy, if it is installed, changes only the time this takes."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import struct
from array import array
from collections.abc import Callable
from typing import Any

STRETCH = 1024  # positions that are computed together
_FEW = 1000  # elements; the rounds below mix fewer unevenly
_ALL_BITS = 2**64 - 1
_CHUNK = 2**18  # codes that are compared together


@functools.cache
def numpy_or_none() -> Any:
    """NumPy, imported on first use; None if it is not installed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def mapped(function: Callable[[Any], Any], row: array[int]) -> list[int]:
    """Apply a function of ints, which also takes NumPy arrays, to each number."""
    numpy = numpy_or_none()
    return [*map(function, row)] if numpy is None else function(numpy.frombuffer(row, row.typecode)).tolist()


def gathered(row: array[int], indices: list[int]) -> list[int]:
    """The numbers at these indices."""
    numpy = numpy_or_none()
    return [row[index] for index in indices] if numpy is None else numpy.frombuffer(row, row.typecode)[indices].tolist()


def scatter(row: array[int], indices: list[int], numbers: list[int]) -> None:
    """Write each number to its index; if an index occurs twice, the last number counts."""
    numpy = numpy_or_none()
    if numpy is not None:
        numpy.frombuffer(row, row.typecode)[indices] = numbers
        return
    for index, number in zip(indices, numbers, strict=True):
        row[index] = number


@functools.lru_cache(maxsize=4)
def stretch(size: int, text: str, number: int) -> tuple[list[int], list[int]]:
    """One stretch of a permutation of ``range(size)`` seeded by ``text``, and 32 random bits for each position.

    The permutation is a Feistel network over a square little larger than ``size``, with cycle walking (Black and
    Rogaway, 2002). It is the same on every platform.
    """
    key, *keys = struct.unpack("<9Q", hashlib.shake_128(text.encode()).digest(72))
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)

    def walk(position: Any) -> Any:
        row, column = divmod(position, columns)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            row = (row + _mixed(column, first)) % rows
            column = (column + _mixed(row, second)) % columns
        return row * columns + column

    positions = array("Q", range(number * STRETCH, min((number + 1) * STRETCH, size)))
    elements = mapped(walk, positions) if size > _FEW else random.Random(text).sample(range(size), size)
    for index, element in enumerate(elements):
        while element >= size:
            elements[index] = element = walk(element)
    return elements, mapped(lambda position: _mixed(position, key), positions)


def _mixed(number: Any, key: int) -> Any:
    """32 pseudorandom bits from an int, or from each element of a uint64 array."""
    # The multipliers of MurmurHash3's finalizer.
    number = (number ^ key) * 0xFF51AFD7ED558CCD & _ALL_BITS
    return ((number ^ number >> 32) * 0xC4CEB9FE1A85EC53 & _ALL_BITS) >> 32


def count_below(limit: int, codes: Any) -> int:
    """The number of a buffer's elements below ``limit``."""
    numpy = numpy_or_none()
    if numpy is None:
        return sum(map(limit.__gt__, codes))
    chunks = (numpy.asarray(codes[first : first + _CHUNK]) for first in range(0, len(codes), _CHUNK))
    return sum(int(numpy.count_nonzero(chunk < limit)) for chunk in chunks)
