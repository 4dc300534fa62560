"""The fused visit against the rule, in Triton's interpreter: it is a kernel for a GPU, and needs none here."""

import importlib.util
import os
import subprocess
import sys

import pytest

COMPARE = """
import math, random
import torch
from batch_sampler_attn.device import kernel
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.rule import Options, State, visit

rng = random.Random(0)
for epoch_loss in ("first", "last", "all"):
    for max_visits in (None, 1, 3):
        options, state = Options(epoch_loss=epoch_loss, max_visits=max_visits), State()
        state.epoch, state.threshold = 3, 1.0
        counters = DeviceCounters(options, torch.device("cpu"))
        counters.write(state, cursor=0)
        for _ in range(100):
            number = rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < 0.1 else rng.lognormvariate(0, 0.5)
            loss = torch.tensor(number)
            visit(options, state, loss.item())
            kernel.visit(loss, counters._floats, counters._integers, counters._max_visits, epoch_loss)
            assert counters.read() == (state, state.batches)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_fused_visit_equals_the_rule_after_every_visit():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
