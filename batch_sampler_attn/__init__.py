"""Batch-attention: train again, at once, on batches whose loss stays above K times the last epoch's mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batch_sampler_attn.control import EqualComputeControl
    from batch_sampler_attn.rule import Decision, EpochLoss, EpochSummary
    from batch_sampler_attn.sampler import BatchAttentionSampler
    from batch_sampler_attn.schedule import BatchAttentionSchedule
    from batch_sampler_attn.seeded import SeededDataset

    __all__ = [
        "BatchAttentionSampler",
        "BatchAttentionSchedule",
        "Decision",
        "EpochLoss",
        "EpochSummary",
        "EqualComputeControl",
        "SeededDataset",
    ]

__version__ = "0.1.0"

# Imported on first use: the sampler needs torch, and nobody should wait for what they do not use.
_MODULES = {
    "BatchAttentionSampler": "sampler",
    "BatchAttentionSchedule": "schedule",
    "Decision": "rule",
    "EpochLoss": "rule",
    "EpochSummary": "rule",
    "EqualComputeControl": "control",
    "SeededDataset": "seeded",
}
_NEEDS_TORCH = {"BatchAttentionSampler", "SeededDataset"}


def _names() -> list[str]:
    """What can be imported here: all names, or, without torch, those that do without."""
    from importlib.util import find_spec

    has_torch = find_spec("torch") is not None
    return [name for name in _MODULES if has_torch or name not in _NEEDS_TORCH]


# A type checker has the imports above, and would take this for a module that has any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "__all__":
            return _names()
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        except ModuleNotFoundError as error:
            if name not in _NEEDS_TORCH or (error.name or "").partition(".")[0] != "torch":
                raise
            raise ModuleNotFoundError(
                f"{name} needs PyTorch, which is not installed: pip install 'batch-sampler-attn[torch]'", name="torch"
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})
