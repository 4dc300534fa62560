"""Whether CUDA computes in TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and cuDNN for a while; None leaves PyTorch's own settings alone."""
    settings = [] if allowed is None else _settings()
    before = [getattr(operation, name) for operation, name in settings]
    for operation, name in settings:
        setattr(operation, name, allowed if name == "allow_tf32" else "tf32" if allowed else "ieee")
    try:
        yield
    finally:
        for (operation, name), setting in zip(settings, before, strict=True):
            setattr(operation, name, setting)


def _settings() -> list[tuple[Any, str]]:
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):
        return [(matmul, "allow_tf32"), (cudnn, "allow_tf32")]
    # Where there is the new setting, the old one raises an error once the new one was set.
    return [(operation, "fp32_precision") for operation in (matmul, cudnn.conv, cudnn.rnn)]
