"""What is known of an operator before it is done: what it changes, what it returns, what it draws from."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from tests.device.replay.memory import no_modes


def is_view(func):
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def changed_by(func, args, kwargs):
    """The arguments that an operator changes in place and returns."""
    changed = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs[argument.name]
            changed[frozenset(argument.alias_info.before_set)] = value
    found = tuple(changed[frozenset(each.alias_info.before_set)] for each in func._schema.returns)
    return found[0] if len(found) == 1 else found


class Shape(NamedTuple):
    """All of a tensor but its numbers."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, leaf):
        """The shape of a tensor; all else as it is."""
        return cls(tuple(leaf.size()), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf


@functools.cache
def shapes_of(func, spec, leaves, types):
    """What an operator returns, on the device that has shapes alone; 1, 1.0 and True are kept apart by their types."""
    with no_modes():
        is_meta = [isinstance(leaf, Shape) for leaf in leaves]
        metas = [
            torch.empty_strided(leaf.size, leaf.stride, dtype=leaf.dtype, device="meta") if is_one else leaf
            for leaf, is_one in zip(leaves, is_meta, strict=True)
        ]
        args, kwargs = tree_unflatten(metas, spec)
        return func(*args, **kwargs) if any(is_meta) else func(*args, **kwargs, device="meta")


def called_with(generator, func, args, kwargs):
    """What an operator returns that draws from this generator, whether it takes one or not, or draws nothing."""
    if generator is None:
        return func(*args, **kwargs)
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func(*args, **{**kwargs, "generator": generator})
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        return func(*args, **kwargs)
    finally:
        torch.set_rng_state(before)
