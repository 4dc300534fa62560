"""What each arm trains on: a generator that yields the batch of each update and receives the losses of its samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from batch_sampler_attn import BatchAttentionSchedule, Decision, SampleAttention

# The paper's K, section 4.2.
K = 1.2
# Composer's defaults for Selective Backprop (Jiang et al., 2019): half is kept, between these shares of training.
KEPT_SHARE, SELECTING = 0.5, (0.5, 0.9)
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
    "selective_backprop": {},
}
# Arms that repeat whole batches, and the share of repeats that they may make at most.
_REPEATS = {"repeated": None, "repeated_fresh": None, "repeated_budget": 0.15}
BY_FREQUENCY: dict[str, dict[str, Any]] = {"sqrt_frequency": {}, "sqrt_frequency+left_out": _PRUNED}
# The arms of each study, in the order in which they are run.
ARMS = {
    "images": (*_OPTIONS, *_REPEATS, *BY_FREQUENCY),
    "kinds": ("plain", "left_out", "left_out_weighted", "left_out_random"),
}
# Selective Backprop runs the network on two more batches before an update that selects. A backward pass costs about two
# forward ones, so that plain training makes so many times as many updates at its cost.
LONGER = {"plain_longer": 1 + (SELECTING[1] - SELECTING[0]) * 2 / 3}
# In ``kinds``, the run of the same seed and rate that says how many samples another prunes.
SOURCES = {"left_out_random": "left_out"}


class Batch(NamedTuple):
    """What an update trains on."""

    indices: Tensor  # (batch,), into the training data
    draw: int  # seeds the augmentation
    weights: Tensor | None = None  # (batch,), of the losses; None for equal weights
    keep: Callable[[Tensor], Tensor] | None = None  # which samples to train on, from their losses; None for all


# It returns how many updates were repeats, or on pooled samples, and how many samples each pass pruned (``"pruned"``).
Batches: TypeAlias = Generator[Batch, Tensor, tuple[int, Mapping[str, Any]]]


@dataclass
class Passes:
    """A sampler whose passes are drawn by their number."""

    samples: int
    draw: Callable[[int], list[int]]
    number: int = 0

    def set_epoch(self, number: int) -> None:
        """Set the number of the next pass."""
        self.number = number

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw(self.number))


def random_order(samples: int, seed: int) -> Passes:
    """Every sample once a pass."""
    return Passes(samples, lambda number: np.random.default_rng([seed, number]).permutation(samples).tolist())


def by_frequency(labels: Tensor, seed: int) -> Passes:
    """As many draws as samples, with probabilities by the square root of the inverse frequency of their labels."""
    samples, weights = range(len(labels)), torch.bincount(labels)[labels].double().rsqrt()
    cumulative = (weights / weights.sum()).cumsum(0).tolist()

    def draw(number: int) -> list[int]:
        return random.Random(f"{seed}, frequency, {number}").choices(samples, cum_weights=cumulative, k=len(samples))

    return Passes(len(samples), draw)


def make_arm(
    arm: str,
    labels: Tensor,
    batch_size: int,
    updates: int,
    seed: int,
    *,
    sampler: Passes | None = None,
    doses: Mapping[str, Any] | None = None,
) -> Batches:
    """One of ``ARMS``. A random twin follows the doses; without them, it prunes as many as it would by loss."""
    options = {"prune_probability": 0.0, "sampler": sampler} | (_OPTIONS | BY_FREQUENCY).get(arm, {})
    if doses is not None:
        options["select"] = doses
    if arm in BY_FREQUENCY:
        options["sampler"] = by_frequency(labels, seed)
    epoch_length, selects = -(-len(labels) // batch_size), arm == "selective_backprop"
    epochs = -(-(2 * updates if selects else updates) // epoch_length)
    # Where samples are pruned, the last 15 % of the epochs are on all data; in InfoBatch it is 12.5 %.
    attention = SampleAttention(len(labels), batch_size, seed=seed, epochs=epochs, final_full_share=0.15, **options)
    if selects:
        return _select(attention, updates, seed)
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


def _select(attention: SampleAttention, updates: int, seed: int) -> Batches:
    """Selective Backprop, as Composer's with ``interrupt=0``: while it selects, half of two batches is trained on.

    A sample's probability grows with the percentile of its loss, to the power of 1 over the kept share, less 1.
    """
    rng, pruned = np.random.default_rng([seed, 7]), list[int]()

    def take() -> Iterator[Tensor]:
        while True:
            for indices in attention.attend():
                yield torch.tensor(indices)
                # Plain training does not depend on its losses.
                attention.report(torch.zeros(len(indices)))

    def keep(losses: Tensor) -> Tensor:
        samples = len(losses)
        chances = ((np.arange(samples) + 0.5) / samples) ** (1 / KEPT_SHARE - 1)
        places = rng.choice(samples, int(samples * KEPT_SHARE), replace=False, p=chances / chances.sum())
        pruned.append(samples - len(places))
        return losses.argsort()[torch.from_numpy(places)]

    plain = take()
    for update in range(updates):
        if SELECTING[0] <= update / updates < SELECTING[1]:
            yield Batch(torch.cat([next(plain), next(plain)]), update, keep=keep)
        else:
            yield Batch(next(plain), update)
    return 0, {"pruned": pruned}
