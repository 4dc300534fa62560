"""Which loaders the samples of a batch can be followed through."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.errors import ProtocolError


def check_loader(attention: object, loader: Any) -> None:
    """Refuse loaders that would attribute losses to the wrong samples.

    Args:
        attention: The batch sampler that the loader has to be built on.
        loader: What was attended. What wraps a loader need not tell which batch sampler that has.

    Raises:
        ProtocolError: If it is such a loader.
    """
    if getattr(loader, "in_order", True) is False:
        raise ProtocolError(
            "the DataLoader has in_order=False, so batches arrive in another order than they were handed out, and "
            "losses would go to the wrong samples; leave in_order at True"
        )
    if getattr(loader, "batch_sampler", attention) is not attention:
        raise ProtocolError(
            f"{type(loader).__name__} was built on another batch sampler; build it with DataLoader(dataset, "
            "batch_sampler=attention)"
        )
    if getattr(loader, "snapshot_every_n_steps", 1) != 1:
        raise ProtocolError(
            f"the StatefulDataLoader has snapshot_every_n_steps={loader.snapshot_every_n_steps}; on a resume it would "
            "go through batches without training on them. Leave it at 1"
        )
