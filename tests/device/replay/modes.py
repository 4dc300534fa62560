"""Makes torch believe that the late device exists: the machine does what torch asks of ``cuda``."""

import contextlib
import functools
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.device.replay.machine import Machine
from tests.device.replay.memory import DeviceTensor, no_modes
from tests.device.replay.streams import Capturing, Event, Graph, generators_on

aten = torch.ops.aten
HOST = torch.device("cpu")
MADE = {torch.tensor, torch.as_tensor}
MOVED = {Tensor.to, Tensor.cuda, Tensor.cpu}


class Operators(TorchDispatchMode):
    """Passes operators on the machine's tensors to the machine."""

    def __init__(self, machine):
        super().__init__()
        self.machine = machine
        # Whether a tensor is being made there. C++ does not see the device, or it would look for a driver.
        self.is_making = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return HOST
        machine, leaves = self.machine, tree_leaves((args, kwargs))
        is_there = any(isinstance(leaf, DeviceTensor) for leaf in leaves)
        if func is aten._local_scalar_dense.default and is_there:
            return machine.download(args[0]).item()
        if func is aten.copy_.default:
            target, source = args[:2]
            is_awaited = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            if isinstance(target, DeviceTensor) and not isinstance(source, DeviceTensor):
                machine.copy_in(target, source, is_awaited=is_awaited)
                return target
            if isinstance(source, DeviceTensor) and not isinstance(target, DeviceTensor):
                machine.copy_out(target, source, is_awaited=is_awaited)
                return target
        makes = self.is_making and not any(isinstance(leaf, Tensor) for leaf in leaves)
        if not is_there and not makes:
            return func(*args, **kwargs)
        return machine.call(func, args, {name: kwargs[name] for name in kwargs if name not in ("device", "pin_memory")})


class Functions(TorchFunctionMode):
    """Sees which device is asked for, before torch looks for its driver."""

    def __init__(self, machine, operators):
        super().__init__()
        self.machine, self.operators = machine, operators

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        machine = self.machine
        if func is Tensor.pin_memory:
            return self._pinned(args[0])
        if func is Tensor.__deepcopy__ and isinstance(args[0], DeviceTensor):
            return args[0].detach().clone()
        if func is Tensor.tolist and isinstance(args[0], DeviceTensor):
            return machine.download(args[0]).tolist()
        if func in MOVED:
            return self._move(func, args, kwargs)
        if kwargs.pop("pin_memory", False):
            return self._pinned(func(*args, **kwargs))
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        del kwargs["device"]
        if func in MADE:
            made = func(*args, **kwargs)
            return made if isinstance(made, DeviceTensor) else machine.upload(made)
        self.operators.is_making, before = True, self.operators.is_making
        try:
            return func(*args, **kwargs)
        finally:
            self.operators.is_making = before

    def _pinned(self, source):
        self.machine.refuse_in_capture("allocating pinned memory")
        with no_modes():
            pinned = source.detach().clone()
        pinned.is_pinned_here = True
        return pinned

    def _move(self, func, args, kwargs):
        tensor, *rest = args
        is_copied = kwargs.pop("copy", False)
        kwargs.pop("non_blocking", None)
        asked = {Tensor.cuda: "cuda", Tensor.cpu: "cpu"}.get(func) or kwargs.pop("device", None)
        if asked is None and rest and isinstance(rest[0], (str, torch.device, int)):
            asked = rest.pop(0)
        is_there = isinstance(tensor, DeviceTensor)
        is_wanted_there = is_there if asked is None else isinstance(asked, int) or torch.device(asked).type == "cuda"
        if is_there != is_wanted_there:
            tensor = self.machine.upload(tensor.detach()) if is_wanted_there else self.machine.download(tensor)
            is_copied = False
        return Tensor.to(tensor, *rest, **kwargs, copy=is_copied) if rest or kwargs or is_copied else tensor


@contextlib.contextmanager
def switched_on(at_once=()):
    """Let torch believe that ``cuda:1`` exists; yield the machine that it is."""
    machine = Machine(at_once)
    stand_ins = {
        "torch.Generator": generators_on(machine),
        "torch.cuda.Stream": machine.make_stream,
        "torch.cuda.Event": functools.partial(Event, machine),
        "torch.cuda.CUDAGraph": functools.partial(Graph, machine),
        "torch.cuda.graph": functools.partial(Capturing, machine),
        "torch.cuda.graph_pool_handle": object,
        "torch.cuda.stream": machine.on_stream,
        "torch.cuda.current_stream": lambda device=None: machine.current,
        "torch.cuda.synchronize": machine.synchronize,
        "torch.cuda.default_generators": machine.default_generators,
        "torch.cuda.is_current_stream_capturing": lambda: machine.capturing is not None,
        "torch.cuda.manual_seed_all": machine.default_generator.manual_seed,
        # Where tensors are of these types, and on a GPU, optimizers step in parts unless asked not to.
        "torch.optim.optimizer._foreach_supported_types": [Tensor, torch.nn.Parameter, DeviceTensor],
    }
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(name, stand_in))
        operators = stack.enter_context(Operators(machine))
        stack.enter_context(Functions(machine, operators))
        try:
            yield machine
        finally:
            machine.is_on = False
