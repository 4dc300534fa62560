"""Captured updates on a device that does everything late, by the addresses of the capture; what a GPU would punish."""

import functools
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
PACES = [
    pytest.param((), id="all late"),
    pytest.param((1,), id="the first of the others at once"),
    pytest.param((0,), id="the caller at once", marks=pytest.mark.slow),
    pytest.param((2,), id="the second at once", marks=pytest.mark.slow),
]
ALL_AT_ONCE = range(10)
QUICK = ("mended", "resumed", "by_turns")


@functools.cache
def outcome_of_eager_updates(name):
    """On a device that does everything at once."""
    with switched_on(ALL_AT_ONCE):
        return list(SCENARIOS[name](graph=False))


@pytest.mark.parametrize("at_once", PACES)
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS if name not in QUICK)]
)
def test_late_replays_have_the_outcome_of_eager_updates(name, at_once):
    expected = outcome_of_eager_updates(name)
    with switched_on(at_once):
        assert same(list(SCENARIOS[name]()), expected)


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


def test_a_state_is_there_for_the_caller_once_it_is_returned_and_once_it_is_loaded():
    with switched_on() as machine:
        loop, _ = make_loop()
        run(loop, 1)
        state = loop.state_dict()
        saved = {name: value.cpu() for name, value in state["model"].items()}
        machine.synchronize()
        assert same(saved, weights_of(loop))
        run(loop, 1)
        machine.synchronize()
        loop.load_state_dict(state)
        assert same(saved, weights_of(loop))


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
