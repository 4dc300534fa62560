"""Which loaders the samples of a batch can be followed through."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.loader_order import check_order


def check_loader(attention: object, loader: Any) -> None:
    """Refuse loaders that would attribute losses to the wrong samples.

    Args:
        attention: The batch sampler that the loader has to be built on.
        loader: What was attended. What wraps a loader need not tell which batch sampler that has.

    Raises:
        ProtocolError: If it is such a loader.
    """
    check_order(loader)
    if getattr(loader, "batch_sampler", attention) is not attention:
        raise ProtocolError(
            f"{type(loader).__name__} was built on another batch sampler; build it with DataLoader(dataset, "
            "batch_sampler=attention)"
        )
