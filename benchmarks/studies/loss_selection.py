"""What does the threshold select, where batches differ by construction?

    python -m benchmarks.studies.loss_selection --record FILE

Three cases, each with the loss that is at hand and with the one that docs/what-your-loss-measures.md advises: sequences
of unlike lengths, mixup, and label smoothing. What is trained is the same in both; what ``decide`` is told differs.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from batch_sampler_attn import BatchAttentionSchedule
from benchmarks.environment import describe_environment
from benchmarks.studies.digits import BATCH_SIZE, LEARNING_RATE, load_training_images, make_model
from benchmarks.studies.raw_records import keep

SEQUENCES = 32 * 40
SHORTEST, LONGEST = 10, 100
MIXUP_ALPHA = 0.4
SMOOTHING = 0.1
CLASSES = 10

# One batch, what it is selected by if by nothing better, and from it the loss to train on and the loss to report.
Case = tuple[Callable[[], Iterable[Any]], Callable[[Any], float], Callable[[Any], tuple[Tensor, Tensor]]]


def lengths(seed: int, *, is_advised: bool) -> tuple[nn.Module, Case]:
    """Characters of Python's manual in sequences of unlike lengths, batched by length: sum over tokens, or mean."""
    random = torch.Generator().manual_seed(seed)
    text = torch.frombuffer(
        bytearray("".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")), dtype=torch.uint8
    )
    sizes = torch.randint(SHORTEST, LONGEST + 1, (SEQUENCES,), generator=random)
    starts = torch.randint(0, len(text) - LONGEST - 1, (SEQUENCES,), generator=random)
    torch.manual_seed(seed)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(128, 32), "recur": nn.GRU(32, 64, batch_first=True), "predict": nn.Linear(64, 128)}
    )
    by_length = sizes.argsort()

    def batches() -> Iterable[Tensor]:
        buckets = by_length.split(BATCH_SIZE)
        return [buckets[place] for place in torch.randperm(len(buckets), generator=random)]

    def length(chosen: Tensor) -> float:
        return sizes[chosen].float().mean().item()

    def losses(chosen: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(int(sizes[chosen].max()) + 1)
        tokens = text[starts[chosen, None] + positions].long()
        hidden, _ = model["recur"](model["embed"](tokens[:, :-1]))
        of_token = functional.cross_entropy(model["predict"](hidden).transpose(1, 2), tokens[:, 1:], reduction="none")
        is_there = positions[:-1] < sizes[chosen, None]
        total = (of_token * is_there).sum()
        return total / is_there.sum(), (total / is_there.sum()) if is_advised else total / len(chosen)

    return model, (batches, length, losses)


def mixup(seed: int, *, is_advised: bool) -> tuple[nn.Module, Case]:
    """Digits, two batches mixed: the mixed loss, or the loss of the batch as it is."""
    model, images, labels, random = _digits(seed)
    torch.manual_seed(seed)
    share = torch.distributions.Beta(MIXUP_ALPHA, MIXUP_ALPHA)

    def batches() -> Iterable[tuple[Tensor, Tensor, float]]:
        for chosen in torch.randperm(len(images), generator=random).split(BATCH_SIZE):
            others = chosen[torch.randperm(len(chosen), generator=random)]
            yield chosen, others, share.sample().item()

    def mixed(batch: tuple[Tensor, Tensor, float]) -> float:
        return min(batch[2], 1 - batch[2])

    def losses(batch: tuple[Tensor, Tensor, float]) -> tuple[Tensor, Tensor]:
        chosen, others, lam = batch
        outputs = model(lam * images[chosen] + (1 - lam) * images[others])
        cross_entropy = functional.cross_entropy
        loss = lam * cross_entropy(outputs, labels[chosen]) + (1 - lam) * cross_entropy(outputs, labels[others])
        if not is_advised:
            return loss, loss
        with torch.no_grad():
            return loss, cross_entropy(model(images[chosen]), labels[chosen])

    return model, (batches, mixed, losses)


def smoothing(seed: int, *, is_advised: bool) -> tuple[nn.Module, Case]:
    """Digits with label smoothing: the loss, or the loss less the least that it can be."""
    model, images, labels, random = _digits(seed)
    true, other = 1 - SMOOTHING + SMOOTHING / CLASSES, SMOOTHING / CLASSES
    floor = -true * math.log(true) - (CLASSES - 1) * other * math.log(other)

    def batches() -> Iterable[Tensor]:
        yield from torch.randperm(len(images), generator=random).split(BATCH_SIZE)

    def losses(chosen: Tensor) -> tuple[Tensor, Tensor]:
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=SMOOTHING)
        return loss, loss - floor if is_advised else loss

    return model, (batches, lambda _: math.nan, losses)


CASES = {"lengths": lengths, "mixup": mixup, "smoothing": smoothing}


def train(case: str, seed: int, epochs: int, *, is_advised: bool) -> dict[str, Any]:
    """Train once; the record says how many batches were repeated, and what sets them apart."""
    model, (batches, describe, losses) = CASES[case](seed, is_advised=is_advised)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if case == "lengths" else LEARNING_RATE)
    schedule = BatchAttentionSchedule(k=1.2)
    repeated: list[float] = []
    others: list[float] = []
    for epoch in range(epochs):
        for batch in schedule.attend(list(batches())):
            is_first = schedule.visits == 0
            loss, reported = losses(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.decide(reported)
            if is_first and epoch > 0:
                (repeated if schedule.visits else others).append(describe(batch))
    means = [
        statistics.fmean(values) if values and not math.isnan(values[0]) else None for values in (repeated, others)
    ]
    return {
        "case": case,
        "reported": "advised" if is_advised else "at hand",
        "seed": seed,
        "epochs": epochs,
        "batches": len(repeated) + len(others),
        "repeated": len(repeated),
        "mean_of_repeated": means[0],
        "mean_of_others": means[1],
    }


def _digits(seed: int) -> tuple[nn.Module, Tensor, Tensor, torch.Generator]:
    images, labels = load_training_images()
    return make_model(seed), images, labels, torch.Generator().manual_seed(seed)


def measure(record: Path, *, seeds: int = 3, epochs: int = 12) -> None:
    """Measure and record.

    Args:
        record: Gets one JSON line a run.
        seeds: How many.
        epochs: Of every run.
    """
    torch.set_num_threads(1)
    environment = describe_environment("cpu")
    runs = [(case, way, seed) for case in CASES for way in (False, True) for seed in range(seeds)]
    lines = (train(case, seed, epochs, is_advised=way) for case, way, seed in track(runs, description="training"))
    keep(record, lines, environment)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
