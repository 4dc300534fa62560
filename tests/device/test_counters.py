"""The counters on the device against the rule on the host."""

import random

import pytest
import torch

from batch_sampler_attn.criteria import threshold_of
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import visit
from batch_sampler_attn.state import State
from tests.device.helpers import random_loss, thinned

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [None, 1, 2, 5],
    "threshold": [None, 1.0],
    "budget": [None, 0.1, 1.0],
    "floor": [0.0, -1.0, 0.5],
}


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_the_counters_equal_the_rule_after_every_visit(case):
    number, options = case
    rng, state = random.Random(number), State()
    state.epoch, state.threshold = 3, options.pop("threshold")
    options = Options(**options)
    criterion = threshold_of(options)
    counters = DeviceCounters(options, torch.device("cpu"), 1)
    counters.write(state, cursor=0)
    for _ in range(100):
        # As losses are on a device: in single precision.
        loss = torch.tensor(random_loss(rng), dtype=torch.float32)
        visit(options, criterion, state, loss.item(), state.batches)
        counters.visit(loss)
        assert counters.read() == (state, state.batches)


def test_the_counters_take_as_much_memory_after_any_number_of_visits():
    counters = DeviceCounters(Options(), torch.device("cpu"), 1)
    addresses = [tensor.data_ptr() for tensor in (counters.floats, counters.integers)]
    for _ in range(1000):
        counters.visit(torch.tensor(1.0))
    assert [tensor.data_ptr() for tensor in (counters.floats, counters.integers)] == addresses
    assert counters.floats.nbytes + counters.integers.nbytes == 88
