"""A saved state with anything in it changed is refused, and the object that refused it stays as it was."""

import copy
import functools
import json
import random

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from batch_sampler_attn import (
    BatchAttentionSampler,
    BatchAttentionSchedule,
    EqualComputeControl,
    SampleAttention,
    checkpoint,
)
from batch_sampler_attn.errors import StateError
from tests.junk import JUNK

pytestmark = [
    pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forked workers
]

SAMPLES = 12
NAMES = [f"sample {number}" for number in range(SAMPLES)]


class Lengthless:
    """A user's batch sampler without a length, with batches of two sizes."""

    def __iter__(self):
        return iter([[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]])


def shuffled(**options):
    return RandomSampler(range(SAMPLES), generator=torch.Generator().manual_seed(0), **options)


def with_sampler(base, *arguments, schedule=None, **options):
    return BatchAttentionSampler(base, *arguments, schedule=schedule or BatchAttentionSchedule(1.0), **options)


def samples(batch_size=3, **options):
    return SampleAttention(SAMPLES, batch_size, ranks=None, **options)


KINDS = {
    "schedule": lambda: BatchAttentionSchedule(1.0, max_visits=4),
    "schedule, all losses": lambda: BatchAttentionSchedule(1.1, max_visits=None, epoch_loss="all", budget=0.5),
    "schedule, epochs of 5": lambda: BatchAttentionSchedule(1.0, epoch_length=5, epoch_loss="last"),
    "control": lambda: EqualComputeControl([[1, 3, 1, 2, 1, 1]] * 4, seed=2),
    "sampler": lambda: with_sampler(RandomSampler(range(SAMPLES)), 3),
    "sampler, deferred": lambda: with_sampler(shuffled(), 3, repeats="deferred"),
    "sampler, with replacement": lambda: with_sampler(shuffled(replacement=True, num_samples=20), 4),
    "sampler, of names": lambda: with_sampler(NAMES, 4, repeats="deferred"),
    "sampler, without a length": lambda: with_sampler(Lengthless(), repeats="deferred"),
    "sampler, epochs of 4": lambda: with_sampler(
        SequentialSampler(NAMES), 4, schedule=BatchAttentionSchedule(1.0, epoch_length=4)
    ),
    "sampler, cut short": lambda: with_sampler(shuffled(), 3, batches_per_epoch=3),
    "sampler, distributed": lambda: with_sampler(DistributedSampler(range(SAMPLES), num_replicas=1, rank=0), 3),
    "samples": lambda: samples(prune_probability=0.5, weighted=True),
    "samples, pooled": lambda: samples(4, k=0.9, prune_probability=0.5, max_visits=4, remember_loss="base"),
    "samples, at random": lambda: samples(k=0.8, epochs=4, final_full_share=0.5, select="random"),
    "samples, on a rank": lambda: samples(k=1.0, rank=1, world_size=2, updates=5),
}


def train(kind, trained, rng, *, epochs=1, workers=0, stop_after=10**6):
    """Epochs of random losses; the last one is left after ``stop_after`` updates."""
    data = dict.fromkeys(NAMES, 0) if "names" in kind else range(SAMPLES)
    loader = range(6)
    if not isinstance(trained, BatchAttentionSchedule):
        loader = DataLoader(data, batch_sampler=trained, num_workers=workers, collate_fn=list)
    attention = trained.schedule if isinstance(trained, BatchAttentionSampler) else trained
    for epoch in range(epochs):
        for update, batch in enumerate(attention.attend(loader), start=1):
            if isinstance(attention, SampleAttention):
                attention.report([rng.lognormvariate(0.0, 0.6) for _ in batch])
            elif rng.random() < 0.1:
                attention.skip()
            else:
                attention.decide(rng.lognormvariate(0.0, 0.6))
            if epoch == epochs - 1 and update == stop_after:
                return trained
    return trained


@functools.cache
def saved(kind):
    """States of four runs, through JSON: between two epochs, and within one, with batches in flight or without."""
    moments = [{"epochs": 2}, {"stop_after": 2}, {"epochs": 3, "stop_after": 4, "workers": 1}, {"stop_after": 1}]
    torch.manual_seed(0)
    states = [
        train(kind, KINDS[kind](), random.Random(seed), **moment).state_dict() for seed, moment in enumerate(moments)
    ]
    return [json.dumps(state, allow_nan=False) for state in states]


