"""A sampler's state that was changed in any way is refused whole: many mutations of real ones, seeded."""

import copy
import itertools
import json
import os
import random

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.errors import StateError
from tests.core.test_mutated_states import JUNK
from tests.loading.helpers import (
    FORKING_IS_FINE,
    no_deadlock,  # noqa: F401  (a fixture of every test here)
    seeded,
)

pytestmark = [*FORKING_IS_FINE, pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")]

MUTATIONS = int(os.environ.get("MUTATED_STATES", "1000"))
SAMPLES = 18
OPTIONS = {"max_visits": 4, "epoch_loss": "last"}

WORDS = [f"sample {number}" for number in range(SAMPLES)]


class OfUnknownLength:
    """A batch sampler of the user's, of batches of unlike length."""

    def __iter__(self):
        for first in range(0, SAMPLES, 3):
            yield [*range(first, first + 2 + first % 2)]


class Pair:
    """A sampler with its schedule, and the loader; what is drawn here is found in ``generator``."""

    def __init__(self, base, *arguments, data=None, epoch_length=None, **options):
        self.generator = getattr(base, "generator", None)
        self.base = base
        self.schedule = BatchAttentionSchedule(1.0, epoch_length=epoch_length, **OPTIONS)
        self.sampler = BatchAttentionSampler(base, *arguments, schedule=self.schedule, **options)
        self.data = range(SAMPLES) if data is None else data

    def train(self, rng, *, workers=0, stop_after=None):
        """One pass; stopped after some visits, the epoch is left as it is. How many visits there were."""
        loader = DataLoader(self.data, batch_sampler=self.sampler, num_workers=workers, collate_fn=list)
        visits = 0
        for _ in self.schedule.attend(loader):
            visits += 1
            if rng.random() < 0.1:
                self.schedule.skip()
            else:
                self.schedule.decide(rng.lognormvariate(0.0, 0.6))
            if visits == stop_after:
                break
        return visits

    def everything(self):
        kept = json.dumps(self.sampler.state_dict(), sort_keys=True), self.schedule.summary
        generators = [torch.get_rng_state(), *([] if self.generator is None else [self.generator.get_state()])]
        flags = {name: value for name, value in vars(self.sampler).items() if isinstance(value, (bool, int, str))}
        return kept, [generator.tolist() for generator in generators], flags


KINDS = {
    "shuffled": lambda: Pair(RandomSampler(range(SAMPLES), generator=seeded()), 3),
    "shuffled, deferred": lambda: Pair(RandomSampler(range(SAMPLES), generator=seeded()), 3, repeats="deferred"),
    "shuffled by our generator": lambda: Pair(RandomSampler(range(SAMPLES)), 3),
    "drawn one by one": lambda: Pair(
        RandomSampler(range(SAMPLES), replacement=True, num_samples=40, generator=seeded()), 4, repeats="deferred"
    ),
    "in order": lambda: Pair(SequentialSampler(range(SAMPLES)), 4, True, repeats="deferred"),
    "of words": lambda: Pair(WORDS, 4, data=dict.fromkeys(WORDS, 1), repeats="deferred"),
    "of unknown length": lambda: Pair(OfUnknownLength(), repeats="deferred"),
    "in windows": lambda: Pair(RandomSampler(range(SAMPLES), generator=seeded()), 3, epoch_length=4),
    "cut short": lambda: Pair(RandomSampler(range(SAMPLES), generator=seeded()), 3, batches_per_epoch=4),
    "distributed": lambda: Pair(DistributedSampler(range(SAMPLES), num_replicas=1, rank=0), 3),
}


def real_states():
    for seed, (name, make) in itertools.product(range(6), KINDS.items()):
        rng = random.Random(seed)
        pair = make()
        pair.train(rng)
        # Workers have batches in flight.
        pair.train(rng, workers=seed % 2, stop_after=1 + 2 * seed)
        yield name, json.loads(json.dumps(pair.sampler.state_dict(), allow_nan=False))


def places(value, path=()):
    """Where something is, in dictionaries and lists; not each digit of a generator's state."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def mutate(state, rng):
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [*places(state)]
        if not found:
            return state
        # What is the sampler's more often than what is its schedule's.
        own = [place for place in found if place[0] != "schedule"]
        *parents, last = rng.choice(own if own and rng.random() < 0.75 else found)
        target = state
        for key in parents:
            target = target[key]
        how, value = rng.random(), target[last]
        if how < 0.1:
            del target[last]
        elif how < 0.2 and isinstance(target, list):
            target.insert(rng.randrange(len(target) + 1), copy.deepcopy(value if how < 0.15 else rng.choice(JUNK)))
        elif how < 0.2:
            target[rng.choice(["extra", 3, "position", "flight"])] = copy.deepcopy(rng.choice(JUNK))
        elif how < 0.45 and isinstance(value, (int, float)) and not isinstance(value, bool):
            target[last] = rng.choice([value + 1, value - 1, -value, value * 10**6])
        elif how < 0.45 and isinstance(value, str) and value:
            at = rng.randrange(len(value))
            target[last] = rng.choice([value[:at], value[:at] + rng.choice("0f7 z") + value[at + 1 :], value * 2])
        elif how < 0.45 and isinstance(value, list) and value:
            target[last] = rng.sample(value, len(value))
        else:
            target[last] = copy.deepcopy(rng.choice(JUNK))
    return state


def are_same(mutated, state):
    try:
        return mutated == state
    except (RuntimeError, ValueError):  # a tensor or an array is in one of them
        return False


def test_a_mutated_state_is_refused_with_nothing_changed():
    rng = random.Random(int(os.environ.get("MUTATION_SEED", "0")))
    torch.manual_seed(0)
    saved = [*real_states()]
    assert any(state["flight"] and state["pending"] for _, state in saved)
    pairs = {name: make() for name, make in KINDS.items()}
    for pair in pairs.values():
        # Something to lose: an epoch ended, another begun.
        pair.train(random.Random(1))
        pair.train(random.Random(2), stop_after=3)
    before = {name: pair.everything() for name, pair in pairs.items()}
    refused = 0
    for _ in range(MUTATIONS):
        name, state = rng.choice(saved)
        mutated = mutate(state, rng)
        if are_same(mutated, state):
            continue
        with pytest.raises(StateError) as error:
            pairs[name].sampler.load_state_dict(mutated)
        assert len(str(error.value)) < 2000
        assert pairs[name].everything()[0] == before[name][0]
        refused += 1
    assert refused > 0.8 * MUTATIONS


def test_every_real_state_is_taken():
    for name, state in real_states():
        sampler = KINDS[name]().sampler
        sampler.load_state_dict(state)
        assert json.loads(json.dumps(sampler.state_dict())) == state
