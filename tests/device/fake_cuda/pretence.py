"""A CUDA device that is not there: tensors on it have shapes, types and a device, and no numbers.

What it cannot show: the kernels that CUDA's operators choose by themselves (cuDNN's batch normalization, flash
attention), and what a CUDA kernel does on the host without saying so, beyond what ``refused`` knows by name.
"""

import contextlib
import itertools
from unittest import mock

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.device.fake_cuda.refused import why_refused

DEVICE = torch.device("cuda", 0)
META = torch.device("meta")
AUTOGRADS_QUESTION = torch.ops.prim.device.default
PIN = torch.ops.aten._pin_memory.default
READ = torch.ops.aten._local_scalar_dense.default


class RefusedError(Exception):
    """An operator is none that can be captured."""


class Watch(TorchDispatchMode):
    """Sees every operator, and takes none for an answer where there is no device.

    Attributes:
        operators: The names of those that were called while it was ``listening``.
    """

    def __init__(self):
        super().__init__()
        self.operators = set()
        self._generators = None

    @contextlib.contextmanager
    def listening(self, generators=()):
        """Raise ``RefusedError`` at what a capture refuses, which is told of these generators.

        Before and after, a value that is read is 1: so a loop can be constructed.
        """
        self._generators = generators
        try:
            yield
        finally:
            self._generators = None

    def refuse_to_print(self, to_text):
        """``to_text``, but for tensors while it is listening: the numbers of a fake one are not asked for."""

        def text_of(tensor, **options):
            if self._generators is not None:
                raise RefusedError("a tensor is printed: the host waits for its values")
            return to_text(tensor, **options)

        return text_of

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is AUTOGRADS_QUESTION:
            # Autograd would ask the driver for the streams of a CUDA device. What it makes on its own account "there"
            # is put back where it belongs below.
            return META
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if kwargs.get("device") == META:
            kwargs = {**kwargs, "device": DEVICE}
        if self._generators is not None:
            self.operators.add(str(func))
            if (why := why_refused(func, args, kwargs, self._generators)) is not None:
                raise RefusedError(f"{func}: {why}")
        elif func is READ:
            return 1
        elif func is PIN:
            return args[0]
        if not func._schema.returns:
            # It changes numbers, of which there are none; not all of these can be called without.
            return None
        try:
            return func(*args, **kwargs)
        except Exception as error:
            # Without numbers it cannot even be called.
            raise RefusedError(f"{func}: {why_refused(func, args, kwargs, self._generators or ()) or error}") from error


class Generator(torch.Generator):
    """A generator for any device. Each keeps a seed of its own: which it is counts here, and not what it draws."""

    _made = itertools.count()

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        super(cls, generator).manual_seed(next(cls._made))
        return generator

    def manual_seed(self, seed):
        return self


class Stream:
    """Has nothing to do, and so nothing to wait for."""

    def __init__(self, device=None):
        self.device = DEVICE

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


def relayout(module, to, *args, memory_format=None, **options):
    """``module.to``: a parameter that a fake mode keeps track of cannot be exchanged for another."""
    if memory_format is None:
        return to(module, *args, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 4:
                like = torch.empty(parameter.shape, device="cpu", memory_format=memory_format)
                parameter.as_strided_(parameter.shape, like.stride())
    return module


@contextlib.contextmanager
def pretended():
    """Let torch take ``cuda:0`` for there, and yield what watches its operators.

    Everything made inside is a fake tensor; a tensor with numbers in it is refused.
    """
    to = nn.Module.to
    with contextlib.ExitStack() as stack:
        mode, watch = FakeTensorMode(allow_non_fake_inputs=False), Watch()
        for name, stand_in in {
            "torch.Generator": Generator,
            "torch.cuda.Stream": Stream,
            "torch.cuda.current_stream": lambda device=None: Stream(),
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
            # Where tensors are of these types, and on a GPU, optimizers step in parts unless asked not to.
            "torch.optim.optimizer._foreach_supported_types": [torch.Tensor, nn.Parameter, FakeTensor],
            "torch._tensor_str._str": watch.refuse_to_print(torch._tensor_str._str),
        }.items():
            stack.enter_context(mock.patch(name, stand_in))
        stack.enter_context(
            mock.patch.object(nn.Module, "to", lambda module, *args, **options: relayout(module, to, *args, **options))
        )
        stack.enter_context(mode)
        yield stack.enter_context(watch)
