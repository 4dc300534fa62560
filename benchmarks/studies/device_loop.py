"""Milliseconds an update of a timm model, eager or captured, decided on the host or on the device; and whether captured
updates equal eager ones bit for bit.

    python -m benchmarks.studies.device_loop --record FILE
    python -m benchmarks.studies.device_loop --record FILE --models resnet18 --batches 3 --rounds 2    # without a GPU

Random 32x32 images, batches of 32, Adam at 1e-4; fp32 and TF32, contiguous and channels-last. Sides:

    eager         a hand-written loop around ``schedule.decide(loss.item())``
    asked         captured updates, and the host asks after each
    captured      captured updates, decided on the device
    no_schedule   captured updates without a schedule

Without a GPU there are eager updates alone.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import tyro
from torch import Tensor, nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop
from benchmarks.environment import describe_environment
from benchmarks.evaluation import tf32
from benchmarks.studies.recording import alternate, keep

BATCH_SIZE = 32
# TNT's inner transformer gets 16 pixels of each 4x4 patch at this stride, as in the original.
MODEL_OPTIONS: dict[str, dict[str, Any]] = {"tnt_s_patch16_224": {"img_size": 32, "patch_size": 4, "first_stride": 1}}


class Parts(NamedTuple):
    """What every side trains with: weights, images and labels are always the same."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    layout: torch.memory_format

    def prepare(self, images: Tensor) -> Tensor:
        """Bytes as the model takes them."""
        return images.float().div(255).contiguous(memory_format=self.layout)


def make_parts(name: str, batches: int, layout: torch.memory_format) -> Parts:
    """A timm model, Adam, and random images on the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **MODEL_OPTIONS.get(name, {})).to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda")
    images = torch.randint(0, 256, (batches * BATCH_SIZE, 3, 32, 32), dtype=torch.uint8).to(device)
    return Parts(model, optimizer, images, torch.randint(0, 10, (len(images),)).to(device), layout)


def make_loop(parts: Parts, schedule: BatchAttentionSchedule | None, *, graph: bool | None = None) -> DeviceLoop:
    """The device loop; ``graph=False`` is eager."""
    return DeviceLoop(
        parts.model,
        parts.optimizer,
        nn.functional.cross_entropy,
        parts.images,
        parts.labels,
        BATCH_SIZE,
        schedule=schedule,
        generator=torch.Generator().manual_seed(0),
        prepare=parts.prepare,
        graph=graph,
    )


def make_sides(name: str, batches: int, layout: torch.memory_format) -> dict[str, Callable[[], object]]:
    """For each side a function that trains for an epoch of exactly so many updates."""
    parts, schedule = make_parts(name, batches, layout), BatchAttentionSchedule(1.2, max_visits=1)

    def eager() -> None:
        parts.model.train()
        batches = zip(parts.images.split(BATCH_SIZE), parts.labels.split(BATCH_SIZE), strict=True)
        for images, labels in schedule.attend(batches):
            loss = nn.functional.cross_entropy(parts.model(parts.prepare(images)), labels)
            parts.optimizer.zero_grad()
            loss.backward()
            parts.optimizer.step()
            schedule.decide(loss.item())

    if not torch.cuda.is_available():
        return {"eager": eager}
    asked, captured = (
        make_loop(make_parts(name, batches, layout), BatchAttentionSchedule(1.2, max_visits=1)) for _ in range(2)
    )

    def ask_after_every_update() -> None:
        while asked.run_updates(1) is None:
            pass

    no_schedule = make_loop(make_parts(name, batches, layout), None)
    return {
        "eager": eager,
        "asked": ask_after_every_update,
        "captured": captured.run_epoch,
        "no_schedule": no_schedule.run_epoch,
    }


def check_equality(name: str, batches: int) -> dict[str, Any]:
    """Whether three epochs of captured updates, one of them without a synchronization, equal eager ones."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    loops = [
        make_loop(make_parts(name, batches, torch.contiguous_format), BatchAttentionSchedule(1.0), graph=graph)
        for graph in (None, False)
    ]
    summaries = [[loop.run_epoch() for _ in range(3)] for loop in loops]
    torch.use_deterministic_algorithms(before)
    weights = [loop.model.state_dict().values() for loop in loops]
    is_equal = summaries[0] == summaries[1] and all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    return {"model": name, "is_equal": is_equal, "host_reads": [summary.host_reads for summary in summaries[0]]}


def measure(record: Path, *, models: tuple[str, ...] = ("resnet34",), batches: int = 200, rounds: int = 5) -> None:
    """Print medians and append raw numbers to ``record``: for each of timm's ``models``, so many rounds of an epoch."""
    # For equality. It counts only before CUDA is set up, so every side is measured with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    has_gpu = torch.cuda.is_available()

    def lines() -> Iterator[dict[str, Any]]:
        for name in models:
            layouts = (torch.contiguous_format, torch.channels_last)
            for allowed, layout in itertools.product((False, True) if has_gpu else (None,), layouts):
                with tf32(allowed):
                    seconds = alternate(rounds, **make_sides(name, batches, layout))
                times = {side: [1e3 * taken / batches for taken in values] for side, values in seconds.items()}
                setting = {"model": name, "tf32": allowed, "layout": str(layout)}
                print(setting, {side: round(statistics.median(values), 3) for side, values in times.items()})
                yield {**setting, "milliseconds": times}
            if has_gpu:
                equality = check_equality(name, min(batches, 20))
                print(equality)
                yield equality

    keep(record, lines(), describe_environment())


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
