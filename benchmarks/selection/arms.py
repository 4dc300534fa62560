"""What each arm trains on: a generator that yields the batch of each update and is sent the losses of its samples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batch_sampler_attn import BatchAttentionSchedule, Decision, SampleAttention
from benchmarks.selection.choices import Batch, Batches, Counts, Rule
from benchmarks.selection.peers import composers_rule, infobatch

# The paper's K, section 4.2.
K = 1.2
# InfoBatch's published probability of pruning a sample (Qin et al., 2024).
PRUNE_PROBABILITY = 0.5
# The default of SampleAttention, in whole epochs; InfoBatch's published share is 0.125.
FULL_SHARE = 0.15
MAX_VISITS = 2
BUDGET = 0.15
# Composer's defaults for Selective Backprop (Jiang et al., 2019): half is kept, between these shares of training.
KEPT_SHARE, SELECTING = 0.5, (0.5, 0.9)
# How much of a sample's score remains after each batch that it is in, for ``batch_mean``.
BATCH_MEAN_MEMORY = 0.5

_PRUNED = {"prune_probability": PRUNE_PROBABILITY}
_POOLED = {"k": K, "max_visits": MAX_VISITS}
_RANDOM = {"select": "random"}
# What ``SampleAttention`` takes beyond the options of plain training.
_OPTIONS: dict[str, dict[str, Any]] = {
    "left_out": _PRUNED,
    "left_out_weighted": _PRUNED | {"weighted": True},
    "left_out_random": _PRUNED | _RANDOM,
    "both": _PRUNED | _POOLED,
    "both_random": _PRUNED | _POOLED | _RANDOM,
    "pooled": _POOLED,
    "pooled_random": _POOLED | _RANDOM,
    "sqrt_frequency+left_out": _PRUNED,
}
# Forms that ``SampleAttention`` does not have.
_FORMS: dict[str, dict[str, Any]] = {
    "trimmed": {"trims": True},
    "batch_mean": {"score": "batch_mean"},
    "saving": {"saves": True, "weight": 2.0},
    "half_weighted": {"weight": 2**0.5},
}
_REPEATS: dict[str, tuple[bool, float | None]] = {
    "repeated": (False, None),
    "repeated_fresh": (True, None),
    "repeated_budget": (False, BUDGET),
}
BY_FREQUENCY = ("sqrt_frequency", "sqrt_frequency+left_out")
# The arms of each study, in the order in which they are run.
ARMS = {
    "images": (
        *("plain", "plain_longer", "left_out", "left_out_weighted", "left_out_random", "both", "both_random"),
        *("pooled", "pooled_random", "selective_backprop", "selective_backprop_composer", "infobatch"),
        *_REPEATS,
        *BY_FREQUENCY,
    ),
    "kinds": (
        *("plain", "left_out", "left_out_weighted", "left_out_random", "trimmed"),
        *("batch_mean", "saving", "plain_short", "half_weighted"),
    ),
}
# Selective Backprop runs the network on two more batches before an update that selects. A backward pass costs about two
# forward ones, so that plain training makes so many times as many updates at its cost.
LONGER = {"plain_longer": 1 + (SELECTING[1] - SELECTING[0]) * 2 / 3}
# In ``kinds``, the run of the same seed and rate that another takes its pruning, or its number of updates, from.
SOURCES = {"left_out_random": "left_out", "plain_short": "saving"}


class Passes:
    """A sampler whose passes are made from their number."""

    def __init__(self, samples: int, draw: Callable[[int], list[int]]) -> None:
        self._samples, self._draw, self._number = samples, draw, 0

    def set_epoch(self, number: int) -> None:
        """Set the number of the next pass."""
        self._number = number

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        yield from self._draw(self._number)


def random_order(samples: int, seed: int) -> Passes:
    """Every sample once a pass."""
    return Passes(samples, lambda number: np.random.default_rng([seed, number]).permutation(samples).tolist())


def by_frequency(labels: Tensor, seed: int) -> Passes:
    """As many draws as samples, with probabilities by the square root of the inverse frequency of their labels."""
    weights = torch.bincount(labels)[labels].double().rsqrt()
    cumulative, samples = (weights / weights.sum()).cumsum(0).tolist(), len(labels)

    def draw(number: int) -> list[int]:
        rng = random.Random(f"{seed}, frequency, {number}")
        return rng.choices(range(samples), cum_weights=cumulative, k=samples)

    return Passes(samples, draw)


def make_arm(
    arm: str,
    labels: Tensor,
    batch_size: int,
    updates: int,
    seed: int,
    counts: Counts,
    *,
    sampler: Passes | None = None,
    doses: Mapping[str, Any] | None = None,
) -> Batches:
    """One of ``ARMS``, for training data with these labels, (samples, ...); it fills the counts.

    A sampler orders the passes in place of ``SampleAttention``. Doses say how many samples a random twin prunes in each
    pass; without them it prunes as many as it would by loss.
    """
    samples = len(labels)
    an_epoch = -(-samples // batch_size)
    if arm == "infobatch":
        return infobatch(samples, batch_size, updates, seed, counts)
    if arm in _FORMS:
        return _prune_in_form(samples, batch_size, updates // an_epoch, seed, counts, **_FORMS[arm])
    selects = arm.startswith("selective_backprop")
    options: dict[str, Any] = {"prune_probability": 0.0, "weighted": False, "sampler": sampler} | _OPTIONS.get(arm, {})
    if doses is not None:
        options["select"] = doses
    if arm in BY_FREQUENCY:
        options["sampler"] = by_frequency(labels, seed)
    epochs = -(-(2 * updates if selects else updates) // an_epoch)
    attention = SampleAttention(samples, batch_size, seed=seed, epochs=epochs, final_full_share=FULL_SHARE, **options)
    if selects:
        rule = our_rule if arm == "selective_backprop" else composers_rule
        return _select(attention, updates, rule(seed), counts)
    plain = _attend(attention, updates, counts)
    if arm in _REPEATS:
        is_fresh, budget = _REPEATS[arm]
        schedule = BatchAttentionSchedule(K, epoch_length=an_epoch, budget=budget)
        return _repeat(plain, updates, schedule, counts, is_fresh=is_fresh)
    return plain


def _epochs(attention: SampleAttention, counts: Counts) -> Iterator[list[int]]:
    while True:
        yield from attention.attend()
        counts.repeats += attention.last_summary.extra_updates


def _attend(attention: SampleAttention, updates: int, counts: Counts) -> Batches:
    """Attention to samples; plain training if it prunes and pools none."""
    for update, indices in enumerate(itertools.islice(_epochs(attention, counts), updates)):
        weights = torch.tensor(attention.weights) if attention.options.weighted else None
        losses = yield Batch(torch.tensor(indices), update, update / updates, weights)
        attention.report(losses)
    counts.doses = attention.doses


def _repeat(
    plain: Batches, updates: int, schedule: BatchAttentionSchedule, counts: Counts, *, is_fresh: bool
) -> Batches:
    """The paper's rule on whole batches, where repeats count as updates; a fresh repeat is augmented differently."""
    batch = next(plain)
    for update in range(updates):
        batch = batch._replace(progress=update / updates)
        losses = yield batch._replace(draw=update) if is_fresh else batch
        is_repeated = schedule.decide(losses.mean()) is Decision.REPEAT
        counts.repeats += is_repeated
        if not is_repeated and update + 1 < updates:
            batch = plain.send(losses)._replace(draw=update + 1)


