"""What a decision, a visit and a list of indices cost, against the plainest code that does the same.

python -m benchmarks.studies.decision_cost --record FILE
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import tyro
from torch.utils.data import BatchSampler, RandomSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, EpochSummary
from benchmarks.studies.recording import alternate, keep

DECISIONS = 20_000


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


def measure(record: Path, *, rounds: int = 31, sizes: tuple[int, ...] = (50_000, 1_281_167)) -> None:
    """Measure, print medians, and append the raw times to ``record``; every side is timed once a round."""
    keep(record, [*compare_decisions(rounds), *(compare_index_lists(size, rounds) for size in sizes)])


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
