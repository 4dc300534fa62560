"""What may not be part of an update that is captured, as CUDA and PyTorch have it."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# PyTorch marks what reads a value, or takes a shape from values, on the host.
_MARKS = {
    torch.Tag.data_dependent_output: "the host waits for a value",
    torch.Tag.dynamic_output_shape: "a shape depends on values, which the host waits for",
}
# What is not marked, and what its CUDA kernels do all the same.
_NAMES = {
    "_pin_memory": "pinned memory is allocated",
    "pin_memory": "pinned memory is allocated",
    "is_pinned": "the driver is asked about memory",
    "_linalg_check_errors": "the host waits for an error code",
    "_linalg_eigh": "the host waits for an error code",
    "_linalg_svd": "the host waits for an error code",
    "linalg_eig": "the host waits for an error code",
    "_linalg_eigvals": "the host waits for an error code",
    "multinomial": "the host waits for whether these are probabilities",
    "embedding_renorm_": "the host waits for the rows that are used",
    "_sparse_coo_tensor_unsafe": "a sparse tensor's indices are looked at on the host",
    "to_sparse": "a shape depends on values, which the host waits for",
    "_to_sparse": "a shape depends on values, which the host waits for",
    "masked_scatter": "the host waits for how many are masked",
    "set_": "a tensor is given other memory, which a replay does not see",
    "resize_": "a tensor is given other memory, which a replay does not see",
}
# As it is called while another stands in for it.
_GENERATOR = torch._C.Generator
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_COPIES = (aten._to_copy.default, aten.copy_.default, aten.copy.default)


def why_refused(func, args, kwargs, generators=()):
    """Why a capture refuses this call, or gets it wrong; None if it does neither.

    Args:
        func: The operator.
        args: Its arguments; tensors among them are on a CUDA device, or on the host.
        kwargs: The same, by name.
        generators: Those that the capture is told of.
    """
    leaves = tree_leaves((args, kwargs))
    devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
    asked_for = kwargs.get("device")
    devices |= {"cpu"} if asked_for is None and not devices else set()
    devices |= set() if asked_for is None else {torch.device(asked_for).type}
    if "cpu" in devices:
        if func in _COPIES and len(devices) > 1:
            return "host and device exchange memory, which waits, or is done once and for all"
        return "a tensor is on the host, and a replay does nothing there"
    if kwargs.get("pin_memory"):
        return "pinned memory is allocated"
    # The object that arrives here is another than the one that was passed, of the same generator.
    told_of = {generator.initial_seed() for generator in generators}
    if any(isinstance(leaf, _GENERATOR) and leaf.initial_seed() not in told_of for leaf in leaves):
        return "a generator is drawn from that the capture is not told of"
    if func in _INDEXED:
        are_masks = any(index.dtype in (torch.bool, torch.uint8) for index in tree_leaves(args[1]) if index is not None)
        return "a shape depends on values, which the host waits for" if are_masks else None
    name = func._schema.name.partition("::")[2]
    return _NAMES.get(name) or next((why for mark, why in _MARKS.items() if mark in func.tags), None)
