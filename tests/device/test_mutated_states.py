"""Saved states with something wrong: loaded whole, or a StateError and nothing changed."""

import copy
import math
import os
import random
import signal

import pytest
import torch

from batch_sampler_attn.errors import ProtocolError, StateError
from tests.device.helpers import BATCHES, DEALT, at_most, make_small_loop, same, saved_in_mid_epoch

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What is loaded may well be trained with to no good end.
    pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning"),
]


# Of each kind of loop.
MUTATIONS = int(os.environ.get("MUTATED_STATES", "30"))

JUNK = [
    None,
    True,
    False,
    "",
    "1",
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**63 - 1,
    2**63,
    10**400,
    -(2**70),
    0.5,
    1e30,
    1e308,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    [],
    {},
    (),
    [1],
    {"a": 1},
    (0.9, 0.999),
    (0.9,),
    b"",
    1j,
    torch.zeros(2),
    torch.tensor(1),
    object(),
]


def places_in(value, path=()):
    """Every place in a nested state, as a path."""
    if path:
        yield path
    if isinstance(value, dict):
        # Some of these were made from sets, whose order is another in each process.
        children = sorted(value.items(), key=lambda item: str(item[0]))
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        return
    for key, child in children:
        yield from places_in(child, (*path, key))


def replaced(value, path, change):
    """A copy with what is at the path changed; ``change`` returns None to remove it."""
    key, *rest = path
    twin = list(value) if isinstance(value, (list, tuple)) else dict(value)
    new = (replaced(twin[key], rest, change),) if rest else change(twin[key])
    if new is None:
        del twin[key]
    else:
        twin[key] = new[0]
    return tuple(twin) if isinstance(value, tuple) else twin


def mutated_tensor(rng, tensor):
    flat = tensor.reshape(-1)
    choices = [
        lambda: flat[:-1].clone() if len(flat) else torch.zeros(3),
        lambda: tensor.unsqueeze(0).clone(),
        lambda: torch.zeros(2, 2),
        lambda: tensor.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.float64, torch.float16])),
        lambda: torch.full_like(tensor, rng.choice([0, 1, 255])),
        lambda: -tensor if tensor.dtype is not torch.bool else tensor,
        lambda: tensor.to("meta"),
        lambda: tensor.tolist(),
        lambda: torch.full(tensor.shape, rng.choice([math.nan, math.inf, -1.0, 1e38])),
    ]
    return rng.choice(choices)()


def mutate(rng, state, others):
    """A state with something wrong, most of the time."""
    if rng.random() < 0.1:
        part = rng.choice(sorted(state))
        return {**state, part: rng.choice(others)[part]}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(places_in(state))
        # A part is picked first: most places are in the generators' states and the optimizer's.
        part = rng.choice(sorted(state))
        path = rng.choice([place for place in places if place[0] == part])

        def change(value):
            chance = rng.random()
            if chance < 0.1:
                return None
            if isinstance(value, torch.Tensor) and chance < 0.7:
                return (mutated_tensor(rng, value),)
            if type(value) in (int, float) and chance < 0.4:
                nearby = [value + 1, value - 1, -value, value * 2**62]
                # 10**400 may have been put there before, and has no half.
                return (rng.choice([*nearby, value * 0.5] if abs(value) < 1e300 else nearby),)
            if isinstance(value, dict) and chance < 0.3:
                return ({**value, "more": 1},)
            return (rng.choice(JUNK),)

        state = replaced(state, path, change)
        if not state:
            break
    return state


KINDS = [
    {},
    {"optimizer": "momentum", "staged": True},
    {"optimizer": "rmsprop", "control": True},
    {"optimizer": "amsgrad", "window": 3},
    {"optimizer": "sgd", "staged": True, "control": True},
    {"optimizer": "adafactor"},
    {"optimizer": "rate as a tensor"},
    {"optimizer": "rprop"},
    {"optimizer": "nadam"},
]


def fuzz(kind, mutations, seed):
    """Load mutated states; return how many were refused."""
    rng = random.Random(seed)
    saved = []
    loop = make_small_loop(**kind)
    saved.append(loop.state_dict())
    for updates in (1, 2, 3, 30):
        loop.run_updates(updates)
        saved.append(copy.deepcopy(loop.state_dict()))
    others = [saved_in_mid_epoch(optimizer=name) for name in ("adam", "momentum", "rmsprop")]
    refusals = 0
    for _ in range(mutations):
        loop = make_small_loop(**kind)
        if rng.random() < 0.5:
            loop.load_state_dict(rng.choice(saved[1:-1]))
        state = mutate(rng, rng.choice(saved), others)
        refusals += is_refused(loop, state)
    return refusals


def is_refused(loop, state):
    """Whether the state is refused, with nothing changed; where it is not, train to the end of its epoch."""
    before = copy.deepcopy(loop.state_dict())
    with at_most(60):
        try:
            loop.load_state_dict(state)
        except StateError:
            assert same(loop.state_dict(), before)
            return True
        epoch = loop.parts.host.schedule.epoch
        if loop.parts.host.is_dealt and epoch == len(DEALT):
            with pytest.raises(ProtocolError):
                loop.run_epoch()
            return False
        loop.run_epoch()
        assert loop.parts.progress.cursor == BATCHES
        return False


NOTHING_STOPS_WHAT_HANGS = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="nothing here stops what hangs")


@NOTHING_STOPS_WHAT_HANGS
@pytest.mark.parametrize("mutations", [MUTATIONS, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_mutated_state_is_refused_with_nothing_changed_or_trains_to_the_end_of_its_epoch(kind, mutations):
    assert fuzz(kind, mutations, seed=0) > mutations // 3


@NOTHING_STOPS_WHAT_HANGS
@pytest.mark.parametrize("part", [pytest.param(None, marks=pytest.mark.slow), "optimizer"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whatever_stands_at_any_place_of_a_state_is_refused_or_trains_to_the_end_of_its_epoch(kind, part):
    loop = make_small_loop(**kind)
    loop.run_updates(3)
    state = loop.state_dict()
    places = [place for place in places_in(state) if part in (None, place[0])]
    junk = JUNK if part is None else [value for value in JUNK if type(value) in (int, float)]
    for place in places:
        for value in junk:
            is_refused(make_small_loop(**kind), replaced(state, place, lambda _, value=value: (value,)))
