"""What only a GPU can show: captured updates equal eager ones, and nothing waits."""

import copy
import gc
import os
import shutil
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData, run_interleaved
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.device.randomness import precision_settings
from batch_sampler_attn.errors import DeviceLoopError, OptionError
from batch_sampler_attn.options import Options
from batch_sampler_attn.state import State
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


def make_loop(
    index=0, *, graph=None, staged=False, model=None, fused=True, lr=1e-2, workers=0, schedule=None, **options
):
    torch.manual_seed(index)
    if model is None:
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 36, 4)
        model = nn.Sequential(*layers)
    model.cuda()
    images = torch.randint(0, 256, (84, 3, 8, 8), dtype=torch.uint8)
    targets = torch.randint(0, 4, (84,))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=fused, capturable=True)
    generator = torch.Generator().manual_seed(index)
    if staged:
        dataset = torch.utils.data.TensorDataset(images, targets)
        loader = torch.utils.data.DataLoader(
            dataset, 8, shuffle=True, generator=generator, pin_memory=True, num_workers=workers
        )
        data = StagedData(loader, 8, "cuda", slots=4)
    else:
        data = ResidentData(images.cuda(), targets.cuda(), 8, generator=generator)
    schedule = schedule or BatchAttentionSchedule(1.0, max_visits=20)
    loss_fn = nn.functional.cross_entropy
    return DeviceLoop(model, optimizer, loss_fn, data, schedule=schedule, graph=graph, seed=index, **options)


def shift(images, uniforms):
    return images + 0.1 * uniforms[:, :, None, None]


SETTINGS = {
    "plain": {},
    "staged": {"staged": True},
    "staged by workers": {"staged": True, "workers": 1},
    "augmented by position": {"augmentation": Augmentation(shift, draws=3)},
    "augmented afresh": {"augmentation": Augmentation(shift, draws=3, fresh=True)},
    "channels last": {"channels_last": True},
    "bfloat16": {"autocast": torch.bfloat16},
    "TF32": {"tf32": True},
}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on workers that are forked
@pytest.mark.parametrize("setting", SETTINGS)
def test_captured_updates_equal_eager_ones_bit_for_bit(setting):
    captured, eager = make_loop(**SETTINGS[setting]), make_loop(graph=False, **SETTINGS[setting])
    assert [captured.run_epoch() for _ in range(6)] == [eager.run_epoch() for _ in range(6)]
    assert are_equal(captured.model, eager.model)


def test_a_gradient_scaler_is_captured_too():
    loops = [
        make_loop(graph=graph, autocast=torch.float16, scaler=torch.amp.GradScaler("cuda", init_scale=2.0**10))
        for graph in (None, False)
    ]
    assert [loops[0].run_epoch() for _ in range(5)] == [loops[1].run_epoch() for _ in range(5)]
    assert are_equal(loops[0].model, loops[1].model)


def test_nothing_in_the_loop_waits_for_the_device():
    loop = make_loop()
    # Until the tail is captured too, each call copies model and optimizer to the host.
    for _ in range(5):
        loop.run_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.run_epoch()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="Triton needs a C compiler")
def test_the_kernel_equals_the_tensor_arithmetic():
    counters, plain = (DeviceCounters(Options(), torch.device("cuda"), 1) for _ in range(2))
    assert counters.kernel is not None
    plain.kernel = None
    state = State()
    state.epoch, state.threshold = 1, 1.0
    for each in (counters, plain):
        each.write(state, cursor=0)
    losses = torch.randn(200, device="cuda").exp()
    losses[::17] = float("nan")
    for loss in losses:
        counters.visit(loss)
        plain.visit(loss)
        assert counters.read() == plain.read()


def test_captured_visits_are_counted_and_dealt_as_eager_ones_are():
    captured, eager = make_loop(count_visits=True), make_loop(graph=False, count_visits=True)
    counts = []
    for _ in range(4):
        assert captured.run_epoch().visits == eager.run_epoch().visits
        assert captured.visit_counts == eager.visit_counts
        counts.append(captured.visit_counts)
    assert max(map(max, counts)) > 1
    control, eager_control = (
        make_loop(graph=graph, count_visits=True, schedule=EqualComputeControl(counts)) for graph in (None, False)
    )
    for dealt in counts:
        control.run_epoch()
        eager_control.run_epoch()
        assert control.visit_counts == eager_control.visit_counts
        assert sorted(control.visit_counts) == sorted(dealt)
    assert are_equal(control.model, eager_control.model)


