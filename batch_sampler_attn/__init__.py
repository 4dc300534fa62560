"""Batch-attention: train again, at once, on batches whose loss stays above K times the last epoch's mean."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from batch_sampler_attn.control import EqualComputeControl
    from batch_sampler_attn.rule import Decision, EpochSummary
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.schedule import BatchAttentionSchedule

__version__ = "0.1.0"

__all__ = [
    "BatchAttentionSampler",
    "BatchAttentionSchedule",
    "Decision",
    "EpochSummary",
    "EqualComputeControl",
]

# Imported on first use: the sampler needs torch, and nobody should wait for what they do not use.
_MODULES = {
    "BatchAttentionSampler": "sampler",
    "BatchAttentionSchedule": "schedule",
    "Decision": "rule",
    "EpochSummary": "rule",
    "EqualComputeControl": "control",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
