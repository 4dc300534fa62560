"""Lightning comes in two packages of the same code: ``lightning.pytorch`` and ``pytorch_lightning``."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["Callback", "LightningModule", "Trainer"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback_class() -> type:
    """A ``Callback`` of every package that is installed, since each one's trainer takes none but its own.

    ``pip install lightning`` brings both, and the second takes a fraction of a second to import.

    Raises:
        ModuleNotFoundError: If there is none.
    """
    classes = []
    for name in _PACKAGES:
        with suppress(ImportError):
            classes.append(import_module(name).Callback)
    if not classes:
        raise ModuleNotFoundError(
            "batch_sampler_attn.lightning needs Lightning, which is not installed: "
            "pip install 'batch-sampler-attn[lightning]'",
            name="lightning",
        )
    return type("Callback", tuple(classes), {})


# A type checker has the import above.
if not TYPE_CHECKING:
    Callback = _callback_class()
    LightningModule = Trainer = object
