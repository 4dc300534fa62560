"""A stand-in for captured updates, which keeps to what was there at the capture as a CUDA graph does."""

import torch

from batch_sampler_attn.device import graphs


def addresses(optimizer):
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return [
        tensor.data_ptr()
        for tensor in tensors + [group["lr"] for group in optimizer.param_groups]
        if isinstance(tensor, torch.Tensor)
    ]


class Baked:
    """Updates with the numbers, and at the addresses, that there were at the capture."""

    def __init__(self, update, optimizer):
        self.update = update
        self.optimizer = optimizer
        self.addresses = addresses(optimizer)
        self.numbers = [group["lr"] for group in optimizer.param_groups]
        self.trained = self.trained_now()

    def trained_now(self):
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return [(p.data_ptr(), p.stride(), p.requires_grad) for p in parameters]

    def replay(self):
        assert addresses(self.optimizer) == self.addresses
        assert self.trained_now() == self.trained
        groups = self.optimizer.param_groups
        now = [group["lr"] for group in groups]
        for group, number in zip(groups, self.numbers, strict=True):
            group["lr"] = number
        self.update()
        for group, number in zip(groups, now, strict=True):
            group["lr"] = number


class Stream:
    device = torch.device("cpu")

    def synchronize(self):
        pass


def pretend(loop, captures, monkeypatch):
    """Have a loop believe that it captures; ``captures`` tells of every capture."""

    augmentation = loop.parts.recipe.augmentation
    draws_afresh = augmentation is not None and augmentation.fresh

    def capture(update, stream, pool, generators):
        assert generators == [loop.parts.randomness.fresh] * draws_afresh
        captures.append(update)
        return Baked(update, loop.parts.optimizer)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(graphs, "capture", capture)
    loop.parts.graphs._stream = Stream()
    return loop
