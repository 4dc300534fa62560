"""One loss from any framework as a Python float, without importing that framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batch_sampler_attn.errors import LossError, short_repr

_ALLOWED = (
    "a loss is one real number: a float, an int, or a NumPy, PyTorch, JAX or TensorFlow value with exactly one element"
)


def as_float(loss: object) -> float:
    """A real number, or an array or tensor of one element, as a double. Reading a tensor waits for its device."""
    if type(loss) is float:
        return loss
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return _to_double(loss)
    _check_shape(loss)
    mask = getattr(loss, "mask", False)  # of NumPy's masked arrays
    if not callable(mask) and bool(mask):
        raise LossError(f"got a masked loss, {short_repr(loss)}, which has no value; {_ALLOWED}. Fill it in first")
    item = getattr(loss, "item", None)
    value = _read(loss, item) if callable(item) else loss
    # Objects that convert themselves (Decimal, TensorFlow's eager tensors) have __float__; str, None,
    # complex and containers do not.
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        hint = ". To skip this batch, call schedule.skip()" if loss is None else ""
        raise LossError(f"got {short_repr(value)} of type {type(loss).__name__}; {_ALLOWED}{hint}")
    return _to_double(value)


def detached(loss: object) -> Any:
    """A loss to be read later: a double, or a copy on its device if reading it would wait for that device."""
    is_tensor = callable(getattr(loss, "detach", None))
    if is_tensor and getattr(getattr(loss, "device", None), "type", "cpu") != "cpu":
        _check_shape(loss)
        # A copy, since the loop may change its loss in place.
        return loss.detach().clone()  # type: ignore[attr-defined]
    if callable(getattr(loss, "block_until_ready", None)):
        # JAX computes while Python continues, and its arrays do not change.
        _check_shape(loss)
        return loss
    return as_float(loss)


def _check_shape(loss: object) -> None:
    shape = getattr(loss, "shape", ())
    if any(length != 1 for length in shape):
        raise LossError(f"got a loss of shape {tuple(shape)}; {_ALLOWED}. Reduce it first, as with loss.mean()")


def _read(loss: object, read: Callable[[], Any]) -> Any:
    """``read()``; for a JAX tracer, which has no value yet, raise LossError with advice."""
    try:
        return read()
    except Exception as error:
        if not any(cls.__name__ == "Tracer" and cls.__module__.startswith("jax.") for cls in type(loss).__mro__):
            raise
        raise LossError(
            f"got a JAX tracer, {short_repr(loss)}, which has no value yet: jax.jit traces before it runs. Return "
            "the loss, and call decide on what it returns: loss, state = update(state, batch); schedule.decide(loss)"
        ) from error


def _to_double(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise LossError(f"a loss of type {type(value).__name__} does not convert to a float; {_ALLOWED}") from error


def as_floats(losses: object) -> list[float]:
    """Per-sample losses, an array, tensor or list of shape (batch,), as doubles. Reading them waits for the device."""
    shape = getattr(losses, "shape", None)
    tolist = getattr(losses, "tolist", None)
    if shape is None or len(shape) == 1:
        values = _read(losses, tolist) if callable(tolist) else losses
        if isinstance(values, (list, tuple)):
            if any(value is None for value in values):
                raise LossError("got a loss that is masked, or None; report NaN for it, which leaves the sample as is")
            return [as_float(value) for value in values]
    what = f"type {type(losses).__name__}" if shape is None else f"shape {tuple(shape)}"
    raise LossError(
        f"got losses of {what}; they must have shape (batch,), one loss per sample. Compute them with "
        'reduction="none", and reduce other dimensions, for example with losses.flatten(1).mean(1)'
    )
