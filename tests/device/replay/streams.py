"""Streams, events and graphs that do what they are given late, or at once, but always in order; and generators."""

from collections import deque

import torch

# That another may stand in for.
HOST_GENERATOR = torch.Generator
# A host that takes rubbish for a number may enqueue forever.
MOST_ENQUEUED = 20_000


class Event:
    """A place in a stream's work."""

    def __init__(self, machine, **options):
        self.machine = machine
        self.stream = None
        self.is_over = True

    def record(self, stream=None):
        self.machine.refuse_in_capture("recording an event to wait for")
        self.stream = self.machine.current if stream is None else stream
        self.is_over = False
        self.stream.enqueue(self)

    def synchronize(self):
        self.machine.refuse_in_capture("waiting for an event")
        self.machine.waits += 1
        self.stream.run_until(self)


class Stream:
    """Work that is done in order when it is waited for, or at once, as the machine's ``at_once`` says."""

    def __init__(self, machine, number):
        self.machine = machine
        self.number = number
        self.device = machine.device
        self.work = deque()

    def enqueue(self, item):
        """``item`` is an event, a pair ("wait", event), or a function that is called."""
        self.work.append(item)
        self.machine.enqueued += 1
        if self.machine.enqueued > MOST_ENQUEUED:
            raise OverflowError("more is enqueued than any training here takes")
        self.machine.go_on()

    def wait_stream(self, other):
        self.machine.refuse_in_capture("waiting for another stream")
        if other is self:
            return
        event = Event(self.machine)
        event.stream, event.is_over = other, False
        other.work.append(event)
        self.enqueue(("wait", event))

    def synchronize(self):
        self.machine.refuse_in_capture("waiting for a stream")
        self.machine.waits += 1
        self.finish()

    def finish(self):
        while self.work:
            self._step()

    def run_until(self, event):
        while not event.is_over:
            self._step()

    def go_on(self):
        """Do what can be done without anything that another stream has not done of itself."""
        is_moving = False
        while self.work and not (isinstance(self.work[0], tuple) and not self.work[0][1].is_over):
            self._step()
            is_moving = True
        return is_moving

    def _step(self):
        item = self.work.popleft()
        if isinstance(item, Event):
            item.is_over = True
        elif isinstance(item, tuple):
            item[1].stream.run_until(item[1])
        else:
            item()


class Graph:
    """What was done while it was captured, with the memory that it was done to."""

    def __init__(self, machine):
        self.machine = machine
        self.work = []
        self.state, self.draws = None, 0
        self.is_broken = False

    def pool(self):
        return self

    def replay(self):
        self.machine.refuse_in_capture("a replay")
        first, work = self.state.take(self.draws), self.work

        def run():
            for item in work:
                item(first)

        self.machine.enqueued += len(work)
        self.machine.current.enqueue(run)


class Capturing:
    """``torch.cuda.graph``: what is called inside is kept, and not done."""

    def __init__(self, machine, graph, pool=None, stream=None, capture_error_mode="global"):
        self.machine, self.graph, self.stream = machine, graph, stream

    def __enter__(self):
        self.machine.synchronize()
        self.before, self.machine.current = self.machine.current, self.stream
        self.graph.state = self.machine.default_generator.state
        self.graph.state.captured = 0
        self.machine.capturing = self.graph

    def __exit__(self, kind, error, trace):
        self.machine.capturing = None
        self.machine.current = self.before
        if self.graph.is_broken:
            raise RuntimeError("the capture was invalidated")
        if kind is None:  # otherwise the generators stay in capture, as CUDA's do
            self.graph.draws, self.graph.state.captured = self.graph.state.captured, None


# Generators draw by seed and count, so that a replay draws what an eager update would have drawn -------------------


class State:
    """Where a generator is. The object is what a graph keeps: a generator may be given another one."""

    def __init__(self):
        self.seed, self.count = 0, 0
        # The draws of a capture so far; None outside of one.
        self.captured = None

    def take(self, draws=1):
        """The number of the next draw, which is made later."""
        if self.captured is not None:
            raise RuntimeError("a generator is drawn from after a capture that failed")
        self.count += draws
        return self.count - draws

    def take_in_capture(self):
        self.captured += 1
        return self.captured - 1

    def at(self, count):
        """What makes the draw of this number."""
        return HOST_GENERATOR().manual_seed(hash((self.seed, count)) % 2**62)


class Generator:
    """A generator on the device."""

    def __init__(self, machine):
        self.machine, self.state = machine, State()

    def manual_seed(self, seed):
        self.machine.refuse_in_capture("seeding a generator")
        self.state.seed, self.state.count = seed, 0
        return self

    def get_state(self):
        self.machine.refuse_in_capture("asking for a generator's state")
        return torch.tensor([self.state.seed, self.state.count]).view(torch.uint8)

    def set_state(self, state):
        self.machine.refuse_in_capture("setting a generator's state")
        self.state.seed, self.state.count = state.clone().view(torch.int64).tolist()
        return self

    def graphsafe_get_state(self):
        other = Generator(self.machine)
        other.state = self.state
        return other

    def graphsafe_set_state(self, other):
        self.state = other.state


def generators_on(machine):
    """What stands in for ``torch.Generator``; a class, since modules that torch loads late name it as a type."""

    class Either(HOST_GENERATOR):
        def __new__(cls, device="cpu"):
            return HOST_GENERATOR() if torch.device(device).type == "cpu" else Generator(machine)

    return Either
