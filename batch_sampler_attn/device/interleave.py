"""Several loops on one device, taking turns, so that a device too large for one small run is used by many."""

from __future__ import annotations

from collections.abc import Sequence

from batch_sampler_attn.device.loop import DeviceLoop
from batch_sampler_attn.errors import OptionError
from batch_sampler_attn.rule import EpochSummary

# Enough to keep the device busy while the others have their turn, few enough to keep the turns short.
UPDATES_A_TURN = 64


def run_interleaved(loops: Sequence[DeviceLoop], epochs: int) -> list[list[EpochSummary]]:
    """Train every loop for ``epochs`` epochs, each with the results that it would have alone.

    Args:
        loops: Independent loops on one device: models, optimizers and schedules of their own.
        epochs: Epochs for each.

    Returns:
        Each loop's summaries, in the order of ``loops``.

    Raises:
        OptionError: If two loops share a model or a schedule.
    """
    for name in ("model", "schedule"):
        parts = [id(part) for loop in loops if (part := getattr(loop, name)) is not None]
        if len(set(parts)) < len(parts):
            raise OptionError(f"two loops share one {name}; independent runs need one each")
    summaries: list[list[EpochSummary]] = [[] for _ in loops]
    while any(len(done) < epochs for done in summaries):
        for loop, done in zip(loops, summaries, strict=True):
            if len(done) < epochs:
                loop.enqueue(UPDATES_A_TURN)
        # Read only once every loop has work: a read waits for its own loop's stream alone.
        for loop, done in zip(loops, summaries, strict=True):
            if len(done) < epochs and (summary := loop.settle()) is not None:
                done.append(summary)
    return summaries
