"""What only a GPU can show: captured updates equal eager ones, and nothing waits."""

import copy
import gc
import os
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop
from batch_sampler_attn.errors import DeviceLoopError, OptionError
from tests.device.helpers import are_equal

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


def make_loop(index=0, *, graph=None, model=None, fused=True, lr=1e-2, schedule=None, prepare=as_floats, **options):
    """A loop and its optimizer."""
    torch.manual_seed(index)
    if model is None:
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 4)
        model = nn.Sequential(*layers)
    model.cuda()
    images = torch.randint(0, 256, (84, 3, 8, 8), dtype=torch.uint8).cuda()
    targets = torch.randint(0, 4, (84,)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused, capturable=True)
    options = {"loss_fn": nn.functional.cross_entropy, **options}
    loop = DeviceLoop(
        model,
        optimizer,
        options.pop("loss_fn"),
        images,
        targets,
        8,
        generator=torch.Generator().manual_seed(index),
        schedule=schedule or BatchAttentionSchedule(1.0, max_visits=20),
        graph=graph,
        prepare=prepare,
        **options,
    )
    return loop, optimizer


def noisy(images):
    return as_floats(images) + 0.1 * torch.rand(len(images), 3, 1, 1, device=images.device)


def channels_last(images):
    return as_floats(images).contiguous(memory_format=torch.channels_last)


def cropped(images, padding=2):
    images, samples = as_floats(images), torch.arange(len(images), device=images.device)
    rows = torch.arange(images.shape[2], device=images.device) + torch.randint_like(samples, 2 * padding + 1)[:, None]
    padded = torch.nn.functional.pad(images, [padding] * 4)[:, :, :, padding:-padding]
    return padded[samples[:, None], :, rows].transpose(1, 2)


