"""The counters on the device against the rule on the host."""

import math
import random

import pytest
import torch

from batch_sampler_attn.device.counters import Counters
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import RandomVisits, State, criterion_of, visit
from tests.device.helpers import thinned

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [None, 1, 2, 5],
    "threshold": [None, 1.0],
    "budget": [None, 0.1, 1.0],
    "floor": [0.0, -1.0, 0.5],
    "is_random": [False, True],
}


def random_loss(rng):
    """A loss around a threshold of 1, sometimes equal to it or not finite; in single precision, as on a device."""
    if rng.random() < 0.2:
        return torch.tensor(rng.choice([math.nan, math.inf, -math.inf, 1.0, 1.0]))
    return torch.tensor(rng.lognormvariate(0.0, 0.5))


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_the_counters_equal_the_rule_after_every_visit(case):
    number, options = case
    rng, state = random.Random(number), State(epoch=3, threshold=options.pop("threshold"))
    is_random, options, drawn = options.pop("is_random"), Options(**options), None
    criterion = criterion_of(options)
    if is_random:
        criterion = RandomVisits([[1]] * 3 + [[rng.choice([1, 1, 2, 5]) for _ in range(100)]], seed=number)
        drawn = criterion.draw(3)
    counters, visits = Counters(options, torch.device("cpu"), 100, is_random=is_random), [0] * 100
    counters.write(state, 0, visits, drawn)
    for _ in range(100):
        loss = random_loss(rng)
        before, visits[state.batches] = state, visits[state.batches] + 1
        state, _ = visit(options, criterion, state, loss.item(), state.batches)
        counters.visit(loss)
        assert counters.read(before) == (state, state.batches, visits)


def test_losses_that_make_the_sum_infinite_do_not_count():
    options, state = Options(), State(epoch=1, threshold=1.0)
    counters = Counters(options, torch.device("cpu"), 9)
    counters.write(state, 0, [0] * 9)
    for loss in (1.7e308, 1.7e308, 2.0, -1.7e308):
        before = state
        state, _ = visit(options, criterion_of(options), state, loss, state.batches)
        counters.visit(torch.tensor(loss, dtype=torch.float64))
        assert counters.read(before)[0] == state
    assert state.nonfinite_losses
