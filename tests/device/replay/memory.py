"""Tensors on the device: memory of the host whose numbers are there once they are waited for."""

import contextlib

import torch
from torch.utils._python_dispatch import _disable_current_modes

RUBBISH = 0xFF


class Block:
    """A piece of the device's memory. Once no tensor uses it, it is spoiled, in the order of the stream."""

    def __init__(self, machine, storage):
        self.machine, self.storage = machine, storage
        self.stream, self.graph = machine.current, machine.capturing

    def __del__(self):
        machine, storage = self.machine, self.storage
        if not machine.is_on:
            return
        if machine.capturing is not None:
            # A replay spoils memory of its own capture only.
            if self.graph is machine.capturing:
                machine.capturing.work.append(lambda first: spoil(storage))
        elif self.graph is None:
            self.stream.enqueue(lambda: spoil(storage))


def spoil(storage):
    """Fill memory with rubbish: NaN as floats, -1 as integers."""
    with no_modes():
        torch.tensor([], dtype=torch.uint8).set_(storage).fill_(RUBBISH)


class DeviceTensor(torch.Tensor):
    """A tensor on the device.

    To Python it says so. To autograd, which would ask a driver for streams, it is a tensor of the host; no kernel is
    run on it, but for those that the machine runs on ``inside``.
    """

    @staticmethod
    def __new__(cls, inside, block):
        return torch.Tensor._make_subclass(
            cls, inside, False, dispatch_device=True, device_for_backend_keys=block.machine.device
        )

    def __init__(self, inside, block):
        self.inside, self.block = inside, block

    @property
    def device(self):
        return self.block.machine.device

    @property
    def is_cuda(self):
        return True

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")
        raise AssertionError(f"{func} is called on a tensor of a device that is switched off")

    __torch_function__ = torch._C._disabled_torch_function_impl


@contextlib.contextmanager
def no_modes():
    """Neither of the machine's modes sees what is called inside."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack():  # none while an operator is dispatched, and this takes its time
            stack.enter_context(_disable_current_modes())
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        yield
