"""Batch-attention: repeat a batch at once while its loss is above K times the previous epoch's mean."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from batch_sampler_attn.control import EqualComputeControl
from batch_sampler_attn.options import EpochLoss
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.summary import EpochSummary, SampleSummary

__version__ = "0.2.0"

__all__ = [
    "BatchAttentionSchedule",
    "Decision",
    "EpochLoss",
    "EpochSummary",
    "EqualComputeControl",
    "SampleAttention",
    "SampleSummary",
]

# These need torch, which is optional and takes seconds to import.
if TYPE_CHECKING:
    from batch_sampler_attn.loading.sampler import BatchAttentionSampler
    from batch_sampler_attn.loading.seeded import SeededDataset

if TYPE_CHECKING or find_spec("torch") is not None:
    __all__ += ["BatchAttentionSampler", "SeededDataset"]

_NEEDS_TORCH = {"BatchAttentionSampler": "sampler", "SeededDataset": "seeded"}

# Hidden from type checkers, which would otherwise accept any attribute of this module.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _NEEDS_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            value = getattr(import_module(f"{__name__}.loading.{_NEEDS_TORCH[name]}"), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "torch":
                raise
            raise ModuleNotFoundError(
                f"{name} needs PyTorch, which is not installed: pip install 'batch-sampler-attn[torch]'", name="torch"
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
