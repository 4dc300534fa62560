"""The fused visit, against the rule in Triton's interpreter, and compiled; it is for a GPU, and needs none here."""

import importlib.util
import random

import pytest
import torch

from batch_sampler_attn.criteria import threshold_of
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.options import Options
from batch_sampler_attn.rule import visit
from batch_sampler_attn.state import State
from tests.device.helpers import random_loss
from tests.device.interpreted import interpreted_kernel

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
    assert "fma" not in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel's module, as it is where Triton interprets."""
    return interpreted_kernel(monkeypatch)


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


# Seventeen visits from each of these states: no two numbers of a state are the same, so none stands for another.
STATES = 6


def state_at_random(rng):
    names = ["visits", "loss_count", "repeats", "most_visits", "capped_batches", "nonfinite_losses"]
    state = State(**dict(zip(names, rng.sample(range(40), len(names)), strict=True)))
    state.epoch, state.batches, state.loss_sum = 3, 50, rng.uniform(10, 20)
    state.threshold, state.strictness = rng.uniform(0.2, 2.0), rng.uniform(3.0, 4.0)
    return state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("epoch_loss", ["first", "last", "all"])
def test_the_fused_visit_equals_the_tensor_arithmetic_from_any_state(interpreted, epoch_loss, dtype):
    """As the counters call it, on losses of every type."""
    if dtype is torch.bfloat16:
        pytest.importorskip("ml_dtypes", reason="the interpreter's NumPy has no bfloat16")
    rng = random.Random(f"{epoch_loss} {dtype}")
    for max_visits in [None, 3, 20] * (STATES // 3):
        options = Options(epoch_loss=epoch_loss, max_visits=max_visits)
        fused, plain = (DeviceCounters(options, torch.device("cpu"), 60, count_visits=True) for _ in range(2))
        fused.kernel = interpreted.visit
        state, cursor = state_at_random(rng), rng.randrange(20)
        for counters in (fused, plain):
            counters.write(state, cursor=cursor)
        for number in range(17):
            loss = torch.tensor(
                [rng.uniform(0.0, 3.0), float("nan"), float("inf")][max(0, number % 6 - 3)], dtype=dtype
            )
            for counters in (fused, plain):
                counters.visit(loss)
            assert fused.read() == plain.read()
            assert fused.read_tally() == plain.read_tally()
            # One that changes in mid-epoch, as at a window's end, is the one that is compared with.
            state.threshold = rng.uniform(0.2, 2.0)
            for counters in (fused, plain):
                counters.floats[1] = state.threshold


def test_the_fused_visit_is_for_thresholds_alone(interpreted, monkeypatch):
    """It knows neither budgets nor visits that are dealt."""
    from batch_sampler_attn.device import counters

    asked = []
    monkeypatch.setattr(counters, "_find_kernel", lambda device, epoch_loss: asked.append(epoch_loss))
    device = torch.device("cpu")
    DeviceCounters(Options(budget=0.1), device, 4)
    DeviceCounters(Options(), device, 4, is_dealt=True)
    assert asked == []
    DeviceCounters(Options(epoch_loss="last"), device, 4)
    assert asked == ["last"]


@pytest.mark.parametrize("fault", [None, ImportError("no Triton"), RuntimeError("Failed to find C compiler")])
def test_the_fused_visit_is_tried_before_it_is_trusted(interpreted, monkeypatch, fault):
    """The first call compiles it, which may fail, and must not happen in a capture."""
    import contextlib

    from batch_sampler_attn.device import counters, kernel

    tried = []

    def visit(*args):
        tried.append(args[-1])
        if fault is not None:
            raise fault

    monkeypatch.setattr(kernel, "visit", visit)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    class Host(str):
        type = "cuda"

    assert counters._find_kernel(Host("cpu"), "last") is (visit if fault is None else None)
    assert tried == ["last"]
