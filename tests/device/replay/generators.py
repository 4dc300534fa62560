"""Generators that draw by seed and count, so that a replay draws what an eager update would have drawn."""

import torch

# That another may stand in for.
HOST_GENERATOR = torch.Generator


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
