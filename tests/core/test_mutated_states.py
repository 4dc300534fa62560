"""A damaged state is refused whole, or is a consistent one: thousands of mutations of real ones, seeded."""

import copy
import json
import math
import os
import random
import sys

import numpy
import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl, SampleAttention
from batch_sampler_attn.errors import BatchAttentionWarning, StateError

MUTATIONS = int(os.environ.get("MUTATED_STATES", "2000"))
BATCHES = 6

JUNK = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    10**400,
    -(10**400),
    10**5000,
    0.0,
    -0.0,
    1.5,
    1e30,
    1e308,
    sys.float_info.max,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "1",
    "first",
    [],
    [1.0],
    {},
    {"epoch": 1},
    1j,
    object(),
    torch.tensor(1.0),
    torch.ones(3),
    numpy.float64(1.0),
    numpy.int64(1),
    numpy.ones(2),
]

MAKERS = {
    "plain": lambda: BatchAttentionSchedule(1.0, max_visits=4),
    "no limit": lambda: BatchAttentionSchedule(1.1, max_visits=None, epoch_loss="all", warmup_epochs=2),
    "length": lambda: BatchAttentionSchedule(1.0, epoch_length=5, epoch_loss="last"),
    "control": lambda: EqualComputeControl([[1, 3, 1, 2, 1, 1]] * 4, seed=2),
}


def losses(rng):
    while True:
        yield rng.lognormvariate(0.0, 0.6)


def train(schedule, batches, epochs, rng, *, stop_after=None):
    """Run passes of ``attend``; stopped after some visits, leave the epoch as it is."""
    source, visits = losses(rng), 0
    for _ in range(epochs):
        for _ in schedule.attend(iter(range(batches))):
            if rng.random() < 0.05:
                schedule.skip()
            else:
                schedule.decide(next(source))
            visits += 1
            if visits == stop_after:
                return
            # Only max_visits=None may go on for so long, with a threshold that was made tiny.
            if visits > 2000:
                return


def real_states():
    for seed in range(12):
        for name, make in MAKERS.items():
            schedule = make()
            train(schedule, BATCHES, 3, random.Random(seed), stop_after=1 + seed * 2)
            yield name, json.loads(json.dumps(schedule.state_dict(), allow_nan=False))


def paths(value, path=()):
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], (*path, key))


def mutate(state, rng):
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        *parents, last = rng.choice([*paths(state)])
        target = state
        for key in parents:
            target = target[key]
        how = rng.random()
        if how < 0.1:
            del target[last]
        elif how < 0.2:
            target[rng.choice(["extra", 3, "epoch", "skipped_batches"])] = copy.deepcopy(rng.choice(JUNK))
        elif how < 0.35 and isinstance(target[last], (int, float)) and not isinstance(target[last], bool):
            target[last] = rng.choice([target[last] + 1, target[last] - 1, -target[last], target[last] * 10**6])
        else:
            target[last] = copy.deepcopy(rng.choice(JUNK))
    return state


def everything_of(schedule):
    def attributes(thing):
        # Of the objects that it is made of too; the rest is plain.
        inside = vars(thing).items() if hasattr(thing, "__dict__") else ()
        return {name: attributes(value) or copy.deepcopy(value) for name, value in inside}

    return attributes(schedule)


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_a_mutated_state_is_refused_with_nothing_changed_or_trains_to_the_end_of_an_epoch():
    rng = random.Random(0)
    saved = [*real_states()]
    refused = longest = 0
    for _ in range(MUTATIONS):
        name, state = rng.choice(saved)
        mutated = mutate(state, rng)
        schedule = MAKERS[name]()
        train(schedule, BATCHES, 2, random.Random(1), stop_after=9)
        schedule.abandon_epoch()
        before = everything_of(schedule)
        try:
            schedule.load_state_dict(mutated)
        except StateError as error:
            refused += 1
            assert everything_of(schedule) == before
            longest = max(longest, len(str(error)))
            continue
        text = json.dumps(schedule.state_dict(), allow_nan=False)
        successor = MAKERS[name]()
        successor.load_state_dict(json.loads(text))
        assert json.dumps(successor.state_dict()) == text
        train_on(schedule)
    # What is let through is a state in which 2 stands for 2.0, or nothing was changed.
    assert refused > 0.9 * MUTATIONS
    assert longest < 2000


def train_on(schedule):
    """To the end of the epoch that was loaded, and through another one."""
    is_control = isinstance(schedule, EqualComputeControl)
    epochs_left = 4 - schedule.epoch if is_control else 2
    epoch, rng = schedule.epoch, random.Random(3)
    for _ in range(min(2, epochs_left)):
        if is_control or schedule.options.epoch_length is None:
            batches = BATCHES - schedule.batch_index if is_control else 4
        else:
            batches = 5
        train(schedule, max(batches, 0), 1, rng)
        json.dumps(schedule.state_dict(), allow_nan=False)
        summary = schedule.summary
        assert summary.mean_loss is None or math.isfinite(summary.mean_loss)
        str(summary)
        repr(schedule)
    assert schedule.epoch > epoch or epochs_left <= 0 or schedule.visits > 0


def test_a_state_through_a_writer_that_drops_fractions_of_zero_is_read():
    schedule = BatchAttentionSchedule(2.0)
    for loss in (1.0, 3.0):
        schedule.decide(loss)
    schedule.end_epoch()
    schedule.decide(1.0)

    def without_fractions(value):
        if isinstance(value, dict):
            return {key: without_fractions(item) for key, item in value.items()}
        return int(value) if isinstance(value, float) and value.is_integer() else value

    resumed = BatchAttentionSchedule(2)
    resumed.load_state_dict(without_fractions(schedule.state_dict()))
    assert resumed.state_dict() == schedule.state_dict()


def test_losses_too_large_to_be_added_up_keep_the_state_plain_json():
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(1e308)
    with pytest.warns(BatchAttentionWarning, match="too large to be averaged"):
        schedule.decide(1e308)
    json.dumps(schedule.state_dict(), allow_nan=False)
    summary = schedule.end_epoch()
    assert (summary.mean_loss, summary.nonfinite_losses, summary.batches) == (1e308, 1, 2)
    assert schedule.threshold == pytest.approx(1.2e308)
    json.dumps(schedule.state_dict(), allow_nan=False)


def test_a_threshold_too_large_for_a_float_is_none():
    schedule = BatchAttentionSchedule(1.2)
    schedule.decide(1.7e308)
    schedule.end_epoch()
    assert schedule.threshold is None
    json.dumps(schedule.state_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "version", [True, 1.5, "1", None, torch.ones(2), 10**5000], ids=lambda value: type(value).__name__
)
def test_a_version_that_is_not_the_number_is_refused(version):
    schedule = BatchAttentionSchedule()
    with pytest.raises(StateError, match="version"):
        schedule.load_state_dict({**schedule.state_dict(), "version": version})


def test_a_state_with_thousands_of_samples_is_recognized_by_its_fingerprint():
    def state_after(loss):
        attention = SampleAttention(3000, 1000)
        for _ in attention.attend():
            attention.report([loss] * 1000)
        assert attention.last_summary.as_dict()["mean_loss"] == loss
        return attention.state_dict()

    SampleAttention(3000, 1000).load_state_dict(state_after(0.5))
    with pytest.raises(StateError, match="changed or damaged"):
        SampleAttention(3000, 1000).load_state_dict({**state_after(0.5), "losses": state_after(0.25)["losses"]})
