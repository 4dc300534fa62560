"""The options of the rule, and the decisions that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from batch_sampler_attn.option_values import count, positive_number, word

EpochLoss = Literal["first", "last", "all"]
NonfinitePolicy = Literal["advance", "raise"]

EPOCH_LOSSES = get_args(EpochLoss)
NONFINITE_POLICIES = get_args(NonfinitePolicy)

# No batch with clean labels was seen to need as many, at any learning rate, and of those with wrong labels
# few did (benchmarks/README.md, "How many visits a batch takes").
DEFAULT_MAX_VISITS = 100


@dataclass(slots=True)
class Options:
    """The options of the rule. ``BatchAttentionSchedule`` documents each."""

    k: float = 1.2
    warmup_epochs: int = 1
    epoch_loss: str = "first"
    max_visits: int | None = DEFAULT_MAX_VISITS
    nonfinite: str = "advance"
    window: int | None = None

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
        self.epoch_loss = word("epoch_loss", self.epoch_loss, EPOCH_LOSSES)
        self.nonfinite = word("nonfinite", self.nonfinite, NONFINITE_POLICIES)
