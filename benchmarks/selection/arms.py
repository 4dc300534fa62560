"""What each arm trains on: a generator that yields the batch of each update and receives the losses of its samples."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from batch_sampler_attn import BatchAttentionSchedule, Decision, SampleAttention

# The paper's K, section 4.2.
K = 1.2
# InfoBatch's published probability of pruning a sample (Qin et al., 2024).
_PRUNED = {"prune_probability": 0.5}
_POOLED = {"k": K, "max_visits": 2}
_RANDOM = {"select": "random"}
# What ``SampleAttention`` takes beyond the options of plain training.
_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain_longer": {},
    "left_out": _PRUNED,
    "left_out_weighted": _PRUNED | {"weighted": True},
    "left_out_random": _PRUNED | _RANDOM,
    "both": _PRUNED | _POOLED,
    "both_random": _PRUNED | _POOLED | _RANDOM,
    "pooled": _POOLED,
    "pooled_random": _POOLED | _RANDOM,
}
# Arms that repeat whole batches, and the share of repeats that they may make at most.
_REPEATS = {"repeated": None, "repeated_fresh": None, "repeated_budget": 0.15}
BY_FREQUENCY: dict[str, dict[str, Any]] = {"sqrt_frequency": {}, "sqrt_frequency+left_out": _PRUNED}
# The arms of each study, in the order in which they are run.
ARMS = {
    "images": (*_OPTIONS, *_REPEATS, *BY_FREQUENCY),
    "kinds": ("plain", "left_out", "left_out_weighted", "left_out_random"),
}
# Times as many updates as other arms: what Selective Backprop costs, which runs the network on two more batches before
# each update between half and nine tenths of training. A backward pass costs about two forward ones.
LONGER = {"plain_longer": 1 + 0.4 * 2 / 3}
# In ``kinds``, the run of the same seed and rate that says how many samples another prunes.
SOURCES = {"left_out_random": "left_out"}


class Batch(NamedTuple):
    """What an update trains on."""

    indices: Tensor  # (batch,), into the training data
    draw: int  # seeds the augmentation
    weights: Tensor | None = None  # (batch,), of the losses; None for equal weights


# It returns how many updates were repeats, or on pooled samples, and how many samples each pass pruned (``"pruned"``).
Batches: TypeAlias = Generator[Batch, Tensor, tuple[int, Mapping[str, Any]]]


@dataclass
class Passes:
    """A sampler whose passes are drawn by their number: every sample once, or as many draws by weight."""

    samples: int
    seed: int
    cumulative_weights: list[float] | None = None
    number: int = 0

    def set_epoch(self, number: int) -> None:
        """Set the number of the next pass."""
        self.number = number

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        if self.cumulative_weights is None:
            return iter(np.random.default_rng([self.seed, self.number]).permutation(self.samples).tolist())
        drawing = random.Random(f"{self.seed}, frequency, {self.number}")
        return iter(drawing.choices(range(self.samples), cum_weights=self.cumulative_weights, k=self.samples))


def make_arm(arm: str, labels: Tensor, batch_size: int, updates: int, seed: int, **options: Any) -> Batches:
    """One of ``ARMS``; with options of ``SampleAttention`` besides, such as the doses that a random twin follows."""
    options = {"prune_probability": 0.0, **(_OPTIONS | BY_FREQUENCY).get(arm, {}), **options}
    if arm in BY_FREQUENCY:
        # The square root of the inverse frequency of a sample's label.
        weights = torch.bincount(labels)[labels].double().rsqrt()
        options["sampler"] = Passes(len(labels), seed, (weights / weights.sum()).cumsum(0).tolist())
    epoch_length = -(-len(labels) // batch_size)
    epochs = -(-updates // epoch_length)
    # Where samples are pruned, the last 15 % of the epochs are on all data; in InfoBatch it is 12.5 %.
    attention = SampleAttention(len(labels), batch_size, seed=seed, epochs=epochs, final_full_share=0.15, **options)
    if arm in _REPEATS:
        schedule = BatchAttentionSchedule(K, epoch_length=epoch_length, budget=_REPEATS[arm])
        return _repeat(_attend(attention, updates), updates, schedule, is_fresh=arm == "repeated_fresh")
    return _attend(attention, updates)


def _attend(attention: SampleAttention, updates: int) -> Batches:
    """Attention to samples; plain training if it prunes and pools none."""
    repeats = update = 0
    while True:
        for indices in attention.attend():
            weights = torch.tensor(attention.weights) if attention.options.weighted else None
            losses = yield Batch(torch.tensor(indices), update, weights)
            attention.report(losses)
            update += 1
            if update == updates:
                return repeats, attention.doses
        repeats += attention.last_summary.extra_updates


def _repeat(plain: Batches, updates: int, schedule: BatchAttentionSchedule, *, is_fresh: bool) -> Batches:
    """The paper's rule on whole batches, where repeats count as updates; a fresh repeat is augmented differently."""
    batch, repeats = next(plain), 0
    for update in range(updates):
        losses = yield batch._replace(draw=update) if is_fresh else batch
        is_repeated = schedule.decide(losses.mean()) is Decision.REPEAT
        repeats += is_repeated
        if not is_repeated and update + 1 < updates:
            batch = plain.send(losses)._replace(draw=update + 1)
    return repeats, {"pruned": []}
