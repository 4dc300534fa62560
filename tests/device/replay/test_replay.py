"""Captured updates on a device that does everything late, by the addresses of the capture; what a GPU would punish."""

import importlib.util
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn.device import counters
from batch_sampler_attn.errors import DeviceLoopError
from tests.device.interpreted import interpreted_kernel
from tests.device.replay.copies import changed, loaded
from tests.device.replay.modes import moved, switched_on
from tests.device.replay.mutations import MUTATIONS
from tests.device.replay.scenarios import FEATURES, SCENARIOS, are_same, make_loop, weights_of
from tests.device.replay.streams import Event

pytestmark = pytest.mark.usefixtures("one_thread")

# Which streams do their work at once, while the others do it when it is waited for. The caller's is 0; the copies into
# a ring, where there is one, go before the loop's own.
PACES = {
    "all late": (),
    "the caller at once": (0,),
    "the first of the others at once": (1,),
    "the second at once": (2,),
}
ALL_AT_ONCE = range(10)


@pytest.fixture(scope="module")
def expected():
    """What a scenario comes to with eager updates, on a device that does everything at once."""
    outcomes = {}

    def find(name):
        if name not in outcomes:
            with switched_on(ALL_AT_ONCE):
                outcomes[name] = list(SCENARIOS[name](loaded(), graph=False))
        return outcomes[name]

    return find


def is_as_expected(package, name, expected, at_once=(), release=None):
    with switched_on(at_once, release):
        return are_same(list(SCENARIOS[name](package)), expected)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    "pace",
    [pace if number in (0, 2) else pytest.param(pace, marks=pytest.mark.slow) for number, pace in enumerate(PACES)],
)
def test_late_replays_come_to_what_eager_updates_come_to(expected, name, pace):
    assert is_as_expected(loaded(), name, expected(name), PACES[pace])


def test_generators_are_made_known_to_a_graph_where_it_does_not_find_them(expected):
    assert is_as_expected(loaded(), "resident", expected("resident"), release="2.12.0")


@pytest.mark.slow
@pytest.mark.parametrize("title", MUTATIONS)
def test_what_a_gpu_would_punish_is_found_out(expected, title, tmp_path):
    mutation = MUTATIONS[title]
    outcome = expected(mutation.scenario)
    with changed(mutation.old, mutation.new, tmp_path) as package:
        try:
            is_found = not is_as_expected(package, mutation.scenario, outcome, release=mutation.release)
        except Exception:  # whatever comes of it
            is_found = True
    assert is_found


@pytest.mark.parametrize("title", MUTATIONS)
def test_every_change_that_is_to_be_found_out_can_be_made(title, tmp_path):
    with changed(MUTATIONS[title].old, MUTATIONS[title].new, tmp_path) as package:
        assert str(tmp_path) in package.DeviceLoop.run_epoch.__code__.co_filename
    assert str(tmp_path) not in loaded().DeviceLoop.run_epoch.__code__.co_filename


def test_in_a_captured_epoch_the_host_waits_for_nothing_but_the_cursor():
    with switched_on() as machine:
        for options in ({"augmented": "afresh"}, {"staged": True, "augmented": "by position"}):
            loop = make_loop(loaded(), **options)
            for _ in range(5):
                loop.run_epoch()
            before = machine.waits
            reads = loop.run_epoch().host_reads
            assert machine.waits - before == reads


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("name", ["resident", "staged"])
def test_the_fused_visit_is_captured_with_the_addresses_of_what_it_changes(expected, name, monkeypatch):
    outcome, visits = expected(name), []
    kernel = interpreted_kernel(monkeypatch)
    with switched_on() as machine:

        def visit(loss, floats, integers, max_visits, epoch_loss):
            """A launch: of the tensors it knows the memory alone."""
            inside = [tensor.inside for tensor in (loss, floats, integers, max_visits)]
            visits.append(machine.capturing is not None)
            machine.enqueue(lambda bases: kernel.visit(*inside, epoch_loss))

        monkeypatch.setattr(counters, "_find_kernel", lambda device, epoch_loss: visit)
        assert are_same(list(SCENARIOS[name](loaded())), outcome)
    assert True in visits


