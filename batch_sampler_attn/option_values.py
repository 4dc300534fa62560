"""Values of options, checked, and made plain Python numbers and strings whatever library they came from."""

from __future__ import annotations

import math
from numbers import Integral, Real

from batch_sampler_attn.errors import OptionError, shown


def positive_number(name: str, value: object, hint: str) -> float:
    """``value`` as a float, if it is a finite real number above 0; NumPy's scalars are numbers too.

    Raises:
        OptionError: If it is anything else.
    """
    number = _as_float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number <= 0:
        raise OptionError(f"{name} is {shown(value)} ({_kind(value)}); it must be a finite number above 0. {hint}")
    return number


def share(name: str, value: object, hint: str, *, is_whole_allowed: bool = False) -> float:
    """``value`` as a float, if it is a real number from 0 to below 1, or to 1.

    Raises:
        OptionError: If it is anything else.
    """
    number = _as_float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= 1 or (number == 1 and not is_whole_allowed):
        most = "at most 1" if is_whole_allowed else "below 1"
        raise OptionError(f"{name} is {shown(value)} ({_kind(value)}); it must be a number from 0 to {most}. {hint}")
    return number


def finite_number(name: str, value: object, hint: str) -> float:
    """``value`` as a float, if it is a finite real number.

    Raises:
        OptionError: If it is anything else.
    """
    number = _as_float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise OptionError(f"{name} is {shown(value)} ({_kind(value)}); it must be a finite number. {hint}")
    return number


def weight(name: str, value: object) -> float:
    """``value`` as a float, if it can weigh a loss: a finite real number of at least 0.

    Args:
        name: For the message.
        value: A number, or a NumPy or PyTorch value of one element, such as a sum of weights.

    Raises:
        OptionError: If it is anything else.
    """
    item = getattr(value, "item", None)
    plain = item() if callable(item) and _is_single(value) else value
    number = _as_float(plain) if isinstance(plain, Real) and not isinstance(plain, bool) else math.nan
    if not math.isfinite(number) or number < 0:
        raise OptionError(
            f"{name} is {shown(value)} ({_kind(value)}); it must be a finite number of at least 0: the samples that "
            "the loss is the mean of, or the sum of their weights"
        )
    return number


def count(name: str, value: object, hint: str) -> int:
    """``value`` as an int, if it is a whole number of at least 1; NumPy's scalars are numbers too.

    Raises:
        OptionError: If it is anything else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is {shown(value)} ({_kind(value)}); it must be an int of at least 1: {hint}")
    return int(value)


def word(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """``value`` as a plain string, if it is one of ``allowed``.

    Raises:
        OptionError: If it is anything else.
    """
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, allowed))}")
    return str(value)


def _is_single(value: object) -> bool:
    return all(length == 1 for length in getattr(value, "shape", ()))


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kind(value: object) -> str:
    return type(value).__name__
