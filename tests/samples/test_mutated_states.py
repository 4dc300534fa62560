"""A state of attention to samples that was changed in any way is refused whole: mutations, seeded."""

import base64
import contextlib
import copy
import itertools
import json
import math
import os
import random
import struct

import pytest

from batch_sampler_attn.errors import StateError
from tests.core.test_mutated_states import JUNK
from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.runs import KINDS, SAMPLES, train

pytestmark = [*FORKING_IS_FINE, pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")]

MUTATIONS = int(os.environ.get("MUTATED_STATES", "1000"))


def packed(kind, *numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}{kind}", *numbers)).decode()


# Texts that are long rows of numbers, but of other numbers, another length or another type.
ROWS = [
    packed("f", *[1.0] * SAMPLES),
    packed("f", *[math.nan] * SAMPLES),
    packed("f", *[3.4e38] * SAMPLES),
    packed("f", *[1.0] * (SAMPLES - 1), math.inf),
    packed("d", *[1.0] * SAMPLES),
    packed("B", *[0] * SAMPLES),
    packed("B", *[255] * SAMPLES),
    packed("B", *[2] * 6),
    packed("i", *range(6)),
    packed("i", *[4] * 6),
    packed("i", 1, 3, 5, SAMPLES + 1),
    packed("i", -1),
    packed("q", *range(6)),
    "AAA",
    "A===",
    "é",
    "AA\nAA",
]
EVERYTHING = [*JUNK, *ROWS, [0], [1, 1], [SAMPLES], [-1], [*range(SAMPLES)], [0, 2], [1, 2], [[0, 1]], [{}]]


def real_states():
    for seed, (name, make) in itertools.product(range(7), KINDS.items()):
        rng = random.Random(f"{seed} {name}")
        attention = make()
        for _ in range(seed % 4):
            train(attention, rng)
        # Between two epochs, or in one, with batches in flight or without.
        if seed:
            is_with_workers = seed == 5 and name in ("both", "plain at the end")
            train(
                attention, rng, ahead=seed % 3, workers=int(is_with_workers), stop_after=rng.randint(1, len(attention))
            )
        yield name, json.loads(json.dumps(attention.state_dict(), allow_nan=False))


def places(value, path=()):
    """Where something is, in dictionaries and lists."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def at(state, path):
    for key in path:
        state = state[key]
    return state


def mutate(state, rng):
    state = copy.deepcopy(state)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = [*places(state)]
        if not found:
            return state
        # What the options are is compared with what they are here; the rest has more to hide.
        own = [place for place in found if place[0] != "options"]
        *parents, last = rng.choice(own if own and rng.random() < 0.85 else found)
        target = at(state, parents)
        value = target[last]
        how = rng.random()
        if how < 0.1:
            del target[last]
        elif how < 0.2 and isinstance(target, list):
            target.insert(rng.randrange(len(target) + 1), copy.deepcopy(value if how < 0.15 else rng.choice(JUNK)))
        elif how < 0.2:
            target[rng.choice(["extra", 3, "shard", "last_summary"])] = copy.deepcopy(rng.choice(EVERYTHING))
        elif how < 0.55 and isinstance(value, bool):
            target[last] = not value
        elif how < 0.55 and isinstance(value, (int, float)):
            half = value // 2 if isinstance(value, int) else value / 2
            target[last] = rng.choice([value + 1, value - 1, half, value * 2, -value, value * 10**6])
        elif how < 0.55 and isinstance(value, str) and value:
            target[last] = rng.choice([*other_rows(value, rng)])
        elif how < 0.55 and isinstance(value, list) and value:
            target[last] = rng.choice([rng.sample(value, len(value)), value[1:], value[:-1], value * 2])
        else:
            target[last] = copy.deepcopy(rng.choice(EVERYTHING))
    return state


def other_rows(text, rng):
    """A row cut, doubled, with one letter another, or with its numbers in another order."""
    where = rng.randrange(len(text))
    yield from (text[:where], text[: where // 4 * 4], text * 2)
    yield text[:where] + rng.choice("AQf7/=") + text[where + 1 :]
    with contextlib.suppress(ValueError):  # the text was no row of numbers any more
        numbers = base64.b64decode(text)
        size = rng.choice([1, 4])
        cells = [numbers[first : first + size] for first in range(0, len(numbers), size)]
        yield base64.b64encode(b"".join(rng.sample(cells, len(cells)))).decode()


def begun(make):
    """One with something to lose: an epoch ended, another begun, and batches in flight."""
    attention = make()
    train(attention, random.Random(1))
    train(attention, random.Random(2), ahead=1, stop_after=2)
    return attention


def are_same(mutated, state):
    try:
        return mutated == state
    except (RuntimeError, ValueError):  # a tensor or an array is in one of them
        return False


def everything_of(attention):
    return json.dumps(attention.state_dict()), repr(attention), attention.summary, attention.last_summary


def test_a_mutated_state_is_refused_with_nothing_changed():
    rng = random.Random(int(os.environ.get("MUTATION_SEED", "0")))
    saved = [*real_states()]
    assert any(state["flight"] and state["pool"] for _, state in saved)
    assert any(batch["is_extra"] for _, state in saved for batch in state["flight"])
    attentions = {name: begun(make) for name, make in KINDS.items()}
    before = {name: everything_of(attention) for name, attention in attentions.items()}
    refused = 0
    for _ in range(MUTATIONS):
        name, state = rng.choice(saved)
        mutated = mutate(state, rng)
        if are_same(mutated, state):
            continue
        with pytest.raises(StateError) as error:
            attentions[name].load_state_dict(mutated)
        assert len(str(error.value)) < 2000
        assert everything_of(attentions[name]) == before[name]
        refused += 1
    assert refused > 0.9 * MUTATIONS


def test_every_real_state_is_taken():
    for name, state in real_states():
        attention = KINDS[name]()
        attention.load_state_dict(state)
        assert json.loads(json.dumps(attention.state_dict())) == state