def test_what_is_enqueued_is_on_the_loops_stream_and_the_callers_does_not_wait_for_it():
    """Or loops that take turns would wait for each other."""
    with switched_on() as machine:
        loop = make_loop(loaded())
        for _ in range(4):
            loop.run_epoch()
        loop.run_updates(1)
        machine.synchronize()
        loop.enqueue()
        callers, loops = machine.streams[0], loop.parts.place.stream
        assert len(loops.work) > 1
        assert all(isinstance(item, Event) for item in callers.work)


def test_graphs_are_let_go_of_once_their_replays_are_done():
    """The memory that these use is given to others then."""
    with switched_on():
        loop = make_loop(loaded())
        for _ in range(4):
            loop.run_epoch()
        loop.run_updates(1)
        loop.enqueue(1)
        left, stream = [], loop.parts.place.stream
        weakref.finalize(loop.parts.graphs._graphs["full_batch"], lambda: left.append(len(stream.work)))
        loop.parts.optimizer.param_groups[0]["lr"] = 0.05
        loop.enqueue(1)
        assert left == [0]


def test_after_an_error_the_caller_sees_what_was_trained_until_then():
    with switched_on() as machine:
        loop = make_loop(loaded(), staged=True)
        for _ in range(5):
            loop.run_epoch()
        loader, before = loop.parts.data.loader, weights_of(loop)
        collate, batches = loader.collate_fn, []

        def failing(samples):
            batches.append(samples)
            return collate(samples) if len(batches) < 3 else 1 / 0

        loader.collate_fn = failing
        with pytest.raises(ZeroDivisionError):
            loop.run_epoch()
        seen = weights_of(loop)
        machine.synchronize()
        assert are_same(seen, weights_of(loop))
        assert not are_same(seen, before)


def test_the_numbers_of_a_state_are_there_when_it_is_returned():
    with switched_on() as machine:
        loop = make_loop(loaded())
        # In mid-epoch the order is looked at too, which waits.
        loop.run_epoch()
        model = {name: value.clone() for name, value in loop.state_dict()["model"].items()}
        machine.synchronize()
        assert are_same(model, weights_of(loop))


def test_a_state_that_lies_on_the_device_is_there_for_the_caller_once_it_is_loaded():
    with switched_on() as machine:
        loop = make_loop(loaded())
        loop.run_epoch()
        state = loop.state_dict()
        state["model"] = {name: value.cuda() for name, value in state["model"].items()}
        # A copy from the host would wait for all that was before it.
        for entry in state["optimizer"]["state"].values():
            entry["momentum_buffer"] = entry["momentum_buffer"].cuda()
        loop.run_epoch()
        machine.synchronize()
        loop.load_state_dict(state)
        assert are_same(weights_of(loop), {name: value.cpu() for name, value in state["model"].items()})


class Asking(nn.Module):
    is_asking = False

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, 3)
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs):
        outputs = self.linear(self.dropout(inputs))
        return outputs * 2 if self.is_asking and outputs.sum().item() > 1e9 else outputs


@pytest.mark.parametrize(
    ("epochs", "changed_rate", "augmented"),
    [
        pytest.param(1, None, None, id="at first: three updates were eager, and the next is captured"),
        pytest.param(5, 0.05, "afresh", id="when nothing is undone any more: a changed rate has it captured again"),
    ],
)
def test_a_capture_that_fails_leaves_the_loop_and_its_random_numbers_as_if_it_had_not_been(
    epochs, changed_rate, augmented
):
    def train(*, is_asking, **options):
        torch.manual_seed(0)
        loop = make_loop(loaded(), model=Asking(), augmented=augmented, **options)
        for _ in range(epochs):
            loop.run_epoch()
        if changed_rate is not None:
            loop.parts.optimizer.param_groups[0]["lr"] = changed_rate
        if is_asking:
            loop.model.is_asking = True
            with pytest.raises(DeviceLoopError, match="cannot be captured"):
                loop.run_epoch()
            loop.model.is_asking = False
        for _ in range(4):
            loop.run_epoch()
        return weights_of(loop)

    with switched_on(ALL_AT_ONCE):
        expected = train(is_asking=False, graph=False)
    with switched_on():
        assert are_same(train(is_asking=True), expected)


