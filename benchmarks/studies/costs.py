"""What a decision, a visit, a list of indices and a step of attention to samples cost, against the plainest code.

    python -m benchmarks.studies.costs decisions --record FILE
    python -m benchmarks.studies.costs steps --record FILE
    python -m benchmarks.studies.costs sizes --record FILE --sizes 100000 1000000 10000000 20000000 100000000

The last is how time, memory and saved states of attention to samples grow with the data, without a network. Each size
has a process of its own, and losses as they are after an epoch; a pass is made to begin by ending the one before.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, EpochSummary, SampleAttention
from batch_sampler_attn.samples.rule import StreamState
from benchmarks.selection.networks import convolutional
from benchmarks.studies.recording import alternate, keep

DECISIONS = 20_000
SAMPLES, BATCH_SIZE, STEPS = 5000, 64, 40
SIZES_BATCH, PASSES, BATCHES = 256, 7, 60
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"weighted": True}, {"k": 1.2})


def inline(losses: list[float], threshold: float, max_visits: int) -> tuple[int, ...]:
    """The schedule's accounting (sum, counts, visits, limit, summary, non-finite losses) without the schedule."""
    loss_sum, loss_count, batches, visits, repeats = 0.0, 0, 0, 0, 0
    most_visits, capped_batches, nonfinite_losses = 0, 0, 0
    for loss in losses:
        visits += 1
        if loss - loss != 0.0:
            nonfinite_losses += 1
        else:
            if visits == 1:
                loss_sum += loss
                loss_count += 1
            if loss > threshold:
                if visits < max_visits:
                    repeats += 1
                    continue
                capped_batches += 1
        if visits > most_visits:
            most_visits = visits
        batches += 1
        visits = 0
    return batches, repeats, most_visits, capped_batches, nonfinite_losses


def compare_decisions(rounds: int) -> list[dict[str, Any]]:
    """Nanoseconds a decision, inline and ours, where about one loss in eight is above the threshold."""
    rng = random.Random(0)
    losses = [*(rng.lognormvariate(0.0, 0.2) for _ in range(DECISIONS - 1)), 0.0]  # the last loss ends its batch
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(statistics.fmean(losses))
    schedule.end_epoch()
    state, threshold = schedule.state_dict(), schedule.threshold
    assert threshold is not None
    accounted = inline(losses, threshold, 100)

    # What every side does besides accounting, which is subtracted.
    def loop() -> None:
        for _ in losses:
            pass

    def loop_with_calls() -> None:
        loss = iter(losses).__next__
        for _ in losses:
            loss()

    def decide() -> EpochSummary:
        schedule.abandon_epoch()
        for loss in losses:
            schedule.decide(loss)
        return schedule.summary

    def attend() -> EpochSummary:
        schedule.load_state_dict(state)
        loss, decide = iter(losses).__next__, schedule.decide
        for _ in schedule.attend(range(accounted[0])):
            decide(loss())
        return schedule.last_summary

    for done in (decide(), attend()):
        ours = (done.batches, done.repeats, done.most_visits, done.capped_batches, done.nonfinite_losses)
        assert ours == accounted
    empty = {"inline": loop, "decide": loop, "attend": loop_with_calls}
    sides = {"inline": lambda: inline(losses, threshold, 100), "decide": decide, "attend": attend}
    seconds = alternate(rounds, **{side.__name__: side for side in (loop, loop_with_calls)}, **sides)
    nanoseconds = {
        side: [1e9 * (took - none) / DECISIONS for took, none in zip(seconds[side], seconds[of.__name__], strict=True)]
        for side, of in empty.items()
    }
    return [
        {"comparison": what, "unit": "ns", "samples": None, "times": {of: nanoseconds[of] for of in ("inline", ours)}}
        for what, ours in (("decision", "decide"), ("visit", "attend"))
    ]


def compare_index_lists(samples: int, rounds: int) -> dict[str, Any]:
    """Microseconds a batch of 32 indices: torch's BatchSampler over RandomSampler, and ours over the same."""
    torchs = BatchSampler(RandomSampler(range(samples)), 32, drop_last=False)
    ours = BatchAttentionSampler(RandomSampler(range(samples)), 32, schedule=BatchAttentionSchedule())
    seconds = alternate(rounds, torch=lambda: sum(map(len, torchs)), ours=lambda: sum(map(len, ours)))
    times = {name: [1e6 * taken / len(ours) for taken in values] for name, values in seconds.items()}
    return {"comparison": "index lists", "unit": "us", "samples": samples, "times": times}


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


def decisions(record: Path, *, rounds: int = 31, sizes: tuple[int, ...] = (50_000, 1_281_167)) -> None:
    """Measure decisions, visits and lists of indices, and append the raw times to ``record``."""
    keep(record, [*compare_decisions(rounds), *(compare_index_lists(size, rounds) for size in sizes)])


def steps(record: Path, *, rounds: int = 31) -> None:
    """Measure steps of training, and append the raw times to ``record``."""
    keep(record, [compare_steps(rounds)])


def sizes(record: Path, *, sizes: tuple[int, ...]) -> None:
    """Measure attention to so many samples, and append the raw numbers to ``record``."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        keep(record, (pool.apply(measure_size, each) for each in itertools.product(sizes, OPTIONS)))


if __name__ == "__main__":
    commands: dict[str, Any] = {"decisions": decisions, "steps": steps, "sizes": sizes}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
