"""Captured updates on a device that does everything late, by the addresses of the capture; what a GPU would punish."""

import weakref

import pytest
import torch

from tests.device.helpers import same
from tests.device.replay.modes import switched_on
from tests.device.replay.scenarios import SCENARIOS, make_loop, run, weights_of
from tests.device.replay.streams import Event

pytestmark = pytest.mark.usefixtures("one_thread")

# Which streams do their work at once, while the others do it when it is waited for. The caller's is 0; those of loops
# follow, in the order in which they are made.
PACES = {
    "all late": (),
    "the first of the others at once": (1,),
    "the caller at once": (0,),
    "the second at once": (2,),
}
ALL_AT_ONCE = range(10)


@pytest.fixture(scope="module")
def expected():
    """A scenario's outcome with eager updates, on a device that does everything at once."""
    outcomes = {}

    def find(name):
        if name not in outcomes:
            with switched_on(ALL_AT_ONCE):
                outcomes[name] = list(SCENARIOS[name](graph=False))
        return outcomes[name]

    return find


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(
    "pace",
    [pace if number < 2 else pytest.param(pace, marks=pytest.mark.slow) for number, pace in enumerate(PACES)],
)
def test_late_replays_have_the_outcome_of_eager_updates(expected, name, pace):
    with switched_on(PACES[pace]):
        assert same(list(SCENARIOS[name]()), expected(name))


def test_in_a_captured_epoch_the_host_waits_for_nothing_but_the_cursor():
    with switched_on() as machine:
        loop, _ = make_loop()
        run(loop, 5)
        before = machine.waits
        reads = loop.run_epoch().host_reads
        assert machine.waits - before == reads


def test_what_is_enqueued_is_on_the_loops_stream_and_the_callers_does_not_wait_for_it():
    """Or loops that take turns would wait for each other."""
    with switched_on() as machine:
        loop, _ = make_loop()
        run(loop, 4)
        loop.run_updates(1)
        machine.synchronize()
        loop.enqueue()
        callers, loops = machine.streams[:2]
        assert len(loops.work) > 1
        assert all(isinstance(item, Event) for item in callers.work)


def test_graphs_are_dropped_once_their_replays_are_done():
    """The memory that these use is given to others then."""
    with switched_on() as machine:
        loop, optimizer = make_loop()
        run(loop, 4)
        loop.run_updates(1)
        loop.enqueue(1)
        left, stream = [], machine.streams[1]
        weakref.finalize(loop._graphs[True], lambda: left.append(len(stream.work)))
        optimizer.param_groups[0]["lr"] = 0.05
        loop.enqueue(1)
        assert left == [0]


def test_the_numbers_of_a_state_are_there_when_it_is_returned():
    with switched_on() as machine:
        loop, _ = make_loop()
        run(loop, 1)
        model = {name: value.cpu() for name, value in loop.state_dict()["model"].items()}
        machine.synchronize()
        assert same(model, weights_of(loop))


def test_a_state_that_lies_on_the_device_is_there_for_the_caller_once_it_is_loaded():
    with switched_on() as machine:
        loop, _ = make_loop()
        run(loop, 1)
        state = loop.state_dict()
        run(loop, 1)
        machine.synchronize()
        loop.load_state_dict(state)
        assert same(weights_of(loop), {name: value.cpu() for name, value in state["model"].items()})


# The machine itself -------------------------------------------------------------------------------------------------


def test_nothing_is_there_before_it_is_waited_for_nor_once_its_memory_is_freed():
    with switched_on() as machine:
        numbers = torch.ones(3, device="cuda")
        inside = numbers.inside
        assert inside.isnan().all()
        assert numbers.tolist() == [1.0] * 3
        assert numbers.device == machine.device
        del numbers
        machine.synchronize()
        assert inside.isnan().all()


def test_a_stream_sees_what_it_waited_for():
    with switched_on() as machine:
        numbers, other = torch.zeros(3, device="cuda"), machine.make_stream()
        machine.synchronize()
        numbers.add_(1)
        with torch.cuda.stream(other):
            assert numbers.tolist() == [0.0] * 3
            other.wait_stream(machine.streams[0])
            assert numbers.tolist() == [1.0] * 3


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
