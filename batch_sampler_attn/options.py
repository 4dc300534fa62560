"""The options of the rule, and checks that turn the value of any option into a plain Python value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, get_args

from batch_sampler_attn.errors import OptionError, short_repr

EpochLoss = Literal["first", "last", "all"]
NonfinitePolicy = Literal["advance", "raise"]

# In measurements at several learning rates, no batch with clean labels needed as many, and few with wrong labels did
# (benchmarks/README.md, "How many visits a batch takes").
DEFAULT_MAX_VISITS = 100


@dataclass(slots=True)
class Options:
    """The options of the rule, validated on construction. ``BatchAttentionSchedule`` documents each."""

    k: float = 1.2
    warmup_epochs: int = 1
    epoch_loss: str = "first"
    max_visits: int | None = DEFAULT_MAX_VISITS
    nonfinite: str = "advance"
    epoch_length: int | None = None
    budget: float | None = None
    floor: float = 0.0

    def __post_init__(self) -> None:
        self.k = positive_number("k", self.k, "The paper advises 1.1 to 1.5; larger values repeat less")
        hint = "the first epoch has no previous mean to compare with"
        self.warmup_epochs = positive_int("warmup_epochs", self.warmup_epochs, hint)
        if self.max_visits is not None:
            hint = "1 never repeats; None, as in the paper, sets no limit"
            self.max_visits = positive_int("max_visits", self.max_visits, hint)
        if self.epoch_length is not None:
            hint = "batches in an epoch; None ends epochs with the loader"
            self.epoch_length = positive_int("epoch_length", self.epoch_length, hint)
        if self.budget is not None:
            hint = "It is repeats divided by base batches; None sets no limit"
            self.budget = fraction("budget", self.budget, hint, may_be_0=False, may_be_1=True)
        self.floor = number("floor", self.floor, "It is the lowest mean loss that a perfect fit can have")
        self.epoch_loss = one_of("epoch_loss", self.epoch_loss, get_args(EpochLoss))
        self.nonfinite = one_of("nonfinite", self.nonfinite, get_args(NonfinitePolicy))


def label_smoothing_floor(label_smoothing: float, classes: int) -> float:
    """The lowest mean cross-entropy under label smoothing: the entropy of the smoothed target, in nats.

    ``label_smoothing`` is as ``torch.nn.CrossEntropyLoss`` takes it, from 0 to 1.
    """
    smoothing = fraction("label_smoothing", label_smoothing, "0 smooths nothing", may_be_1=True)
    others = smoothing / positive_int("classes", classes, "outputs of the classifier")
    target = 1 - smoothing + others
    entropy = -target * math.log(target)
    return entropy - (classes - 1) * others * math.log(others) if others else entropy


def number(name: str, value: object, hint: str) -> float:
    """``value`` as a float, if it is a finite real number; NumPy's scalars are numbers too."""
    plain = _as_number(value)
    return _checked(name, value, plain, "a finite number", hint, is_allowed=math.isfinite(plain))


def positive_number(name: str, value: object, hint: str) -> float:
    """``value`` as a float, if it is a finite real number above 0."""
    plain = _as_number(value)
    return _checked(name, value, plain, "a finite number above 0", hint, is_allowed=0 < plain < math.inf)


def fraction(name: str, value: object, hint: str, *, may_be_0: bool = True, may_be_1: bool = False) -> float:
    """``value`` as a float, if it is a real number from 0 to 1; a larger one may be meant as a percentage."""
    plain = _as_number(value)
    if plain > 1:
        hint = f"{plain / 100:g} is {plain:g} %. {hint}"
    allowed = f"a number {'of at least' if may_be_0 else 'above'} 0 and {'at most' if may_be_1 else 'below'} 1"
    is_allowed = 0 < plain < 1 or (plain == 0 and may_be_0) or (plain == 1 and may_be_1)
    return _checked(name, value, plain, allowed, hint, is_allowed=is_allowed)


def sample_weight(name: str, value: object) -> float:
    """``value``, a number or an array of one element, as a float, if it can weight a loss: finite and at least 0."""
    item = getattr(value, "item", None)
    is_single = all(length == 1 for length in getattr(value, "shape", ()))
    hint = "It is the number of samples in the loss, or the sum of their weights"
    plain = _as_number(item() if callable(item) and is_single else value)
    return _checked(name, value, plain, "a finite number of at least 0", hint, is_allowed=0 <= plain < math.inf)


def positive_int(name: str, value: object, hint: str) -> int:
    """``value`` as an int, if it is a whole number of at least 1; NumPy's scalars are numbers too."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        kind = type(value).__name__
        raise OptionError(f"{name} is {short_repr(value)} ({kind}); it must be an int of at least 1: {hint}")
    return int(value)


def length_of(value: object) -> int | None:
    """``len(value)``; None if it has none."""
    try:
        return len(value)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """``value`` as a plain string, if it is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise OptionError(f"{name} is {short_repr(value)}; it must be one of {', '.join(map(repr, allowed))}")
    return str(value)


def _as_number(value: object) -> float:
    """The value of a real number; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _checked(name: str, value: object, plain: float, allowed: str, hint: str, *, is_allowed: bool) -> float:
    if not is_allowed:
        kind = type(value).__name__
        raise OptionError(f"{name} is {short_repr(value)} ({kind}); it must be {allowed}. {hint}")
    return plain
