"""What does the threshold select, where batches differ by construction?

    python -m benchmarks.studies.loss_selection --record FILE

Three cases, each with the loss that is at hand and with the one that docs/what-your-loss-measures.md advises: sequences
of unlike lengths, mixup, and label smoothing. What is trained is the same in both; what ``decide`` receives differs.
"""

from __future__ import annotations

import itertools
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
from torch.nn.functional import cross_entropy

from batch_sampler_attn import BatchAttentionSchedule
from benchmarks.environment import describe_environment
from benchmarks.studies.digits import BATCH_SIZE, LEARNING_RATE, load_training_images, make_model
from benchmarks.studies.recording import keep

SEQUENCES = 32 * 40
SHORTEST, LONGEST = 10, 100
SMOOTHING, CLASSES = 0.1, 10

# The batches of an epoch, a number by which batches differ, and the losses of a batch: trained on, at hand, advised.
Case = tuple[
    nn.Module,
    Callable[[], Iterable[Any]],
    Callable[[Any], float],
    Callable[[Any], tuple[Tensor, Tensor, Callable[[], Tensor]]],
]


def lengths(seed: int) -> Case:
    """Characters of Python's manual in sequences of unlike lengths, batched by length: sum over tokens, or mean."""
    rng = torch.Generator().manual_seed(seed)
    manual = "".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    text = torch.frombuffer(bytearray(manual), dtype=torch.uint8)
    sizes = torch.randint(SHORTEST, LONGEST + 1, (SEQUENCES,), generator=rng)
    starts = torch.randint(0, len(text) - LONGEST - 1, (SEQUENCES,), generator=rng)
    torch.manual_seed(seed)
    model = nn.ModuleDict(
        {"embed": nn.Embedding(128, 32), "recur": nn.GRU(32, 64, batch_first=True), "predict": nn.Linear(64, 128)}
    )
    buckets = sizes.argsort().split(BATCH_SIZE)

    def losses(chosen: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        positions = torch.arange(int(sizes[chosen].max()) + 1)
        tokens = text[starts[chosen, None] + positions].long()
        hidden, _ = model["recur"](model["embed"](tokens[:, :-1]))
        of_token = cross_entropy(model["predict"](hidden).transpose(1, 2), tokens[:, 1:], reduction="none")
        is_token = positions[:-1] < sizes[chosen, None]
        total = (of_token * is_token).sum()
        mean = total / is_token.sum()
        return mean, total / len(chosen), lambda: mean

    def batches() -> list[Tensor]:
        return [buckets[place] for place in torch.randperm(len(buckets), generator=rng)]

    return model, batches, lambda chosen: sizes[chosen].float().mean().item(), losses


def mixup(seed: int) -> Case:
    """Digits, two batches mixed: the mixed loss, or the loss of the batch as it is."""
    images, labels = load_training_images()
    model, rng = make_model(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    share = torch.distributions.Beta(0.4, 0.4)

    def batches() -> Iterable[tuple[Tensor, Tensor, float]]:
        for chosen in torch.randperm(len(images), generator=rng).split(BATCH_SIZE):
            yield chosen, chosen[torch.randperm(len(chosen), generator=rng)], share.sample().item()

    def losses(batch: tuple[Tensor, Tensor, float]) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        chosen, others, lam = batch
        outputs = model(lam * images[chosen] + (1 - lam) * images[others])
        loss = lam * cross_entropy(outputs, labels[chosen]) + (1 - lam) * cross_entropy(outputs, labels[others])
        return loss, loss, lambda: cross_entropy(model(images[chosen]), labels[chosen])

    return model, batches, lambda batch: min(batch[2], 1 - batch[2]), losses


def smoothing(seed: int) -> Case:
    """Digits with label smoothing: the loss, or the loss minus the least that it can be."""
    images, labels = load_training_images()
    model, rng = make_model(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    true, other = 1 - SMOOTHING + SMOOTHING / CLASSES, SMOOTHING / CLASSES
    floor = -true * math.log(true) - (CLASSES - 1) * other * math.log(other)

    def losses(chosen: Tensor) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        loss = cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=SMOOTHING)
        return loss, loss, lambda: loss - floor

    return model, lambda: torch.randperm(len(images), generator=rng).split(BATCH_SIZE), lambda _: math.nan, losses


CASES = {"lengths": lengths, "mixup": mixup, "smoothing": smoothing}


def train(case: str, reported: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; the record says how many batches were repeated, and by what they differ from the others."""
    model, batches, describe, losses = CASES[case](seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3 if case == "lengths" else LEARNING_RATE)
    schedule = BatchAttentionSchedule(k=1.2)
    numbers: dict[bool, list[float]] = {True: [], False: []}
    for epoch in range(epochs):
        for batch in schedule.attend(list(batches())):
            is_first = schedule.visits == 0
            loss, at_hand, advised = losses(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                schedule.decide(at_hand if reported == "at hand" else advised())
            if is_first and epoch > 0:
                numbers[schedule.visits > 0].append(describe(batch))

    def mean(values: list[float]) -> float | None:
        return statistics.fmean(values) if values and not math.isnan(values[0]) else None

    return {
        **{"case": case, "reported": reported, "seed": seed, "epochs": epochs},
        **{"batches": len(numbers[True]) + len(numbers[False]), "repeated": len(numbers[True])},
        **{"mean_of_repeated": mean(numbers[True]), "mean_of_others": mean(numbers[False])},
    }


def measure(record: Path, *, seeds: int = 3, epochs: int = 12) -> None:
    """Train with so many seeds and epochs, and append a JSON line a run to ``record``."""
    torch.set_num_threads(1)
    runs = list(itertools.product(CASES, ("at hand", "advised"), range(seeds)))
    keep(record, (train(*run, epochs) for run in track(runs, description="training")), describe_environment("cpu"))


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
