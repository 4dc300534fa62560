"""Orders that are computed, not stored; with NumPy where it is installed, which changes nothing but the time."""

from __future__ import annotations

import functools
import hashlib
import math
import random
import struct
from array import array
from collections.abc import Callable
from typing import Any

STRETCH = 1024  # positions, which are computed together
_FEW = 1000  # elements; rounds mix so few of them unevenly
_ALL_BITS = 2**64 - 1
_CHUNK = 2**18  # codes, which are compared together


@functools.cache
def numpy_or_none() -> Any:
    """NumPy, imported no sooner than it is needed."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def mapped(function: Callable[[Any], Any], row: array[int]) -> list[int]:
    """A function of ints, and so of arrays of NumPy, applied to each number."""
    numpy = numpy_or_none()
    return [*map(function, row)] if numpy is None else function(numpy.frombuffer(row, row.typecode)).tolist()


def gathered(row: array[int], places: list[int]) -> list[int]:
    """The numbers at these places."""
    numpy = numpy_or_none()
    return [row[place] for place in places] if numpy is None else numpy.frombuffer(row, row.typecode)[places].tolist()


def scatter(row: array[int], places: list[int], numbers: list[int]) -> None:
    """Put each number at its place; where a place is given twice, the last counts."""
    numpy = numpy_or_none()
    if numpy is not None:
        numpy.frombuffer(row, row.typecode)[places] = numbers
        return
    for place, number in zip(places, numbers, strict=True):
        row[place] = number


@functools.lru_cache(maxsize=4)
def stretch(size: int, text: str, number: int) -> tuple[list[int], list[int]]:
    """The elements of ``range(size)`` at a stretch of positions, in an order that ``text`` seeds; and 32 bits for each.

    The order is a Feistel network over a square little larger than ``size``, with cycle walking (Black and Rogaway,
    2002). It is the same on every platform.
    """
    key, *keys = struct.unpack("<9Q", hashlib.shake_128(text.encode()).digest(72))
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)

    def walk(place: Any) -> Any:
        row, column = divmod(place, columns)
        for first, second in zip(keys[::2], keys[1::2], strict=True):
            row = (row + _mixed(column, first)) % rows
            column = (column + _mixed(row, second)) % columns
        return row * columns + column

    places = array("Q", range(number * STRETCH, min((number + 1) * STRETCH, size)))
    elements = mapped(walk, places) if size > _FEW else random.Random(text).sample(range(size), size)
    for place, element in enumerate(elements):
        while element >= size:
            elements[place] = element = walk(element)
    return elements, mapped(lambda place: _mixed(place, key), places)


def _mixed(number: Any, key: int) -> Any:
    """32 bits that look random; of an int, or of each in an array of uint64."""
    # The multipliers of MurmurHash3's finalizer.
    number = (number ^ key) * 0xFF51AFD7ED558CCD & _ALL_BITS
    return ((number ^ number >> 32) * 0xC4CEB9FE1A85EC53 & _ALL_BITS) >> 32


def count_below(limit: int, codes: Any) -> int:
    """How many of a buffer's numbers are below ``limit``."""
    numpy = numpy_or_none()
    if numpy is None:
        return sum(map(limit.__gt__, codes))
    chunks = (numpy.asarray(codes[first : first + _CHUNK]) for first in range(0, len(codes), _CHUNK))
    return sum(int(numpy.count_nonzero(chunk < limit)) for chunk in chunks)