SETTINGS = {
    "plain": dict,
    "drawn in each visit": lambda: {"prepare": noisy},
    "cropped": lambda: {"prepare": cropped},
    "channels last": lambda: {"prepare": channels_last},
    "bfloat16": lambda: {"autocast": torch.bfloat16},
    "budget": lambda: {"schedule": BatchAttentionSchedule(1.0, budget=0.3, floor=0.1)},
    "fixed length": lambda: {"schedule": BatchAttentionSchedule(1.0, max_visits=20, epoch_length=7)},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_captured_updates_equal_eager_ones_bit_for_bit(setting):
    (captured, _), (eager, _) = make_loop(**SETTINGS[setting]()), make_loop(graph=False, **SETTINGS[setting]())
    assert [captured.run_epoch() for _ in range(6)] == [eager.run_epoch() for _ in range(6)]
    assert captured.visit_counts == eager.visit_counts
    assert are_equal(captured.model, eager.model)


def test_eager_updates_equal_those_of_a_loop_by_hand():
    loop, _ = make_loop(graph=False)
    model = copy.deepcopy(loop.model)
    images, targets = loop._inputs, loop._targets
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True, capturable=True)
    optimizer._warned_capturable_if_run_uncaptured = True
    generator, schedule = torch.Generator().manual_seed(0), BatchAttentionSchedule(1.0, max_visits=20)
    for _ in range(4):
        order = torch.randperm(84, generator=generator).cuda()
        for batch in schedule.attend(order.split(8)):
            loss = nn.functional.cross_entropy(model(as_floats(images[batch])), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.decide(loss)
    for _ in range(4):
        loop.run_epoch()
    assert loop.schedule.threshold == schedule.threshold
    assert are_equal(loop.model, model)


def test_a_gradient_scaler_is_captured_too():
    (captured, _), (eager, _) = (
        make_loop(graph=graph, autocast=torch.float16, scaler=torch.amp.GradScaler("cuda", init_scale=2.0**10))
        for graph in (None, False)
    )
    assert [captured.run_epoch() for _ in range(5)] == [eager.run_epoch() for _ in range(5)]
    assert are_equal(captured.model, eager.model)


def test_nothing_in_the_loop_waits_for_the_device():
    loop, _ = make_loop()
    # Until the shorter batch is captured too.
    for _ in range(5):
        loop.run_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.run_epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_visits_are_counted_and_drawn_as_eager_ones_are():
    (captured, _), (eager, _) = make_loop(), make_loop(graph=False)
    counts = []
    for _ in range(6):
        assert captured.run_epoch().visits == eager.run_epoch().visits
        assert captured.visit_counts == eager.visit_counts
        counts.append(captured.visit_counts)
    assert max(map(max, counts)) > 1
    (control, _), (eager_control, _) = (
        make_loop(graph=graph, schedule=EqualComputeControl(counts)) for graph in (None, False)
    )
    for drawn in counts:
        control.run_epoch()
        eager_control.run_epoch()
        assert control.visit_counts == eager_control.visit_counts
        assert sorted(control.visit_counts) == sorted(drawn)
    assert are_equal(control.model, eager_control.model)


def test_loops_that_take_turns_have_the_results_that_each_has_alone():
    alone = [make_loop(index)[0] for index in range(3)]
    expected = [[loop.run_epoch().mean_loss for _ in range(6)] for loop in alone]
    together = [make_loop(index)[0] for index in range(3)]
    losses = {loop: [] for loop in together}
    while running := [loop for loop in together if len(losses[loop]) < 6]:
        for loop in [loop for loop in running if loop.enqueue(4) < 4]:
            if (summary := loop.synchronize()) is not None:
                losses[loop].append(summary.mean_loss)
    assert list(losses.values()) == expected
    assert all(are_equal(ours.model, theirs.model) for ours, theirs in zip(together, alone, strict=True))


def test_a_captured_run_saved_in_mid_epoch_resumes_bit_for_bit():
    whole, _ = make_loop()
    for _ in range(8):
        whole.run_epoch()
    stopped, _ = make_loop()
    stopped.run_epoch()
    stopped.run_epoch()
    assert stopped.run_updates(5) is None
    saved = stopped.state_dict()
    stopped.run_epoch()
    for resumed in (stopped, make_loop()[0]):
        resumed.load_state_dict(saved)
        for _ in range(6):
            resumed.run_epoch()
        assert are_equal(resumed.model, whole.model)


class Asking(nn.Module):
    """Reads a value on the host in batches of at least ``least`` samples."""

    def __init__(self, least, most=8):
        super().__init__()
        self.least, self.most = least, most
        self.linear = nn.Linear(192, 4)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        outputs = self.linear(self.dropout(x.flatten(1)))
        is_asked = self.least <= len(x) <= self.most and outputs.sum().item() > 1e9
        return outputs * 2 if is_asked else outputs


@pytest.mark.parametrize(("least", "most"), [(8, 8), (1, 7)], ids=["full", "shorter"])
def test_a_loop_whose_capture_failed_trains_on_once_what_was_wrong_is_mended(least, most):
    (loop, _), (eager, _) = (make_loop(model=Asking(least, most), graph=graph) for graph in (None, False))
    eager.model.load_state_dict(loop.model.state_dict())
    summaries, failed = [], 0
    while len(summaries) < 8:
        try:
            summaries.append({**loop.run_epoch().as_dict(), "host_reads": None})
        except DeviceLoopError as error:
            assert "graph=False" in str(error)  # noqa: PT017
            failed += 1
            loop.model.least = 9
    assert failed == 1
    assert summaries == [{**eager.run_epoch().as_dict(), "host_reads": None} for _ in range(8)]
    assert are_equal(loop.model, eager.model)


def test_an_optimizer_that_cannot_be_captured_is_refused():
    model = nn.Linear(2, 2).cuda()
    data = torch.randn(8, 2, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cuda"), 4
    with pytest.raises(OptionError, match="construct it with True"):
        DeviceLoop(model, torch.optim.Adam(model.parameters()), nn.functional.cross_entropy, *data)
    loop = DeviceLoop(model, torch.optim.Adagrad(model.parameters()), nn.functional.cross_entropy, *data)
    loop.run_epoch()
    with pytest.raises(DeviceLoopError, match="Adagrad changes its state on the host"):
        loop.run_epoch()


def test_memory_does_not_grow_with_epochs():
    loop, _ = make_loop()
    for _ in range(5):
        loop.run_epoch()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        loop.run_epoch()
    assert torch.cuda.memory_allocated() == before


def test_a_captured_loop_that_is_done_is_freed_at_once():
    loop, _ = make_loop()
    loop.run_epoch()
    counters = weakref.ref(loop._counters)
    gc.disable()
    try:
        del loop
        assert counters() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_learning_rate_schedule_is_followed_by_captured_updates(as_tensor):
    models = []
    for graph in (None, False):
        loop, optimizer = make_loop(graph=graph, lr=torch.tensor(1e-2).cuda() if as_tensor else 1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(6):
            loop.run_epoch()
            scheduler.step()
        models.append(loop.model)
    assert are_equal(*models)


def test_a_state_from_before_the_first_update_begins_the_run_again():
    loop, _ = make_loop()
    at_first = loop.state_dict()
    expected = [loop.run_epoch() for _ in range(6)]
    weights = copy.deepcopy(loop.model)
    loop.load_state_dict(at_first)
    assert [loop.run_epoch() for _ in range(6)] == expected
    assert are_equal(loop.model, weights)


def freeze(model):
    model[0].weight.requires_grad_(False)


def change_layout(model):
    model.to(memory_format=torch.channels_last)


def replace(model):
    model[5].weight.data = model[5].weight.data * 0.5


@pytest.mark.parametrize("change", [freeze, change_layout, replace])
def test_what_is_done_to_a_model_after_a_capture_is_followed(change):
    models = []
    for graph in (None, False):
        loop, _ = make_loop(graph=graph)
        for _ in range(5):
            loop.run_epoch()
        change(loop.model)
        for _ in range(5):
            loop.run_epoch()
        models.append(loop.model)
    assert are_equal(*models)


def test_the_callers_stream_sees_the_weights_that_a_loaded_state_has():
    loop, _ = make_loop()
    loop.run_epoch()
    saved = loop.state_dict()
    loop.run_epoch()
    loop.load_state_dict(saved)
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])


def test_the_callers_random_numbers_stay_as_they_were():
    loop, _ = make_loop()
    before = torch.cuda.get_rng_state()
    for _ in range(3):
        loop.run_epoch()
    assert torch.equal(torch.cuda.get_rng_state(), before)