def test_loops_that_take_turns_have_the_results_that_each_has_alone():
    alone = [make_loop(index) for index in range(3)]
    expected = [[loop.run_epoch() for _ in range(4)] for loop in alone]
    together = [make_loop(index) for index in range(3)]
    for ours, theirs in zip(run_interleaved(together, 4), expected, strict=True):
        assert [{**summary.as_dict(), "host_reads": 0} for summary in ours] == [
            {**summary.as_dict(), "host_reads": 0} for summary in theirs
        ]
    assert all(are_equal(ours.model, theirs.model) for ours, theirs in zip(together, alone, strict=True))


def test_a_captured_run_saved_in_mid_epoch_goes_on_bit_for_bit():
    whole = make_loop()
    for _ in range(5):
        whole.run_epoch()
    stopped = make_loop()
    stopped.run_epoch()
    stopped.run_epoch()
    assert stopped.run_updates(5) is None
    saved = copy.deepcopy(stopped.state_dict())
    stopped.run_epoch()
    for resumed in (stopped, make_loop()):
        resumed.load_state_dict(saved)
        for _ in range(3):
            resumed.run_epoch()
        assert are_equal(resumed.model, whole.model)


def test_a_model_that_reads_a_value_on_the_host_is_refused_and_keeps_its_weights():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(192, 4)

        def forward(self, x):
            outputs = self.linear(x.flatten(1))
            return outputs if outputs.sum().item() > -1e9 else outputs * 2

    model = Asking()
    loop = make_loop(model=model)
    before = copy.deepcopy(model)
    with pytest.raises(DeviceLoopError, match="graph=False"):
        loop.run_epoch()
    assert are_equal(model, before)
    assert torch.zeros(1, device="cuda").item() == 0.0


def test_an_optimizer_that_cannot_be_captured_is_refused():
    model = nn.Linear(2, 2).cuda()
    data = ResidentData(
        torch.randn(8, 2, device="cuda"),
        torch.zeros(8, dtype=torch.int64, device="cuda"),
        4,
        generator=torch.Generator(),
    )
    with pytest.raises(OptionError, match="capturable=True"):
        DeviceLoop(model, torch.optim.Adam(model.parameters()), nn.functional.cross_entropy, data)


def test_memory_does_not_grow_with_epochs():
    loop = make_loop()
    for _ in range(3):
        loop.run_epoch()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        loop.run_epoch()
    assert torch.cuda.memory_allocated() == before


def test_a_captured_loop_that_is_done_is_let_go_of_at_once():
    loop = make_loop()
    loop.run_epoch()
    counters = weakref.ref(loop.parts.counters)
    gc.disable()
    try:
        del loop
        assert counters() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_learning_rate_schedule_is_followed_by_captured_updates(as_tensor):
    loops = [make_loop(graph=graph, lr=torch.tensor(1e-2).cuda() if as_tensor else 1e-2) for graph in (None, False)]
    for loop in loops:
        scheduler = torch.optim.lr_scheduler.ExponentialLR(loop.parts.optimizer, 0.5)
        for _ in range(6):
            loop.run_epoch()
            scheduler.step()
    assert are_equal(loops[0].model, loops[1].model)


def test_a_state_from_before_the_first_update_begins_the_run_again():
    loop = make_loop()
    at_first = copy.deepcopy(loop.state_dict())
    expected = [loop.run_epoch() for _ in range(6)]
    weights = copy.deepcopy(loop.model)
    loop.load_state_dict(at_first)
    assert [loop.run_epoch() for _ in range(6)] == expected
    assert are_equal(loop.model, weights)


def test_a_loop_whose_capture_failed_trains_once_what_was_wrong_is_mended():
    class Asking(nn.Module):
        is_asking = True

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(192, 4)
            self.dropout = nn.Dropout(0.2)

        def forward(self, x):
            outputs = self.linear(self.dropout(x.flatten(1)))
            return outputs * 1.0 if self.is_asking and outputs.sum().item() > 1e9 else outputs

    loop = make_loop(model=Asking())
    with pytest.raises(DeviceLoopError, match="graph=False"):
        loop.run_epoch()
    loop.model.is_asking = False
    torch.manual_seed(0)
    eager = make_loop(model=Asking(), graph=False)
    eager.model.load_state_dict(loop.model.state_dict())
    assert [loop.run_epoch() for _ in range(5)] == [eager.run_epoch() for _ in range(5)]
    assert are_equal(loop.model, eager.model)


