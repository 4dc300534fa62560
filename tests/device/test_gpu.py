"""What only a GPU can show: captured updates equal eager ones, and nothing waits."""

import gc
import os
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop
from tests.device.helpers import are_equal, same
from tests.device.replay.scenarios import SCENARIOS

# Without it cuBLAS is not deterministic, and torch warns of it. It counts only before CUDA is set up.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warned_only)


def as_floats(images):
    return images.float().div(255)


def channels_last(images):
    return as_floats(images).contiguous(memory_format=torch.channels_last)


def make_loop(*, graph=None, prepare=as_floats, **options):
    """A loop over images, with an optimizer whose steps are fused."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 4)
    model = nn.Sequential(*layers).cuda()
    images = torch.randint(0, 256, (84, 3, 8, 8), dtype=torch.uint8).cuda()
    targets = torch.randint(0, 4, (84,)).cuda()
    return DeviceLoop(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2, fused=True, capturable=True),
        nn.functional.cross_entropy,
        images,
        targets,
        8,
        generator=torch.Generator().manual_seed(0),
        schedule=BatchAttentionSchedule(1.0, max_visits=20),
        graph=graph,
        prepare=prepare,
        **options,
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_captured_trainings_have_the_outcome_of_eager_ones(name):
    assert same(list(SCENARIOS[name]()), list(SCENARIOS[name](graph=False)))


SETTINGS = {
    "plain": dict,
    "channels last": lambda: {"prepare": channels_last},
    "bfloat16": lambda: {"autocast": torch.bfloat16},
    "float16": lambda: {"autocast": torch.float16, "scaler": torch.amp.GradScaler("cuda", init_scale=2.0**10)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_captured_updates_on_images_equal_eager_ones_bit_for_bit(setting):
    captured, eager = make_loop(**SETTINGS[setting]()), make_loop(graph=False, **SETTINGS[setting]())
    assert [captured.run_epoch() for _ in range(6)] == [eager.run_epoch() for _ in range(6)]
    assert captured.visit_counts == eager.visit_counts
    assert are_equal(captured.model, eager.model)


def test_nothing_in_a_captured_epoch_waits_for_the_device_and_memory_does_not_grow():
    loop = make_loop()
    # Until the shorter batch is captured too.
    for _ in range(5):
        loop.run_epoch()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            loop.run_epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_allocated() == before


def test_a_captured_loop_that_is_done_is_freed_at_once():
    loop = make_loop()
    loop.run_epoch()
    counters = weakref.ref(loop._counters)
    gc.disable()
    try:
        del loop
        assert counters() is None
    finally:
        gc.enable()


def test_a_state_is_on_the_callers_stream_and_random_numbers_stay_as_they_were():
    loop = make_loop()
    before = torch.cuda.get_rng_state()
    loop.run_epoch()
    saved = loop.state_dict()
    loop.run_epoch()
    loop.load_state_dict(saved)
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("change", ["layout", "memory"])
def test_what_is_done_to_a_model_after_a_capture_is_followed(change):
    models = []
    for graph in (None, False):
        loop = make_loop(graph=graph)
        for _ in range(5):
            loop.run_epoch()
        if change == "layout":
            loop.model.to(memory_format=torch.channels_last)
        else:
            loop.model[5].weight.data = loop.model[5].weight.data * 0.5
        for _ in range(5):
            loop.run_epoch()
        models.append(loop.model)
    assert are_equal(*models)