def our_rule(seed: int) -> Rule:
    """Select at every update of the share of training, which is Composer's rule with ``interrupt=0``.

    A sample's probability grows with the percentile of its loss, to the power of 1 over the kept share, less 1.
    """
    rng = np.random.default_rng([seed, 7])

    def selects(update: int, updates: int) -> bool:
        return SELECTING[0] <= update / updates < SELECTING[1]

    def keep(losses: Tensor) -> Tensor:
        samples = len(losses)
        chances = ((np.arange(samples) + 0.5) / samples) ** (1 / KEPT_SHARE - 1)
        places = rng.choice(samples, int(samples * KEPT_SHARE), replace=False, p=chances / chances.sum())
        return losses.argsort()[torch.from_numpy(places)]

    return selects, keep


def _select(attention: SampleAttention, updates: int, rule: Rule, counts: Counts) -> Batches:
    """Selective Backprop: two batches of plain training while the rule selects, of which it keeps half."""
    plain, (selects, keep_half) = _epochs(attention, counts), rule

    def take() -> Tensor:
        indices = torch.tensor(next(plain))
        # Plain training does not depend on its losses.
        attention.report(torch.zeros(len(indices)))
        return indices

    def keep(losses: Tensor) -> Tensor:
        kept = keep_half(losses)
        counts.doses["pruned"].append(len(losses) - len(kept))
        return kept

    for update in range(updates):
        batch = Batch(take(), update, update / updates)
        if selects(update, updates):
            batch = batch._replace(indices=torch.cat([batch.indices, take()]), keep=keep)
        yield batch


