"""The fused visit, against the rule in Triton's interpreter, and compiled; it is for a GPU, and needs none here."""

import importlib.util
import random

import pytest
import torch

from batch_sampler_attn.criteria import threshold_of
from batch_sampler_attn.device import arithmetic
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import visit
from batch_sampler_attn.state import State
from tests.device.helpers import random_loss

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's word on infinite losses
]


@pytest.mark.parametrize(
    "epoch_loss", ["first", *(pytest.param(word, marks=pytest.mark.slow) for word in ("last", "all"))]
)
def test_the_fused_visit_can_be_compiled(epoch_loss, monkeypatch, tmp_path):
    # Before the others: Triton 3.2 interprets, once it has, while it compiles too.
    # Where it cannot, the loop takes the tensor arithmetic without a word.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from batch_sampler_attn.device import kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {
        "loss_at": "*fp32",
        "floats": "*fp64",
        "integers": "*i64",
        "max_visits_at": "*i64",
        "epoch_loss": "constexpr",
    }
    source = ASTSource(kernel.visit_on_device, signature, {"epoch_loss": epoch_loss})
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 1})
    # Neither a fused nor a reordered sum: the sum of losses is the host's, bit for bit.
    assert compiled.asm["ttir"].count("arith.addf") == 1


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel's module, as it is where Triton interprets."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec("batch_sampler_attn.device.kernel")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The interpreter calls what is called in a kernel as it is.
    module.is_above, module.after_visit = arithmetic.is_above, arithmetic.after_visit
    return module


@pytest.mark.parametrize("max_visits", [None, 1, 3])
@pytest.mark.parametrize("epoch_loss", ["first", "last", "all"])
def test_the_fused_visit_equals_the_rule_after_every_visit(interpreted, epoch_loss, max_visits):
    rng, state = random.Random(f"{epoch_loss} {max_visits}"), State()
    options = Options(epoch_loss=epoch_loss, max_visits=max_visits)
    state.epoch, state.threshold = 3, 1.0
    counters = DeviceCounters(options, torch.device("cpu"), 1)
    counters.write(state, cursor=0)
    for _ in range(30):
        loss = torch.tensor(random_loss(rng))
        visit(options, threshold_of(options), state, loss.item(), state.batches)
        interpreted.visit(loss, counters.floats, counters.integers, counters.max_visits, epoch_loss)
        assert counters.read() == (state, state.batches)
