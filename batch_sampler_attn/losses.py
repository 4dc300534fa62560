"""One loss from any framework as a Python float, without importing that framework."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batch_sampler_attn.errors import LossError, short_repr

_ALLOWED = (
    "a loss is one real number: a float, an int, or a NumPy, PyTorch, JAX or TensorFlow value with exactly one element"
)


def as_float(loss: object) -> float:
    """Return ``loss`` as a double.

    Args:
        loss: A real number, or an array or tensor of one element on any device. Reading a tensor waits
            for its device.

    Raises:
        LossError: For anything else: strings, None, booleans, complex numbers, vectors.
    """
    if type(loss) is float:
        return loss
    if isinstance(loss, (int, float)) and not isinstance(loss, bool):
        return _to_double(loss)
    _check_shape(loss)
    if _is_masked(loss):
        raise LossError(f"got a masked loss, {short_repr(loss)}, which has no value; {_ALLOWED}. Fill it in first")
    item = getattr(loss, "item", None)
    value = _read(loss, item) if callable(item) else loss
    # Objects that convert themselves (Decimal, TensorFlow's eager tensors) have __float__; str, None,
    # complex and containers have not.
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise LossError(f"got {short_repr(value)} of type {type(loss).__name__}; {_ALLOWED}{_hint(loss)}")
    return _to_double(value)


def detached(loss: object) -> Any:
    """A loss to be read later: a double, or a copy on its device where reading it would wait for that device.

    Args:
        loss: As for ``as_float``.

    Raises:
        LossError: If it is not one real number, as far as that is known without waiting.
    """
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


def _is_masked(loss: object) -> bool:
    """Whether the one element is masked, as in NumPy's masked arrays."""
    mask = getattr(loss, "mask", False)
    return not callable(mask) and bool(mask)


def _read(loss: object, read: Callable[[], Any]) -> Any:
    """``read()``, where the loss has a value already; with JAX, that is outside of the functions that it traces."""
    try:
        return read()
    except Exception as error:
        if not any(cls.__name__ == "Tracer" and cls.__module__.startswith("jax.") for cls in type(loss).__mro__):
            raise
        raise LossError(
            f"got a JAX tracer, {short_repr(loss)}, which has no value yet: this was called inside a function that "
            "jax.jit or another transformation traces before it runs. Return the loss from that function, and call "
            "decide on what it returns: loss, state = update(state, batch); schedule.decide(loss)"
        ) from error


def _hint(loss: object) -> str:
    return ". To leave this batch out, call schedule.skip()" if loss is None else ""


def _to_double(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise LossError(f"a loss of type {type(value).__name__} does not convert to a float; {_ALLOWED}") from error


def as_floats(losses: object) -> list[float]:
    """Return one loss for each sample as doubles.

    Args:
        losses: (batch,), an array or tensor of any framework, or a sequence of real numbers. Reading a tensor waits for
            its device.

    Raises:
        LossError: For anything else.
    """
    shape = getattr(losses, "shape", None)
    if shape is not None and len(shape) != 1:
        hint = (
            'Compute it with reduction="none"'
            if len(shape) == 0
            else "Reduce the other dimensions first, for example with losses.flatten(1).mean(1)"
        )
        raise LossError(
            f"got losses of shape {tuple(shape)}; they must be of shape (batch,), one for each sample. {hint}"
        )
    tolist = getattr(losses, "tolist", None)
    values = _read(losses, tolist) if callable(tolist) else losses
    if not isinstance(values, (list, tuple)):
        raise LossError(
            f"got losses of type {type(losses).__name__}; they must be an array, a tensor or a list of shape "
            '(batch,), one for each sample, computed with reduction="none"'
        )
    if any(value is None for value in values):
        raise LossError("got a loss that is masked, or None; report NaN for it, which leaves the sample as it was")
    return [as_float(value) for value in values]
