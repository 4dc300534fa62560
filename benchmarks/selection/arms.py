"""What each arm trains on. Every arm is asked for one batch an update, and told the losses of its samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batch_sampler_attn import BatchAttentionSchedule, Decision, SampleAttention
from benchmarks.selection.choices import Arm, Choice
from benchmarks.selection.infobatch import INFOBATCH_PACKAGE, InfoBatch, load_infobatch
from benchmarks.selection.selective import COMPOSER_PACKAGE, SELECTING, Composers, OurReading, Rule, load_composer

# The paper's K, section 4.2.
K = 1.2
# InfoBatch's published probability (Qin et al., 2024), whose pruning SampleAttention follows.
PRUNE_PROBABILITY = 0.5
# The default of SampleAttention, in whole epochs; InfoBatch's published share is 0.125.
FULL_SHARE = 0.15
MAX_VISITS = 2
BUDGET = 0.15


class Samples:
    """Attention to samples, and plain training as that without attention.

    Args:
        samples: In the training set.
        batch_size: Samples in a batch.
        updates: Of the whole training.
        seed: Of the order of passes, so that it is the same for every arm.
        weighted: As ``SampleAttention`` takes it.
        options: Others of ``SampleAttention``.
    """

    def __init__(
        self, samples: int, batch_size: int, updates: int, seed: int, *, weighted: bool = False, **options: Any
    ) -> None:
        an_epoch = -(-samples // batch_size)
        self.extra_updates = self.left_out = 0
        self._attention = SampleAttention(
            samples,
            batch_size,
            weighted=weighted,
            seed=seed,
            epochs=-(-updates // an_epoch),
            final_full_share=FULL_SHARE,
            **options,
        )
        self._batches = self._all_batches()

    def _all_batches(self) -> Iterator[list[int]]:
        while True:
            yield from self._attention.attend()
            self.extra_updates += self._attention.last_summary.extra_updates
            self.left_out += self._attention.last_summary.pruned

    def choose(self, update: int) -> Choice:
        """The next batch of ``SampleAttention``."""
        indices = torch.tensor(next(self._batches))
        weights = torch.tensor(self._attention.weights) if self._attention.options.weighted else None
        return Choice(indices, update, weights)

    def keep(self, losses: Tensor) -> Tensor:
        """All of them."""
        return torch.arange(len(losses))

    def report(self, losses: Tensor) -> None:
        """Told to ``SampleAttention``."""
        self._attention.report(losses)

    @property
    def doses(self) -> dict[str, Any]:
        """What ``select=`` of a random twin takes."""
        return self._attention.doses


class Repeats:
    """The paper's rule on whole batches, the repeats counted among the updates.

    Args:
        plain: Plain training, whose batches are repeated.
        fresh: Whether a repeat is augmented afresh.
        batches: In an epoch.
        budget: As ``BatchAttentionSchedule`` takes it.
    """

    def __init__(self, plain: Samples, *, fresh: bool, batches: int, budget: float | None = None) -> None:
        self.extra_updates = self.left_out = 0
        self._plain = plain
        self._fresh = fresh
        self._schedule = BatchAttentionSchedule(K, epoch_length=batches, budget=budget)
        self._choice: Choice | None = None

    def choose(self, update: int) -> Choice:
        """The same batch after a REPEAT, the next one of plain training otherwise."""
        if self._choice is None:
            self._choice = self._plain.choose(update)
        elif self._fresh:
            self._choice = self._choice._replace(draw=update)
        return self._choice

    def keep(self, losses: Tensor) -> Tensor:
        """All of them."""
        return torch.arange(len(losses))

    def report(self, losses: Tensor) -> None:
        """The mean is decided on."""
        if self._schedule.decide(losses.mean()) is Decision.REPEAT:
            self.extra_updates += 1
        else:
            self._choice = None
            self._plain.report(losses)


class SelectiveBackprop:
    """Looks at twice as many samples while a rule selects, and trains on the half that it keeps.

    Args:
        plain: Plain training, two of whose batches are looked at.
        updates: Of the whole training.
        rule: Says when, and which.
    """

    def __init__(self, plain: Samples, updates: int, rule: Rule) -> None:
        self.extra_updates = self.left_out = 0
        self._plain = plain
        self._updates = updates
        self._rule = rule

    def choose(self, update: int) -> Choice:
        """Two batches of plain training while it selects, one before and after."""
        first = self._take(update)
        if not self._rule.selects(update, self._updates):
            return first
        both = torch.cat([first.indices, self._take(update).indices])
        return Choice(both, update, looks_first=True)

    def _take(self, update: int) -> Choice:
        choice = self._plain.choose(update)
        # Nothing that plain training remembers depends on them.
        self._plain.report(torch.zeros(len(choice.indices)))
        return choice

    def keep(self, losses: Tensor) -> Tensor:
        """As many as a batch has."""
        kept = self._rule.keep(losses)
        self.left_out += len(losses) - len(kept)
        return kept

    def report(self, losses: Tensor) -> None:
        """Nothing is remembered."""


class FrequencySampler:
    """Passes of as many draws as there are samples, by the square root of the inverse frequency of their labels.

    Args:
        labels: (samples,).
        seed: Of the draws.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        counts = torch.bincount(labels)
        weights = counts[labels].double().rsqrt()
        self._weights = (weights / weights.sum()).cumsum(0).tolist()
        self._seed = seed
        self._pass = 0

    def set_epoch(self, number: int) -> None:
        """Which pass is about to begin."""
        self._pass = number

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}, frequency, {self._pass}")
        samples = len(self._weights)
        yield from rng.choices(range(samples), cum_weights=self._weights, k=samples)


