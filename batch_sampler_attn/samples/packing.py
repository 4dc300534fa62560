"""Long rows of numbers as text: a list of a million numbers is slow to write and to read as JSON."""

from __future__ import annotations

import base64
import binascii
import sys
from array import array

from batch_sampler_attn.errors import StateError, shown

# What array calls them, to what they are called in messages.
KINDS = {"f": "single-precision numbers", "i": "whole numbers of 32 bits", "B": "whole numbers of 8 bits"}


def pack(numbers: array[float] | array[int]) -> str:
    """The numbers, little end first, in base64."""
    return base64.b64encode(_little_ended(numbers).tobytes()).decode()


def unpack(name: str, packed: object, kind: str, length: int | None = None) -> array[float] | array[int]:
    """The numbers that ``pack`` packed.

    Args:
        name: What they are, for messages.
        packed: From a saved state.
        kind: One of ``KINDS``.
        length: How many there are; None for any number of them.

    Raises:
        StateError: If they are anything else.
    """
    numbers: array[float] | array[int] = array(kind)
    try:
        numbers.frombytes(base64.b64decode(packed, validate=True) if isinstance(packed, str) else b"?")
    except (ValueError, binascii.Error):
        numbers = array(kind)
        length = -1
    if length is not None and len(numbers) != length:
        raise StateError(
            f"{name} is {shown(packed)} in the state; it must be {KINDS[kind]} in base64, as many as there were"
        )
    return _little_ended(numbers)


def _little_ended(numbers: array[float] | array[int]) -> array[float] | array[int]:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers
