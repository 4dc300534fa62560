"""Dataset indices as they can be saved and recorded."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

from batch_sampler_attn.errors import StateError, shown


def plain_indices(indices: Sequence[Any]) -> list[int | str]:
    """Dataset indices as JSON types.

    Raises:
        StateError: If they are neither whole numbers nor strings.
    """
    try:
        return [index if isinstance(index, str) else operator.index(index) for index in indices]
    except TypeError as error:
        raise StateError(
            f"the sampler yields {shown(indices[:1])}; only whole numbers and strings can be saved"
        ) from error


def are_plain(indices: object) -> bool:
    """Whether they are dataset indices as ``plain_indices`` makes them, of at most 64 bits."""
    return isinstance(indices, list) and all(map(_is_plain, indices))


def as_plain(index: Any) -> Any:
    """An index as a plain number, if it is a number of NumPy's or a 0-d tensor; whatever else as it is."""
    if type(index) is int or isinstance(index, str):
        return index
    if getattr(index, "shape", None) == () and hasattr(index, "__index__"):
        with contextlib.suppress(TypeError):  # a number that is not whole
            return operator.index(index)
    return index


def _is_plain(index: object) -> bool:
    if isinstance(index, int):
        return not isinstance(index, bool) and index.bit_length() < 64
    return isinstance(index, str)