class Peer(NamedTuple):
    """Somebody else's package, which the benchmarks do not bring.

    Attributes:
        package: Its name where packages are installed from.
        load: Imports it, or raises a ``PlanError``.
    """

    package: str
    load: Callable[[], object]


Make = Callable[[Tensor, int, int, int], Arm]


def _samples(**options: Any) -> Make:
    def make(labels: Tensor, batch_size: int, updates: int, seed: int) -> Arm:
        return Samples(len(labels), batch_size, updates, seed, **options)

    return make


def _repeats(*, fresh: bool, budget: float | None = None) -> Make:
    def make(labels: Tensor, batch_size: int, updates: int, seed: int) -> Arm:
        plain = Samples(len(labels), batch_size, updates, seed, prune_probability=0.0)
        return Repeats(plain, fresh=fresh, batches=-(-len(labels) // batch_size), budget=budget)

    return make


def _selective(rule: Callable[[int], Rule]) -> Make:
    def make(labels: Tensor, batch_size: int, updates: int, seed: int) -> Arm:
        plain = Samples(len(labels), batch_size, 2 * updates, seed, prune_probability=0.0)
        return SelectiveBackprop(plain, updates, rule(seed))

    return make


def _by_frequency(**options: Any) -> Make:
    def make(labels: Tensor, batch_size: int, updates: int, seed: int) -> Arm:
        return Samples(len(labels), batch_size, updates, seed, sampler=FrequencySampler(labels, seed), **options)

    return make


_POOL = {"k": K, "max_visits": MAX_VISITS}
ARMS: dict[str, Make] = {
    "plain": _samples(prune_probability=0.0),
    "plain_longer": _samples(prune_probability=0.0),
    "left_out": _samples(prune_probability=PRUNE_PROBABILITY),
    "left_out_weighted": _samples(prune_probability=PRUNE_PROBABILITY, weighted=True),
    "left_out_random": _samples(prune_probability=PRUNE_PROBABILITY, select="random"),
    "both": _samples(prune_probability=PRUNE_PROBABILITY, **_POOL),
    "both_random": _samples(prune_probability=PRUNE_PROBABILITY, select="random", **_POOL),
    "pooled": _samples(prune_probability=0.0, **_POOL),
    "pooled_random": _samples(prune_probability=0.0, select="random", **_POOL),
    "selective_backprop": _selective(OurReading),
    "selective_backprop_composer": _selective(Composers),
    "infobatch": lambda labels, batch_size, updates, seed: InfoBatch(len(labels), batch_size, updates, seed),
    "repeated": _repeats(fresh=False),
    "repeated_fresh": _repeats(fresh=True),
    "repeated_budget": _repeats(fresh=False, budget=BUDGET),
    "sqrt_frequency": _by_frequency(prune_probability=0.0),
    "sqrt_frequency+left_out": _by_frequency(prune_probability=PRUNE_PROBABILITY),
}
# These need labels that tell of the imbalance.
_ONLY_WHERE_LABELS_TELL = {"sqrt_frequency", "sqrt_frequency+left_out"}
# The package that an arm calls, which the benchmarks do not bring; such arms are made where they are asked for.
PEERS = {
    "selective_backprop_composer": Peer(COMPOSER_PACKAGE, load_composer),
    "infobatch": Peer(INFOBATCH_PACKAGE, load_infobatch),
}
# The arm that chooses as many at random, for each that chooses by loss.
TWINS = {
    "left_out": "left_out_random",
    "left_out_weighted": "left_out_random",
    "infobatch": "left_out_random",
    "both": "both_random",
    "pooled": "pooled_random",
}
# The arm that another adds to, whose gain is not the other's.
BASES = {"sqrt_frequency+left_out": "sqrt_frequency"}
# Selective Backprop runs the network on two more batches before an update that selects. A backward pass is reckoned as
# two forward ones, so that plain training makes so many times as many updates at its cost.
_SELECTIVE_COST = 1 + (SELECTING[1] - SELECTING[0]) * 2 / 3
LONGER = {"plain_longer": _SELECTIVE_COST}
# Plain training at the cost of an arm that costs more an update.
AS_COSTLY = {"selective_backprop": "plain_longer"}
# What an arm is compared with besides plain training.
CONTROLS = TWINS | BASES | AS_COSTLY
# These are for the comparison alone.
ONLY_CONTROLS = {*TWINS.values(), *AS_COSTLY.values()}


def updates_of(arm: str, updates: int) -> int:
    """How many updates an arm makes in a study of so many: as many, but for plain training at another arm's cost."""
    return round(updates * LONGER.get(arm, 1.0))


def applies(arm: str, setting: str) -> bool:
    """Whether an arm is another one than plain training in a setting."""
    return arm not in _ONLY_WHERE_LABELS_TELL or setting == "long_tail"
