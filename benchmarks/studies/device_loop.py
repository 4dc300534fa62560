"""Milliseconds an update of some models on a GPU: eager, captured, and captured without a schedule.

    python -m benchmarks.studies.device_loop --record FILE
    python -m benchmarks.studies.device_loop --record FILE --models resnet18 --batches 3 --rounds 2    # without a GPU

Random 32x32 images, batches of 32, Adam at 1e-4; fp32 and TF32, contiguous and channels-last. Eager is a hand-written
loop around ``schedule.decide(loss.item())``; without a GPU it is all there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.functional import cross_entropy

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop
from benchmarks.evaluation import tf32
from benchmarks.models import find_recipe, make_model
from benchmarks.studies.recording import alternate, keep

BATCH_SIZE = 32


def make_epoch(name: str, side: str, batches: int, layout: torch.memory_format) -> Callable[[], object]:
    """A function that trains for an epoch of exactly so many updates; weights and images are always the same."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(find_recipe(name, 32, 32, pretrained=False), classes=10, seed=0).to(device)
    model.to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=device.type == "cuda")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batches * BATCH_SIZE, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, 10, (len(images),)).to(device)
    schedule = None if side == "no schedule" else BatchAttentionSchedule(1.2, max_visits=1)

    def prepare(stored: Tensor) -> Tensor:
        return stored.float().div(255).contiguous(memory_format=layout)

    def eager() -> None:
        assert schedule is not None
        model.train()
        for batch in schedule.attend(torch.arange(len(images), device=device).split(BATCH_SIZE)):
            loss = cross_entropy(model(prepare(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.decide(loss.item())

    if side == "eager":
        return eager
    loop = DeviceLoop(model, optimizer, cross_entropy, images, labels, BATCH_SIZE, schedule=schedule, prepare=prepare)
    return loop.run_epoch


def measure(record: Path, *, models: tuple[str, ...] = ("resnet34",), batches: int = 200, rounds: int = 5) -> None:
    """Print medians and append raw numbers to ``record``: for each of ``models``, so many rounds of an epoch."""
    has_gpu = torch.cuda.is_available()
    sides = ("eager", "captured", "no schedule") if has_gpu else ("eager",)
    layouts = (torch.contiguous_format, torch.channels_last)

    def lines() -> Iterator[dict[str, Any]]:
        for name, allowed, layout in itertools.product(models, (False, True) if has_gpu else (None,), layouts):
            with tf32(allowed):
                seconds = alternate(rounds, **{side: make_epoch(name, side, batches, layout) for side in sides})
            times = {side: [1e3 * taken / batches for taken in values] for side, values in seconds.items()}
            yield {"model": name, "tf32": allowed, "layout": str(layout), "milliseconds": times}

    keep(record, lines(), device=None)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