def changed(value, rng):
    """``value`` with one change: each part of it left out, replaced by junk or by something similar."""
    yield from copy.deepcopy(rng.sample(JUNK, 2))
    if isinstance(value, dict):
        yield {**value, rng.choice(["extra", 3, "position"]): rng.choice(JUNK)}
        for key, item in value.items():
            yield {other: value[other] for other in value if other != key}
            yield from ({**value, key: other} for other in changed(item, rng))
    elif isinstance(value, list):
        yield from (value[:-1], value[::-1], [*value, *value[:1]], [*value, rng.choice(JUNK)])
        for index, item in enumerate(value):
            yield from ([*value[:index], other, *value[index + 1 :]] for other in changed(item, rng))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, value - 1, -value, value * 10**6)
    elif isinstance(value, str):
        index = rng.randrange(len(value) or 1)
        yield from (value[:index], value * 2, value[:index] + rng.choice("A0f7/= ") + value[index + 1 :])


def observed(trained):
    generator = getattr(getattr(trained, "sampler", None), "generator", None)
    drawn = torch.get_rng_state() if generator is None else generator.get_state()
    return json.dumps(trained.state_dict()), repr(trained), drawn.numpy().tobytes()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_state_is_refused_and_nothing_of_it_is_loaded(kind, seed):
    rng, refused = random.Random(seed), 0
    states = saved(kind) if seed else saved(kind)[2:3]
    loading = train(kind, KINDS[kind](), random.Random(9), epochs=2, stop_after=2)
    own, before = loading.state_dict(), observed(loading)
    for state in map(json.loads, states):
        for other in changed(state, rng):
            try:
                loading.load_state_dict(other)
            except StateError as error:
                message = str(error)
            else:
                assert other == state  # such as 2 in place of 2.0
                loading.load_state_dict(own)
                before = observed(loading)
                continue
            refused += 1
            assert len(message) < 2000
            assert observed(loading) == before
    assert refused > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_is_loaded_whole(kind):
    for state in saved(kind):
        loaded = KINDS[kind]()
        loaded.load_state_dict(json.loads(state))
        assert loaded.state_dict() == json.loads(state)


@pytest.mark.parametrize("kind", ["schedule", "sampler", "samples"])
def test_a_state_of_another_object_and_one_without_a_part_are_refused(kind):
    parts = {name: part for name, part in json.loads(saved(kind)[0]).items() if name not in ("version", "fingerprint")}
    states = [saved(other)[0] for other in KINDS if other.partition(",")[0] not in (kind, "control")]
    for left_out in parts.keys() - {"generator", "augmentation"}:
        states.append(json.dumps(checkpoint.seal({name: part for name, part in parts.items() if name != left_out})))
    for state in states:
        with pytest.raises(StateError, match="is of something else, or was changed"):
            KINDS[kind]().load_state_dict(json.loads(state))


@pytest.mark.parametrize("kind", ["schedule", "control", "sampler", "samples"])
@pytest.mark.parametrize("version", [2, 4, True, 3.0, "3", None])
def test_a_state_of_another_version_is_refused_with_both_versions_and_the_way_out(kind, version):
    state = {**json.loads(saved(kind)[0]), "version": version}
    with pytest.raises(StateError, match=rf"of version {version!r}; this release reads version 3. Load it with"):
        KINDS[kind]().load_state_dict(state)


def without_fractions(value):
    """As a writer of JSON leaves it that writes 2.0 as 2."""
    if isinstance(value, dict):
        return {key: without_fractions(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_a_state_whose_writer_drops_fractions_of_zero_is_loaded():
    schedule, resumed = BatchAttentionSchedule(2.0), BatchAttentionSchedule(2)
    for loss in (1.0, 3.0):
        schedule.decide(loss)
    schedule.end_epoch()
    schedule.decide(1.0)
    resumed.load_state_dict(without_fractions(schedule.state_dict()))
    assert resumed.state_dict() == schedule.state_dict()


def test_long_rows_of_a_state_are_part_of_its_fingerprint():
    def state_after(loss):
        attention = SampleAttention(3000, 1000)
        for _ in attention.attend():
            attention.report([loss] * 1000)
        return attention.state_dict()

    SampleAttention(3000, 1000).load_state_dict(state_after(0.5))
    with pytest.raises(StateError, match="changed or damaged"):
        SampleAttention(3000, 1000).load_state_dict({**state_after(0.5), "losses": state_after(0.25)["losses"]})


def test_an_index_that_became_a_fraction_is_refused():
    for trained in (with_sampler(range(4), 2), SampleAttention(4, 2, sampler=range(4))):
        for _ in getattr(trained, "schedule", trained).attend(DataLoader(range(4), batch_sampler=trained)):
            state = json.dumps(trained.state_dict()).replace("[0, 1]", "[0.0, 1]", 1)
            with pytest.raises(StateError, match=r"indices are \[0\.0, 1\]; only whole numbers"):
                trained.load_state_dict(json.loads(state))
            break
