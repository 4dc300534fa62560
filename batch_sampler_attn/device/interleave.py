"""Several loops on one device, taking turns, so that a device too large for one small run is used by many."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from batch_sampler_attn.device.loop import DeviceLoop
from batch_sampler_attn.errors import OptionError
from batch_sampler_attn.summary import EpochSummary

# Enough to keep the device busy while the others have their turn, few enough to keep the turns short.
UPDATES_A_TURN = 64


def run_interleaved(loops: Sequence[DeviceLoop], epochs: int) -> list[list[EpochSummary]]:
    """Train every loop for ``epochs`` epochs, each with the results that it would have alone.

    Args:
        loops: Independent loops on one device: models, optimizers, schedules and data of their own. The inputs and
            targets may be the same tensors.
        epochs: Epochs for each.

    Returns:
        Each loop's summaries, in the order of ``loops``.

    Raises:
        OptionError: If two loops share what each has to have alone, or are on different devices.
    """
    summaries: dict[DeviceLoop, list[EpochSummary]] = {loop: [] for loop in loops}
    running = list(loops) if epochs > 0 else []
    for loop, summary in take_turns(running):
        summaries[loop].append(summary)
        if len(summaries[loop]) == epochs:
            running.remove(loop)
    return list(summaries.values())


def take_turns(loops: list[DeviceLoop]) -> Iterator[tuple[DeviceLoop, EpochSummary]]:
    """Train loops by turns until none is left, and yield each epoch as it ends.

    Between one epoch and the next the caller may look at that loop's model, and may take loops out of ``loops``
    and put others in: evaluation, checkpoints and a queue of runs go there. Where it is left early, by ``break`` or an
    error, and closed (at the latest as nobody holds it any more), what the loops have in flight is waited for: each
    of them can be saved, and gone on with.

    Args:
        loops: As for ``run_interleaved``; the caller removes a loop when it is done.

    Yields:
        A loop with nothing in flight, and the summary of the epoch that it ended.

    Raises:
        OptionError: If two loops share what each has to have alone, or are on different devices.
    """
    try:
        while loops:
            _check_independence(loops)
            for loop in loops:
                loop.enqueue(UPDATES_A_TURN)
            # Read only once every loop has work: a read waits for its own loop's stream alone.
            ended = deque((loop, summary) for loop in loops if (summary := loop.settle()) is not None)
            # A loop that the caller takes out here is to be let go of, with its memory, before others come in.
            del loop
            while ended:
                yield ended.popleft()
    finally:
        # Left early, or by an error of one of them.
        for loop in loops:
            loop.settle(now=True)


def _check_independence(loops: Sequence[DeviceLoop]) -> None:
    if len({loop.device for loop in loops}) > 1:
        raise OptionError(
            f"the loops are on {sorted({str(loop.device) for loop in loops})}; loops that take turns share one device"
        )
    parts: dict[str, list[Any]] = {
        "model": [loop.model for loop in loops],
        "schedule": [loop.schedule for loop in loops],
        "optimizer": [loop.parts.optimizer for loop in loops],
        "gradient scaler": [loop.parts.recipe.scaler for loop in loops],
        "data object": [loop.parts.data for loop in loops],
        "generator": [loop.parts.data.generator for loop in loops],
    }
    for name, each in parts.items():
        there = [id(part) for part in each if part is not None]
        if len(set(there)) < len(there):
            raise OptionError(
                f"two loops share one {name}; independent runs need one each. Make one ResidentData for each loop, "
                "with its own generator: the tensors in it are not copied"
            )