def test_what_is_put_in_the_place_of_an_attribute_leaves_a_graph_what_it_was_captured_with():
    class Scaling(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(FEATURES, 3)
            self.scale = torch.tensor(2.0, device="cuda")

        def forward(self, inputs):
            return self.linear(inputs) * self.scale

    def train(*, is_changing, **options):
        torch.manual_seed(0)
        loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], device="cuda"))
        loop = make_loop(loaded(), model=Scaling(), loss_fn=loss_fn, **options)
        for _ in range(5):
            loop.run_epoch()
        if is_changing:
            loop.model.scale = torch.tensor(7.0, device="cuda")
            loss_fn.weight = torch.tensor([5.0, 5.0, 5.0], device="cuda")
        for _ in range(2):
            loop.run_epoch()
        return weights_of(loop)

    with switched_on(ALL_AT_ONCE):
        expected = train(is_changing=False, graph=False)
    with switched_on():
        assert are_same(train(is_changing=True), expected)


# The machine itself -------------------------------------------------------------------------------------------------


def test_nothing_is_there_before_it_is_waited_for():
    with switched_on() as machine:
        numbers = torch.ones(3, device="cuda")
        doubled = numbers * 2
        assert doubled.inside.isnan().all()
        assert doubled.tolist() == [2.0] * 3
        assert doubled.device == machine.device


def test_memory_that_is_let_go_of_is_somebody_elses():
    with switched_on() as machine:
        numbers = torch.ones(3, device="cuda")
        inside = numbers.inside
        machine.synchronize()
        assert inside.tolist() == [1.0] * 3
        del numbers
        machine.synchronize()
        assert inside.isnan().all()


def test_what_a_stream_does_not_wait_for_it_does_not_see():
    with switched_on() as machine:
        numbers, other = torch.zeros(3, device="cuda"), machine.make_stream()
        machine.synchronize()
        numbers.add_(1)
        with torch.cuda.stream(other):
            assert numbers.tolist() == [0.0] * 3
            other.wait_stream(machine.streams[0])
            assert numbers.tolist() == [1.0] * 3


def test_a_graph_goes_on_with_the_memory_and_the_generators_of_its_capture():
    with switched_on() as machine:
        numbers, generator = torch.zeros(3, device="cuda"), torch.Generator("cuda").manual_seed(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=machine.current):
            numbers.add_(torch.rand(3, device="cuda", generator=generator))
        assert numbers.tolist() == [0.0] * 3
        drawn = torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).tolist()
        graph.replay()
        assert numbers.tolist() == drawn
        graph.replay()
        assert numbers.tolist() != [2 * number for number in drawn]


@pytest.mark.parametrize(
    "act",
    [
        lambda numbers: numbers.sum().item(),
        lambda numbers: numbers.cpu(),
        lambda numbers: numbers.add_(torch.tensor([1.0], device="cuda")),
        lambda numbers: torch.zeros(3).pin_memory(),
        lambda numbers: torch.cuda.synchronize(),
        lambda numbers: torch.Generator("cuda").manual_seed(0),
        lambda numbers: numbers + torch.ones(3),
    ],
)
def test_a_capture_refuses_what_cuda_refuses(act):
    with switched_on() as machine:
        numbers = torch.zeros(3, device="cuda")
        with pytest.raises(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=machine.current):
            act(numbers)


def test_a_model_is_moved_with_all_that_it_has():
    with switched_on():
        model = moved(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        assert {str(value.device) for value in model.state_dict().values()} == {"cuda:1"}
        assert all(parameter.requires_grad for parameter in model.parameters())
