"""A damaged state of attention to samples is refused whole, or trains on to its epoch's end: mutations, seeded."""

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
    """One with something to lose: an epoch done, another begun, and batches in flight."""
    attention = make()
    train(attention, random.Random(1))
    train(attention, random.Random(2), ahead=1, stop_after=2)
    return attention


def everything_of(attention):
    summary = attention.last_summary if attention.epoch else None
    return json.dumps(attention.state_dict()), repr(attention), attention.summary, summary


class Loaders:
    """Those that states are loaded into: one that is new, and one in mid-epoch, of each kind.

    A state that is refused changes nothing, so that they serve until one is taken.
    """

    def __init__(self):
        self.pairs = {}

    def load(self, name, state):
        """Whether a damaged state was taken, by both alike; then it has to train on."""
        make = KINDS[name]
        if name not in self.pairs:
            attentions = make(), begun(make)
            self.pairs[name] = [(attention, everything_of(attention)) for attention in attentions]
        outcomes = [outcome(attention, before, state) for attention, before in self.pairs[name]]
        assert outcomes[0] == outcomes[1]
        if outcomes[0] is None:
            return False
        (new, _), (old, _) = self.pairs.pop(name)
        assert go_on(new) == go_on(old)
        successor = make()
        successor.load_state_dict(json.loads(outcomes[0]))
        assert json.dumps(successor.state_dict()) == outcomes[0]
        return True

    def go_on_as_if_nothing_had_happened(self):
        for name, ((new, _), (old, _)) in self.pairs.items():
            for ours, theirs in ((new, KINDS[name]()), (old, begun(KINDS[name]))):
                assert go_on(ours) == go_on(theirs)


def outcome(attention, before, state):
    """What the state is once it was taken; None if it was refused, with nothing changed."""
    message = None
    try:
        attention.load_state_dict(state)
    except StateError as error:
        message = str(error)
    if message is None:
        return json.dumps(attention.state_dict(), allow_nan=False)
    assert everything_of(attention) == before
    assert len(message) < 2000
    return None


def go_on(attention):
    """To the end of the epoch that was loaded, and through another one, and what was seen."""
    rng, tail, options = random.Random(3), [], attention.options
    of_rank = range(1, SAMPLES, 2) if "shard" in attention.state_dict() else range(SAMPLES)
    for _ in range(2):
        epoch, updates = attention.epoch, attention.updates
        seen = train(attention, rng)
        assert len(seen) == len(attention) - updates
        for indices, weights in seen:
            assert len(indices) == options.batch_size
            assert {*indices} <= {*of_rank}
            assert all(0 < weight <= 1.001 / (1 - options.leave_out) for weight in weights)
        assert attention.epoch == epoch + 1
        summary = attention.last_summary
        assert summary.mean_loss is None or math.isfinite(summary.mean_loss)
        assert summary.extra_updates <= summary.updates == len(attention)
        assert not (summary.extra_updates and (options.k is None or summary.is_plain))
        str(summary)
        summary._repr_html_()
        json.dumps(attention.state_dict(), allow_nan=False)
        # What goes on from a state gives states that can be gone on from.
        attention.load_state_dict(json.loads(json.dumps(attention.state_dict())))
        tail.append((seen, summary))
    return tail


def test_a_mutated_state_is_refused_with_nothing_changed_or_trains_to_the_end_of_its_epoch():
    rng = random.Random(int(os.environ.get("MUTATION_SEED", "0")))
    saved = [*real_states()]
    assert any(state["flight"] and state["pool"] for _, state in saved)
    assert any(batch["is_extra"] for _, state in saved for batch in state["flight"])
    loaders, taken = Loaders(), 0
    for _ in range(MUTATIONS):
        name, state = rng.choice(saved)
        taken += loaders.load(name, mutate(state, rng))
    assert 0.02 * MUTATIONS < taken < 0.5 * MUTATIONS
    loaders.go_on_as_if_nothing_had_happened()


def test_every_real_state_is_taken():
    for name, state in real_states():
        attention = KINDS[name]()
        attention.load_state_dict(state)
        assert json.loads(json.dumps(attention.state_dict())) == state


@pytest.mark.parametrize("name", ["both", "on a rank"])
def test_each_kind_of_junk_at_each_place_is_refused_or_consistent(name):
    *_, state = (state for other, state in real_states() if other == name and state["flight"] and state["pool"])
    loaders = Loaders()
    for path in places(state):
        for junk in EVERYTHING:
            mutated = copy.deepcopy(state)
            at(mutated, path[:-1])[path[-1]] = copy.deepcopy(junk)
            loaders.load(name, mutated)
    loaders.go_on_as_if_nothing_had_happened()
