"""Copies between host and device that make the host wait only where it says so."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_in(destination: Tensor, source: Tensor) -> None:
    """Copy a host tensor into a device tensor, in the order of the current stream, without waiting."""
    if destination.device.type == "cuda" and source.device.type == "cpu":
        source = source.pin_memory()
    destination.copy_(source, non_blocking=True)


def copy_out(source: Tensor) -> Tensor:
    """A device tensor on the host. Waits until the device has come to it."""
    if source.device.type != "cuda":
        return source
    copy = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    copy.copy_(source, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(source.device))
    arrived.synchronize()
    return copy
