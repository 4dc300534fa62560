"""The options of the rule, and the decisions that it makes of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from batch_sampler_attn.option_values import count, finite_number, positive_number, word

EpochLoss = Literal["first", "last", "all"]
NonfinitePolicy = Literal["advance", "raise"]

EPOCH_LOSSES = get_args(EpochLoss)
NONFINITE_POLICIES = get_args(NonfinitePolicy)

# No batch with clean labels was seen to need as many, at any learning rate, and of those with wrong labels
# few did (benchmarks/README.md, "How many visits a batch takes").
DEFAULT_MAX_VISITS = 100


# Options that the first release had not, with the values at which they do nothing.
_LATER = {"budget": None, "floor": 0.0}


@dataclass(slots=True)
class Options:
    """The options of the rule. ``BatchAttentionSchedule`` documents each."""

    k: float = 1.2
    warmup_epochs: int = 1
    epoch_loss: str = "first"
    max_visits: int | None = DEFAULT_MAX_VISITS
    nonfinite: str = "advance"
    window: int | None = None
    budget: float | None = None
    floor: float = 0.0

    def check(self) -> None:
        """Make every option a plain number or string; raise ``OptionError`` unless each has an allowed value."""
        self.k = positive_number("k", self.k, "The paper advises 1.1 to 1.5; larger values repeat less")
        self.warmup_epochs = count(
            "warmup_epochs", self.warmup_epochs, "epoch 1 has no epoch before it to take a mean from"
        )
        if self.max_visits is not None:
            hint = "1 never repeats; None, as in the paper, sets no limit"
            self.max_visits = count("max_visits", self.max_visits, hint)
        if self.window is not None:
            self.window = count("window", self.window, "it counts batches; None ends epochs with the loader")
        if self.budget is not None:
            hint = "It is repeats over base batches: 0.15 for 15 % more updates at most; None sets no limit"
            self.budget = positive_number("budget", self.budget, hint)
        self.floor = finite_number("floor", self.floor, "It is the lowest mean loss that a perfect fit can have")
        self.epoch_loss = word("epoch_loss", self.epoch_loss, EPOCH_LOSSES)
        self.nonfinite = word("nonfinite", self.nonfinite, NONFINITE_POLICIES)

    def to_save(self) -> dict[str, Any]:
        """The options by name, without those that came later and are not in use: earlier releases save the same."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}