def _prune_in_form(
    samples: int,
    batch_size: int,
    epochs: int,
    seed: int,
    counts: Counts,
    *,
    score: str = "loss",
    trims: bool = False,
    weight: float = 1.0,
    saves: bool = False,
) -> Batches:
    """Prune well-fitted samples half the time. A sample that two passes bring into one batch counts once there.

    Well fitted is a last loss below the last epoch's mean, or for ``score="batch_mean"`` an exponential mean of the
    mean losses of a sample's batches that is below the mean over samples. If it ``trims``, outliers among mean losses,
    by Tukey's rule, are pruned too, from the third epoch on. ``weight`` is that of well-fitted samples that stay, over
    that of the others: 2 keeps the expected gradient. If it ``saves``, an epoch is one pass, with fewer updates.
    """
    orders, rng = random_order(samples, seed), np.random.default_rng([seed, 1])
    first_full = epochs - max(1, int(epochs * FULL_SHARE + 0.5))
    scores, mean_loss = np.full(samples, np.nan), np.nan
    sums, visits = np.zeros(samples), np.zeros(samples, dtype=np.int64)

    def begin_pass(epoch: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        orders.set_epoch(len(counts.doses["pruned"]))
        order = np.array(list(orders))
        fitted = gone = np.zeros(samples, dtype=bool)
        if 0 < epoch < first_full:
            # NaN, of a sample without a score, is not below the limit.
            fitted = scores[order] < (mean_loss if score == "loss" else np.nanmean(scores))
            gone = fitted & (rng.random(samples) < PRUNE_PROBABILITY)
            if trims and epoch >= 2:
                means = sums / np.maximum(visits, 1)
                low, high = np.quantile(means, [0.25, 0.75])
                gone |= (means > high + 1.5 * (high - low))[order]
        counts.doses["pruned"].append(int(gone.sum()))
        weights = np.where(fitted, weight, 1.0)[~gone]
        # Where updates are saved, the steps are longer instead, as in InfoBatch.
        return order[~gone], weights if saves else weights / weights.mean()

    rest, weights = np.zeros(0, dtype=np.int64), np.zeros(0)
    draws = itertools.count()
    for epoch in range(epochs):
        if saves:
            rest, weights = begin_pass(epoch)
        elif epoch == first_full:
            rest, weights = rest[:0], weights[:0]
        updates = -(-(len(rest) if saves else samples) // batch_size)
        epoch_losses = []
        for update in range(updates):
            # The batches of a saved pass are equal in size, but for one sample.
            size = -(-len(rest) // (updates - update)) if saves else batch_size
            while len(rest) < size:
                order, added = begin_pass(epoch)
                rest, weights = np.concatenate([rest, order]), np.concatenate([weights, added])
            (at, rest), (of_batch, weights) = np.split(rest, [size]), np.split(weights, [size])
            shown = None if weight == 1 else torch.from_numpy(of_batch).float()
            sent = yield Batch(torch.from_numpy(at), next(draws), (epoch + update / updates) / epochs, shown)
            losses = sent.double().numpy()
            epoch_losses.append(losses)
            sums[at] += losses
            visits[at] += 1
            if score == "loss":
                scores[at] = losses
            else:
                before = np.where(np.isnan(scores[at]), losses.mean(), scores[at])
                scores[at] = BATCH_MEAN_MEMORY * before + (1 - BATCH_MEAN_MEMORY) * losses.mean()
        mean_loss = float(np.concatenate(epoch_losses).mean())
