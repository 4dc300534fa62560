"""What attention to samples costs a training step, against a plain loop that reads its loss.

    python -m benchmarks.studies.sample_cost [--record FILE] [--sizes]

The two loops alternate within one run, on one CPU thread: the small network of benchmarks.selection, 64 images a batch.

With --sizes: how time, memory and states grow with the data, without a network. Each size has a process of its own, and
losses as they are after an epoch; a pass is made to begin by ending the one before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.samples.state import StreamState
from benchmarks.environment import describe_environment, one_line
from benchmarks.selection.training import make_network
from benchmarks.studies.raw_records import keep

SAMPLES, BATCH_SIZE, STEPS = 5000, 64, 40
SIZES, SIZES_BATCH, PASSES, BATCHES = (10**5, 10**6, 10**7, 2 * 10**7, 10**8), 256, 7, 60


class Training:
    """A network, its optimizer and data; both loops have one each."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(SAMPLES, 3, 32, 32, generator=generator)
        self.labels = torch.randint(0, 10, (SAMPLES,), generator=generator)
        self.network = make_network(10, seed=0)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01)

    def losses(self, indices: list[int]) -> torch.Tensor:
        """(batch,)."""
        chosen = torch.tensor(indices)
        return nn.functional.cross_entropy(self.network(self.images[chosen]), self.labels[chosen], reduction="none")

    def update(self, loss: torch.Tensor) -> None:
        """Backward and step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def plain(training: Training, generator: torch.Generator) -> float:
    """Seconds of so many steps of a loop that reads its loss."""
    order = torch.randperm(SAMPLES, generator=generator).tolist()
    start = time.perf_counter()
    for step in range(STEPS):
        loss = training.losses(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]).mean()
        training.update(loss)
        loss.item()
    return time.perf_counter() - start


def attentive(training: Training, attention: SampleAttention) -> float:
    """Seconds of as many steps with attention: both halves, weighted."""
    start = time.perf_counter()
    for indices in attention.attend():
        training.update(attention.weighted_mean(training.losses(indices)))
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, Any]:
    """Milliseconds a step of both loops, round by round."""
    torch.set_num_threads(1)
    trainings = Training(), Training()
    generator = torch.Generator().manual_seed(1)
    attention = SampleAttention(SAMPLES, BATCH_SIZE, k=1.2, prune_probability=0.5, weighted=True, updates=STEPS)
    times: dict[str, list[float]] = {"plain": [], "attention": []}
    for number in range(rounds + 1):
        seconds = {"plain": plain(trainings[0], generator), "attention": attentive(trainings[1], attention)}
        if number:  # the first round warms up
            for name, taken in seconds.items():
                times[name].append(taken / STEPS * 1e3)
    return {"times": times, "load_average": os.getloadavg()[0]}


def resident_bytes() -> int:
    """Of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_size(samples: int, options: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the first batch of a pass, and of others; bytes a sample; seconds to save and to load."""
    rng = np.random.default_rng(0)
    losses = rng.exponential(size=(PASSES * BATCHES, SIZES_BATCH)).tolist()
    resident = resident_bytes()
    attention = SampleAttention(samples, SIZES_BATCH, updates=PASSES * BATCHES, **options)
    source = vars(attention)["_source"]  # a benchmark sets what an epoch would
    remembered = np.frombuffer(source.state.memory.losses, np.uint16)
    for first in range(0, samples, 10**5):
        drawn = rng.exponential(size=min(10**5, samples - first)).astype(np.float32)
        remembered[first : first + len(drawn)] = (drawn.view(np.uint32) >> 16) | 0x8000
    source.state = source.state._replace(epoch=1, mean_loss=1.0)
    found: dict[str, Any] = {"samples": samples, "options": options, "first_ms": [], "later_ms": []}
    for number, (_, batch_losses) in enumerate(zip(range(PASSES * BATCHES), losses, strict=True)):
        is_first = number % BATCHES == 0
        if is_first:
            source.state = source.state._replace(stream=StreamState(source.state.stream.passes))
        start = time.perf_counter()
        if number == 0:
            batches = iter(attention.attend())
        next(batches)
        attention.report(batch_losses)
        found["first_ms" if is_first else "later_ms"].append(1e3 * (time.perf_counter() - start))
    found["memory_bytes"] = (resident_bytes() - resident) / samples
    start = time.perf_counter()
    state = attention.state_dict()
    found["save_s"] = time.perf_counter() - start
    resumed = SampleAttention(samples, SIZES_BATCH, updates=PASSES * BATCHES, **options)
    start = time.perf_counter()
    resumed.load_state_dict(state)
    found["load_s"] = time.perf_counter() - start
    found["state_bytes"] = len(json.dumps(state)) / samples
    return found


def measure_sizes() -> list[dict[str, Any]]:
    """Each size with the defaults, weighted, and pooling."""
    kinds: tuple[dict[str, Any], ...] = ({}, {"weighted": True}, {"k": 1.2})
    found = []
    for size in SIZES:
        for options in kinds:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found.append({**pool.apply(measure_size, (size, options)), "load_average": os.getloadavg()[0]})
            shown = {name: statistics.median(found[-1][name]) for name in ("first_ms", "later_ms")}
            print(size, options, shown, max(found[-1]["later_ms"]), found[-1]["memory_bytes"], found[-1]["state_bytes"])
    return found


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--sizes", action="store_true", help="measure how the cost grows with the data")
    parser.add_argument("--record", type=Path, help="append the raw times to this file, as a JSON line")
    arguments = parser.parse_args()
    environment = describe_environment("cpu")
    if arguments.sizes:
        sizes = measure_sizes()
        if arguments.record is not None:
            keep(arguments.record, sizes, environment)
        return
    record = measure(arguments.rounds)
    plain_ms, attention_ms = (statistics.median(values) for values in record["times"].values())
    print(f"{plain_ms:.2f} ms plain, {attention_ms:.2f} ms with attention: {attention_ms / plain_ms:.3f} times")
    print(one_line(environment))
    if arguments.record is not None:
        keep(arguments.record, [record], environment, is_appended=True)


if __name__ == "__main__":
    main()
