"""Whether a loader yields batches in the order in which their indices were handed out."""

from __future__ import annotations

from typing import Any

from batch_sampler_attn.errors import ProtocolError


def check_order(loader: Any) -> None:
    """Refuse loaders through which losses could not be attributed.

    Raises:
        ProtocolError: If it is such a loader.
    """
    if getattr(loader, "in_order", True) is False:
        raise ProtocolError(
            "the DataLoader has in_order=False, so batches arrive in another order than they were handed out, and "
            "losses would go to the wrong ones; leave in_order at True"
        )
    if getattr(loader, "snapshot_every_n_steps", 1) != 1:
        raise ProtocolError(
            f"the StatefulDataLoader has snapshot_every_n_steps={loader.snapshot_every_n_steps}; on a resume it would "
            "go through batches without training on them. Leave it at 1"
        )
