"""What only a GPU can show: captured updates equal eager ones, and nothing waits."""

import gc
import os
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from tests.device import helpers
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


def make_loop(*, prepare=as_floats, **options):
    """A loop over images, with an optimizer whose steps are fused."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 4)
    return helpers.make_loop(
        torch.randint(0, 256, (84, 3, 8, 8), dtype=torch.uint8).cuda(),
        torch.randint(0, 4, (84,)).cuda(),
        model=nn.Sequential(*layers).cuda(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2, fused=True, capturable=True),
        schedule=BatchAttentionSchedule(1.0, max_visits=20),
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


def changed_memory(model):
    model[5].weight.data = model[5].weight.data * 0.5


@pytest.mark.parametrize("setting", SETTINGS)
def test_captured_updates_on_images_equal_eager_ones_and_follow_changes_of_the_model(setting):
    captured, eager = make_loop(**SETTINGS[setting]()), make_loop(graph=False, **SETTINGS[setting]())
    for change in (nn.Module.train, lambda model: model.to(memory_format=torch.channels_last), changed_memory):
        for loop in (captured, eager):
            change(loop.model)
        assert [captured.run_epoch() for _ in range(5)] == [eager.run_epoch() for _ in range(5)]
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
    order = weakref.ref(loop.order)
    gc.disable()
    try:
        del loop
        assert order() is None
    finally:
        gc.enable()
