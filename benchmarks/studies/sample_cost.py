"""What attention to samples costs a training step, against a plain loop that reads its loss.

    python -m benchmarks.studies.sample_cost [--record FILE]

The two loops alternate within one run, on one CPU thread: the small network of benchmarks.selection, 64 images a batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batch_sampler_attn import SampleAttention
from benchmarks.environment import describe_environment, one_line
from benchmarks.selection.training import make_network
from benchmarks.studies.raw_records import keep

SAMPLES, BATCH_SIZE, STEPS = 5000, 64, 40


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


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--record", type=Path, help="append the raw times to this file, as a JSON line")
    arguments = parser.parse_args()
    record, environment = measure(arguments.rounds), describe_environment("cpu")
    plain_ms, attention_ms = (statistics.median(values) for values in record["times"].values())
    print(f"{plain_ms:.2f} ms plain, {attention_ms:.2f} ms with attention: {attention_ms / plain_ms:.3f} times")
    print(one_line(environment))
    if arguments.record is not None:
        keep(arguments.record, [record], environment, is_appended=True)


if __name__ == "__main__":
    main()
