"""What a decision, a visit and a list of indices cost, against the plainest code that does the same.

    python -m benchmarks.studies.decision_cost [--record FILE]

The two sides of each comparison alternate within one run; medians and their ratio are shown, since
the times of a shared machine wander and the ratio does not.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from torch.utils.data import BatchSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, EpochSummary
from benchmarks.environment import describe_environment, one_line
from benchmarks.studies.raw_records import keep

DECISIONS = 20_000
BATCH_SIZE = 32


def make_losses() -> list[float]:
    """Losses of which about one in eight is above the threshold that their own mean sets at k = 1.2."""
    rng = random.Random(0)
    # The last one ends its batch.
    return [*(rng.lognormvariate(0.0, 0.2) for _ in range(DECISIONS - 1)), 0.0]


def nothing(losses: list[float]) -> None:
    """The loop alone, to be taken off both sides."""
    for _ in losses:
        pass


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


def decide(schedule: BatchAttentionSchedule, losses: list[float]) -> tuple[int, ...]:
    """The same through the schedule."""
    schedule.abandon_epoch()
    decide = schedule.decide
    for loss in losses:
        decide(loss)
    return counts(schedule.summary)


def counts(summary: EpochSummary) -> tuple[int, ...]:
    """What both sides must agree on."""
    return (summary.batches, summary.repeats, summary.most_visits, summary.capped_batches, summary.nonfinite_losses)


def compare_decisions(rounds: int) -> dict[str, Any]:
    """Nanoseconds a decision, inline and through ``decide``."""
    losses = make_losses()
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(statistics.fmean(losses))
    schedule.end_epoch()
    threshold = schedule.threshold
    assert threshold is not None
    if inline(losses, threshold, 100) != decide(schedule, losses):
        raise SystemExit("the two sides account differently; the comparison would be meaningless")
    seconds = alternate(
        rounds,
        loop=lambda: nothing(losses),
        inline=lambda: inline(losses, threshold, 100),
        decide=lambda: decide(schedule, losses),
    )
    times = {name: less(seconds[name], seconds["loop"]) for name in ("inline", "decide")}
    return {"comparison": "decision", "unit": "ns", "samples": None, "times": times}


def compare_visits(rounds: int) -> dict[str, Any]:
    """Nanoseconds a visit of a whole epoch, inline and through ``attend`` and ``decide`` together."""
    losses = make_losses()
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(statistics.fmean(losses))
    schedule.end_epoch()
    state, threshold = schedule.state_dict(), schedule.threshold
    assert threshold is not None
    accounted = inline(losses, threshold, 100)

    def attend() -> tuple[int, ...]:
        schedule.load_state_dict(state)
        loss, decide = iter(losses).__next__, schedule.decide
        for _ in schedule.attend(range(accounted[0])):
            decide(loss())
        return counts(schedule.last_summary)

    def nothing_but_a_call() -> None:
        loss = iter(losses).__next__
        for _ in losses:
            loss()

    if attend() != accounted:
        raise SystemExit("the two sides account differently; the comparison would be meaningless")
    seconds = alternate(
        rounds,
        loop=lambda: nothing(losses),
        inline=lambda: inline(losses, threshold, 100),
        calls=nothing_but_a_call,
        attend=attend,
    )
    times = {"inline": less(seconds["inline"], seconds["loop"]), "attend": less(seconds["attend"], seconds["calls"])}
    return {"comparison": "visit", "unit": "ns", "samples": None, "times": times}


def less(seconds: list[float], empty: list[float]) -> list[float]:
    """Nanoseconds a loss, round by round, without those of the empty loop."""
    return [(taken - nothing) / DECISIONS * 1e9 for taken, nothing in zip(seconds, empty, strict=True)]


def compare_index_lists(samples: int, rounds: int) -> dict[str, Any]:
    """Microseconds a batch of indices: torch's BatchSampler over RandomSampler, and ours over the same."""
    data = range(samples)
    torchs = BatchSampler(RandomSampler(data), BATCH_SIZE, drop_last=False)
    ours = BatchAttentionSampler(RandomSampler(data), BATCH_SIZE, schedule=BatchAttentionSchedule())

    def go_through(sampler: Any) -> None:
        for _ in sampler:
            pass

    seconds = alternate(rounds, torch=lambda: go_through(torchs), ours=lambda: go_through(ours))
    per_batch = {name: [taken / len(ours) * 1e6 for taken in values] for name, values in seconds.items()}
    return {"comparison": "index lists", "unit": "us", "samples": samples, "times": per_batch}


def alternate(rounds: int, **sides: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each side in each round, the sides taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def describe(record: dict[str, Any]) -> list[str]:
    """One line for each side, and one for their ratio."""
    what = record["comparison"] + ("" if record["samples"] is None else f", {record['samples']:,} samples")
    lines = [what]
    medians = []
    for name, values in record["times"].items():
        quartiles = statistics.quantiles(values, n=4)
        medians.append(statistics.median(values))
        lines.append(
            f"  {name:8} {medians[-1]:8.2f} {record['unit']} "
            f"(quartiles {quartiles[0]:.2f} to {quartiles[2]:.2f}, n = {len(values)})"
        )
    first, second = record["times"]
    lines.append(
        f"  {second} / {first} = {medians[1] / medians[0]:.2f}, {first} / {second} = {medians[0] / medians[1]:.2f}"
    )
    return lines


def measure(*, rounds: int = 31, record: Path | None = None) -> None:
    """Measure, print, and record.

    Args:
        rounds: In each, every side is timed once.
        record: The raw times are appended to this file, as JSON lines; None for no file.
    """
    environment = describe_environment()
    print(one_line(environment))
    compared = [compare_decisions(rounds), compare_visits(rounds)]
    compared += [compare_index_lists(samples, rounds) for samples in (50_000, 1_281_167)]
    for each in compared:
        print("\n".join(describe(each)))
    if record is not None:
        keep(record, compared, environment, is_appended=True)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