def test_a_tail_whose_capture_failed_is_undone_and_captured_once_what_was_wrong_is_mended():
    class Asking(nn.Module):
        is_asking = True

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(192, 4)
            self.dropout = nn.Dropout(0.2)

        def forward(self, x):
            outputs = self.linear(self.dropout(x.flatten(1)))
            is_asked = self.is_asking and len(x) < 8 and outputs.sum().item() > 1e9
            return outputs * 1.0 if is_asked else outputs

    loop, eager = (make_loop(model=Asking(), graph=graph) for graph in (None, False))
    eager.model.load_state_dict(loop.model.state_dict())
    summaries, failed = [], 0
    while len(summaries) < 8:
        before = copy.deepcopy(loop.model)
        try:
            summaries.append(loop.run_epoch())
        except DeviceLoopError:
            failed += 1
            assert are_equal(loop.model, before)
            loop.model.is_asking = False
    assert failed == 1
    assert summaries == [eager.run_epoch() for _ in range(8)]
    assert are_equal(loop.model, eager.model)


def freeze(model):
    model[0].weight.requires_grad_(False)


def lay_out_otherwise(model):
    model.to(memory_format=torch.channels_last)


def put_elsewhere(model):
    model[5].weight.data = model[5].weight.data * 0.5


@pytest.mark.parametrize("change", [freeze, lay_out_otherwise, put_elsewhere])
def test_what_is_done_to_a_model_after_a_capture_is_followed(change):
    loops = [make_loop(graph=graph) for graph in (None, False)]
    for loop in loops:
        for _ in range(5):
            loop.run_epoch()
        change(loop.model)
        for _ in range(5):
            loop.run_epoch()
    assert are_equal(loops[0].model, loops[1].model)


def test_an_optimizer_whose_state_the_host_keeps_is_refused_and_the_weights_stay():
    torch.manual_seed(0)
    model = nn.Linear(2, 2).cuda()
    inputs, targets = torch.randn(32, 2, device="cuda"), torch.zeros(32, dtype=torch.int64, device="cuda")
    data = ResidentData(inputs, targets, 4, generator=torch.Generator())
    loop = DeviceLoop(model, torch.optim.Adagrad(model.parameters()), nn.functional.cross_entropy, data)
    before = copy.deepcopy(model)
    with pytest.raises(DeviceLoopError, match="on the host"):
        loop.run_epoch()
    assert are_equal(model, before)


def test_a_copied_optimizer_warns_of_nothing_in_the_first_updates():
    loop = make_loop()
    optimizer = loop.parts.optimizer
    del optimizer._warned_capturable_if_run_uncaptured
    DeviceLoop(loop.model, optimizer, nn.functional.cross_entropy, loop.parts.data).run_epoch()


def test_the_callers_stream_sees_the_weights_that_a_loaded_state_has():
    loop = make_loop()
    loop.run_epoch()
    saved = loop.state_dict()
    loop.run_epoch()
    loop.load_state_dict(saved)
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value.cpu(), saved["model"][name])


def test_precision_may_have_been_set_before():
    for backend, name in precision_settings():
        before = getattr(backend, name)
        forbidden = False if name == "allow_tf32" else "ieee"
        setattr(backend, name, forbidden)
        make_loop(tf32=True).run_epoch()
        assert getattr(backend, name) == forbidden
        setattr(backend, name, before)


def test_what_is_put_in_the_place_of_a_class_weight_leaves_a_graph_what_it_was_captured_with():
    def train(*, is_changing, graph):
        loop = make_loop(graph=graph)
        loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0], device="cuda"))
        model, optimizer, data = loop.model, loop.parts.optimizer, loop.parts.data
        loop = DeviceLoop(
            model, optimizer, loss_fn, data, schedule=BatchAttentionSchedule(1.0, max_visits=20), graph=graph
        )
        for _ in range(5):
            loop.run_epoch()
        if is_changing:
            loss_fn.weight = torch.full((4,), 9.0, device="cuda")
        for _ in range(2):
            loop.run_epoch()
        return loop.model

    assert are_equal(train(is_changing=True, graph=None), train(is_changing=False, graph=False))
