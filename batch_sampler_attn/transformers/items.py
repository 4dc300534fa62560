"""Whether a loss is divided by the items of its window, as the trainer takes it wherever it hands their number on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class WatchedItems(torch.Tensor):
    """A ``num_items_in_batch`` that knows whether it was computed with; what is computed is a plain tensor.

    Looks at it, such as at its device, are no computation. Whatever it is not part of is left alone.

    Attributes:
        plain: The same number, in a tensor as others are.
        is_used: Whether it was.
    """

    plain: torch.Tensor
    is_used: bool

    @staticmethod
    def of(items: torch.Tensor) -> WatchedItems:
        """The same number, of which nothing was computed yet."""
        watched = items.detach().as_subclass(WatchedItems)
        watched.plain = items
        watched.is_used = False
        return watched

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute with the plain tensor, and note it."""
        is_use = getattr(function, "__name__", "") != "__get__"
        plain = {name: _plain(value, is_use) for name, value in (kwargs or {}).items()}
        return function(*(_plain(value, is_use) for value in args), **plain)


def _plain(value: Any, is_use: bool) -> Any:
    if isinstance(value, WatchedItems):
        value.is_used = value.is_used or is_use
        return value.plain
    if type(value) in (list, tuple):
        return type(value)(_plain(part, is_use) for part in value)
    return value


def is_compiled(model: Any) -> bool:
    """Whether the model is, or is wrapped around, a compiled one, in which nothing can be watched."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
