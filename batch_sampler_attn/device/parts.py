"""What a device loop is made of and where it is: what its steps work on, and what its saved states are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.device.data import Augmentation, ResidentData
from batch_sampler_attn.device.graphs import Graphs
from batch_sampler_attn.device.host import HostSide
from batch_sampler_attn.device.place import Place
from batch_sampler_attn.device.randomness import Randomness
from batch_sampler_attn.device.snapshot import Trained
from batch_sampler_attn.device.staged import StagedData
from batch_sampler_attn.errors import OptionError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a batch becomes an update; ``DeviceLoop`` documents each.

    Raises:
        OptionError: If no update can be made like this.
    """

    loss_fn: Callable[[Any, Tensor], Tensor]
    normalize: tuple[Tensor, Tensor] | None
    augmentation: Augmentation | None
    autocast: torch.dtype | None
    scaler: torch.amp.GradScaler | None
    channels_last: bool

    def __post_init__(self) -> None:
        augmentation = self.augmentation
        if augmentation is not None and (not callable(augmentation.apply) or augmentation.draws < 1):
            raise OptionError(
                f"augmentation is {augmentation!r}; it needs a callable and at least 1 draw for each sample"
            )
        if self.scaler is not None and self.autocast is None:
            raise OptionError("a gradient scaler without autocast scales for nothing; pass autocast=torch.float16 too")


@dataclass(slots=True)
class Progress:
    """Where a loop is, as far as the host knows.

    Attributes:
        cursor: Base batches of the data's epoch that are done with.
        staged: Base batches of the epoch that are at hand, those done with included.
        updates: Updates made so far, over all epochs.
        host_reads: How often the host waited for the cursor in this epoch.
        is_in_epoch: Whether an epoch has begun and not ended.
        epoch_randomness: The generators' states at the epoch's begin.
        in_flight: Updates that were enqueued since the cursor was read; never saved.
    """

    cursor: int = 0
    staged: int = 0
    updates: int = 0
    host_reads: int = 0
    is_in_epoch: bool = False
    epoch_randomness: dict[str, Any] | None = None
    in_flight: int = 0


@dataclass(slots=True, eq=False)
class Parts:
    """A loop's parts; ``progress`` is replaced at the begin of an epoch and when a state is loaded."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: ResidentData | StagedData
    recipe: Recipe
    host: HostSide
    counters: DeviceCounters
    randomness: Randomness
    place: Place
    graphs: Graphs
    progress: Progress

    @property
    def trained(self) -> Trained:
        """What training changes."""
        return self.model, self.optimizer, self.recipe.scaler
