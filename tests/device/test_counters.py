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
    options = Options(**options)
    criterion = criterion_of(options)
    counters, visits = Counters(options, torch.device("cpu"), 100), [0] * 100
    counters.write(state, 0, visits)
    for _ in range(100):
        loss = random_loss(rng)
        before, visits[state.batches] = state, visits[state.batches] + 1
        state, _ = visit(options, criterion, state, loss.item(), state.batches)
        counters.visit(loss)
        assert counters.read(before) == (state, state.batches, visits)


@pytest.mark.parametrize("epoch_loss", ["first", "last", "all"])
def test_random_visits_equal_the_rule_after_every_visit(epoch_loss):
    rng, state = random.Random(0), State(epoch=1)
    options = Options(epoch_loss=epoch_loss, max_visits=None)
    criterion = RandomVisits([[1], [rng.choice([1, 1, 2, 5]) for _ in range(30)]], seed=3)
    counters = Counters(options, torch.device("cpu"), 30, is_random=True)
    counters.write(state, 0, [0] * 30, criterion.draw(1))
    while state.batches < 30:
        loss, before = random_loss(rng), state
        state, _ = visit(options, criterion, state, loss.item(), state.batches)
        counters.visit(loss)
        assert counters.read(before)[:2] == (state, state.batches)
    assert counters.read(state)[2] == criterion.draw(1)


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
