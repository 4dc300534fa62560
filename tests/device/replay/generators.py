"""Generators that draw by seed and count, so that a replay draws what an eager update would have drawn."""

import itertools
import weakref

import torch

# That another may stand in for.
HOST_GENERATOR = torch.Generator


class State:
    """Where a generator is. The object is what a graph keeps: a generator may be given another one."""

    def __init__(self):
        self.seed, self.count = 0, 0
        self.captured = None

    def take(self, draws=1):
        """The number of the next draw, which is made later."""
        if self.captured is not None:
            raise RuntimeError("a generator is drawn from after a capture that failed")
        self.count += draws
        return self.count - draws

    def begin_capture(self):
        self.captured = 0

    def end_capture(self):
        draws, self.captured = self.captured, None
        return draws

    def take_in_capture(self):
        if self.captured is None:
            raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
        self.captured += 1
        return self.captured - 1

    def at(self, count):
        """What makes the draw of this number."""
        return HOST_GENERATOR().manual_seed(hash((self.seed, count)) % 2**62)


_numbers = itertools.count(1)
_made = weakref.WeakValueDictionary()


class Generator(HOST_GENERATOR):
    """A generator on the device."""

    def __new__(cls, machine):
        generator, number = super().__new__(cls), next(_numbers)
        # What arrives where it is drawn from is another object; its seed tells which one it is.
        HOST_GENERATOR.manual_seed(generator, number)
        _made[number] = generator
        generator.state = State()
        generator.machine = machine
        return generator

    @classmethod
    def find(cls, generator):
        return _made[generator.initial_seed()]

    @property
    def device(self):
        return self.machine.device

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
        return self


def generators_on(machine):
    """What stands in for ``torch.Generator``; a class, since modules that torch loads late name it as a type."""

    class Either(HOST_GENERATOR):
        def __new__(cls, device="cpu"):
            return HOST_GENERATOR() if torch.device(device).type == "cpu" else Generator(machine)

    return Either
