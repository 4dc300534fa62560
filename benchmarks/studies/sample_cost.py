"""What attention to samples costs a training step, against a plain loop that reads its loss.

    python -m benchmarks.studies.sample_cost --record FILE
    python -m benchmarks.studies.sample_cost --record FILE --sizes 100000 1000000 10000000 20000000 100000000

With --sizes: how time, memory and saved states grow with the data, without a network. Each size has a process of its
own, and losses as they are after an epoch; a pass is made to begin by ending the one before.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.samples.state import StreamState
from benchmarks.selection.networks import convolutional
from benchmarks.studies.recording import alternate, keep

SAMPLES, BATCH_SIZE, STEPS = 5000, 64, 40
SIZES_BATCH, PASSES, BATCHES = 256, 7, 60
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"weighted": True}, {"k": 1.2})


def compare_steps(rounds: int) -> dict[str, Any]:
    """Milliseconds a step of the selection study's network, plain and with attention (pruning, pooling, weights)."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(SAMPLES, 3, 32, 32, generator=generator), torch.arange(SAMPLES) % 10
    attention = SampleAttention(SAMPLES, BATCH_SIZE, k=1.2, prune_probability=0.5, weighted=True, updates=STEPS)

    def make_epoch(*, attends: bool) -> Any:
        network = convolutional(10, seed=0)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)

        def run() -> None:
            plain = torch.randperm(SAMPLES, generator=generator).split(BATCH_SIZE)[:STEPS]
            for indices in attention.attend() if attends else plain:
                losses = nn.functional.cross_entropy(network(images[indices]), labels[indices], reduction="none")
                loss = attention.weighted_mean(losses) if attends else losses.mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if not attends:
                    loss.item()

        return run

    seconds = alternate(rounds, plain=make_epoch(attends=False), attention=make_epoch(attends=True))
    times = {name: [1e3 * taken / STEPS for taken in values] for name, values in seconds.items()}
    return {"times": times, "load_average": os.getloadavg()[0]}


def resident_bytes() -> int:
    """Of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_size(samples: int, options: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the first batch of a pass, and of others; bytes a sample; seconds to save and to load."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(PASSES * BATCHES, SIZES_BATCH)).tolist()
    resident = resident_bytes()
    attention, resumed = (SampleAttention(samples, SIZES_BATCH, updates=PASSES * BATCHES, **options) for _ in range(2))
    source = vars(attention)["_source"]  # a benchmark sets what an epoch would
    remembered = np.frombuffer(source.state.memory.losses, np.uint16)
    for first in range(0, samples, 10**5):
        drawn = rng.exponential(size=min(10**5, samples - first)).astype(np.float32)
        remembered[first : first + len(drawn)] = (drawn.view(np.uint32) >> 16) | 0x8000
    source.state = source.state._replace(epoch=1, mean_loss=1.0)
    found: dict[str, Any] = {"samples": samples, "options": options, "first_ms": [], "later_ms": []}
    batches = iter(attention.attend())
    for number, batch_losses in enumerate(losses):
        is_first = number % BATCHES == 0
        if is_first:
            source.state = source.state._replace(stream=StreamState(source.state.stream.passes))
        start = time.perf_counter()
        next(batches)
        attention.report(batch_losses)
        found["first_ms" if is_first else "later_ms"].append(1e3 * (time.perf_counter() - start))
    found["memory_bytes"] = (resident_bytes() - resident) / samples
    start = time.perf_counter()
    state = attention.state_dict()
    found["save_s"], start = time.perf_counter() - start, time.perf_counter()
    resumed.load_state_dict(state)
    found["load_s"], found["state_bytes"] = time.perf_counter() - start, len(json.dumps(state)) / samples
    return {**found, "load_average": os.getloadavg()[0]}


def measure(record: Path, *, rounds: int = 31, sizes: tuple[int, ...] = ()) -> None:
    """Measure, print medians, and append the raw numbers to ``record``."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        of_sizes = (pool.apply(measure_size, each) for each in itertools.product(sizes, OPTIONS))
        keep(record, of_sizes if sizes else [compare_steps(rounds)])


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
