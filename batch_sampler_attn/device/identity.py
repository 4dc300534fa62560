"""Which data an epoch is of, so that a state that was saved in the middle of it does not go on over other data."""

from __future__ import annotations

import zlib
from typing import Any

from torch import Tensor

from batch_sampler_attn.checkpoint import check_keys
from batch_sampler_attn.errors import StateError, shown

# Enough to tell orders apart, and few enough to be worth no thought in every batch.
_LOOKED_AT = 1024


def crc_of(values: Tensor, before: int = 0) -> int:
    """A checksum of a tensor's first numbers, following on that of what came ``before``; alike on every device."""
    first = values.detach().reshape(-1)[:_LOOKED_AT]
    return zlib.crc32(repr(first.tolist()).encode(), before)


def check_same_data(saved: object, here: dict[str, Any]) -> None:
    """Refuse to go on in the middle of an epoch of other data.

    Args:
        saved: What ``identity()`` of the data was in the saved state; None in states of earlier releases.
        here: What it is, or would be, here; None for what is not known.

    Raises:
        StateError: If they differ in what is known.
    """
    if saved is None:
        return
    fields = check_keys("the identity of the state's data", saved, set(here))
    differing = [
        f"{name} (saved {shown(fields[name])}, here {shown(value)})"
        for name, value in here.items()
        if value is not None and (type(fields[name]) is not type(value) or fields[name] != value)
    ]
    if differing:
        raise StateError(
            f"the state was saved in the middle of an epoch of other data: {', '.join(differing)}. Construct the data "
            "as it was, or load a state that was saved between two epochs"
        )
