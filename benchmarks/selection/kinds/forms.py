"""Forms of leaving samples out: those of ``SampleAttention``, and experimental ones that are in no product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.selection.arms import FULL_SHARE, PRUNE_PROBABILITY, Samples
from benchmarks.selection.kinds.data import Setting
from benchmarks.selection.records import Run

# How much of the score before a batch's mean loss leaves.
BATCH_MEAN_MEMORY = 0.5


class Batch(NamedTuple):
    """What an update trains on.

    Attributes:
        indices: (batch,).
        weights: (batch,), of the losses; None for all alike.
        progress: The share of training before it.
    """

    indices: Tensor
    weights: Tensor | None
    progress: float


class Orders:
    """The order of each pass, the same for every arm of a seed."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples, self._seed, self._number = samples, seed, 0

    def set_epoch(self, number: int) -> None:
        """The number of the pass that is asked for next."""
        self._number = number

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self._seed, self._number]).permutation(self._samples).tolist()


class Form:
    """Well-fitted samples are left out of a pass half the time, in forms that ``SampleAttention`` does not have.

    A sample that two passes bring into one batch counts once there.

    Args:
        samples: In the training set.
        batch_size: Samples in a batch.
        epochs: Of the whole training.
        seed: Of orders and of what is left out.
        score: Well fitted is what is below the mean of the last epoch: "loss", the last loss of a sample; or
            "batch_mean", an exponential mean of the mean losses of the batches that a sample was in, and well fitted
            is what is below the mean score.
        trims: Whether all suspects are left out too, from the third epoch on.
        weight: Of well-fitted samples that stay, over that of the others: 2 keeps the expected gradient.
        saves: Whether an epoch is one pass, with fewer updates.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        score: str = "loss",
        trims: bool = False,
        weight: float = 1.0,
        saves: bool = False,
    ) -> None:
        self._size, self._epochs, self._score, self._trims = batch_size, epochs, score, trims
        self._weight, self._saves = weight, saves
        self._orders, self._rng = Orders(samples, seed), np.random.default_rng([seed, 1])
        self._updates = -(-samples // batch_size)
        self._first_full = epochs - max(1, int(epochs * FULL_SHARE + 0.5))
        self._scores = np.full(samples, np.nan)
        self._sums, self._visits = np.zeros(samples), np.zeros(samples, dtype=np.int64)
        self._indices = np.zeros(0, dtype=np.int64)
        self._epoch_losses: list[NDArray[np.float64]] = []
        self._mean_loss = np.nan
        self.epoch = 0
        # How many samples each pass left out.
        self.doses: dict[str, Any] = {"pruned": []}

    def __iter__(self) -> Iterator[Batch]:
        number, rest, weights = 0, np.zeros(0, dtype=np.int64), np.zeros(0)
        for epoch in range(self._epochs):
            self.epoch = epoch
            if self._saves:
                order, weighted = self._begin_pass(number)
                number += 1
                parts = -(-len(order) // self._size)
                for part, (indices, their) in enumerate(
                    zip(np.array_split(order, parts), np.array_split(weighted, parts), strict=True)
                ):
                    yield self._hand_out(indices, their, (self.epoch + part / parts) / self._epochs)
            else:
                if self.epoch == self._first_full:
                    rest, weights = rest[:0], weights[:0]
                for update in range(self._updates):
                    while len(rest) < self._size:
                        order, weighted = self._begin_pass(number)
                        number += 1
                        rest, weights = np.concatenate([rest, order]), np.concatenate([weights, weighted])
                    progress = (self.epoch + update / self._updates) / self._epochs
                    yield self._hand_out(rest[: self._size], weights[: self._size], progress)
                    rest, weights = rest[self._size :], weights[self._size :]
            self._mean_loss = float(np.concatenate(self._epoch_losses).mean())
            self._epoch_losses = []

    def _hand_out(self, indices: NDArray[np.int64], weights: NDArray[np.float64], progress: float) -> Batch:
        self._indices = indices
        return Batch(
            torch.from_numpy(indices), None if self._weight == 1 else torch.from_numpy(weights).float(), progress
        )

    def _begin_pass(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The samples of a pass in their order, and their weights."""
        self._orders.set_epoch(number)
        order = np.array(list(self._orders))
        fitted = gone = np.zeros(len(order), dtype=bool)
        if 0 < self.epoch < self._first_full:
            # A sample without a score is not below it.
            limit = self._mean_loss if self._score == "loss" else np.nanmean(self._scores)
            fitted = self._scores[order] < limit
            gone = fitted & (self._rng.random(len(order)) < PRUNE_PROBABILITY)
            if self._trims and self.epoch >= 2:
                gone |= self.suspects()[order]
        self.doses["pruned"].append(int(gone.sum()))
        weights = np.where(fitted, self._weight, 1.0)[~gone]
        # Where updates are saved, the steps are longer instead, as in InfoBatch.
        return order[~gone], weights if self._saves else weights / weights.mean()

    def suspects(self) -> NDArray[np.bool_]:
        """Outliers among the mean losses of the samples, by Tukey's rule: above Q3 + 1.5 (Q3 - Q1)."""
        means = self._sums / np.maximum(self._visits, 1)
        low, high = np.quantile(means, [0.25, 0.75])
        return np.asarray(means > high + 1.5 * (high - low))

    def report(self, batch_losses: Tensor) -> None:
        """The losses of the last batch."""
        at, losses = self._indices, batch_losses.double().numpy()
        self._epoch_losses.append(losses)
        self._sums[at] += losses
        self._visits[at] += 1
        if self._score == "loss":
            self._scores[at] = losses
        else:
            before = np.where(np.isnan(self._scores[at]), losses.mean(), self._scores[at])
            self._scores[at] = BATCH_MEAN_MEMORY * before + (1 - BATCH_MEAN_MEMORY) * losses.mean()


# In the order in which they are run, the most telling first: those of ``SampleAttention``, and experimental ones.
ARMS: dict[str, dict[str, Any]] = {
    "plain": {"prune_probability": 0.0},
    "left_out": {},
    "left_out_weighted": {"weighted": True},
    "left_out_random": {},
    "trimmed": {"trims": True},
    "batch_mean": {"score": "batch_mean"},
    "saving": {"saves": True, "weight": 2.0},
    "plain_short": {"prune_probability": 0.0},
    "half_weighted": {"weight": 2**0.5},
}
_EXPERIMENTAL = ("trimmed", "batch_mean", "saving", "half_weighted")
# The run of the same seed and rate that another depends on.
SOURCES = {"left_out_random": "left_out", "plain_short": "saving"}


def make_batches(
    arm: str, samples: int, setting: Setting, seed: int, source: Run | None
) -> tuple[Form | Samples, Iterator[Batch]]:
    """One of ``ARMS``, which is told the losses, and its batches.

    Args:
        arm: Its name.
        samples: In the training set.
        setting: Says how many epochs, of which size of batch.
        seed: Of orders and of what is left out.
        source: The run that it depends on.
    """
    options = ARMS[arm]
    if arm in _EXPERIMENTAL:
        form = Form(samples, setting.batch_size, setting.epochs, seed, **options)
        return form, iter(form)
    updates = setting.epochs * -(-samples // setting.batch_size)
    if source is not None:
        options = options | ({"select": source.doses} if arm == "left_out_random" else {})
        updates = source.updates
    attention = Samples(samples, setting.batch_size, updates, seed, sampler=Orders(samples, seed), **options)
    choices = (attention.choose(update) for update in range(updates))
    return attention, (Batch(each.indices, each.weights, each.draw / updates) for each in choices)
