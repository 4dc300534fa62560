"""The options of attention to samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from batch_sampler_attn.errors import OptionError, short_repr, warn
from batch_sampler_attn.options import fraction, number, one_of, positive_int, positive_number

RememberLoss = Literal["last", "base"]
Select = Literal["loss", "random"]

# Visits are counted in a byte.
MOST_VISITS = 255
# Indices are kept in 32 bits.
_MOST_SAMPLES = 2**31 - 1

DOSES = "doses"


@dataclass(slots=True)
class SampleOptions:
    """The options of ``SampleAttention``, which documents each."""

    samples: int
    batch_size: int
    k: float | None
    max_visits: int
    prune_probability: float
    weighted: bool
    updates: int
    epochs: int | None
    final_full_share: float
    floor: float
    remember_loss: str
    select: str
    seed: int

    def check(self, *, ranks: int = 1) -> None:
        """Make every option a plain number or string, or raise OptionError; ``ranks`` share the samples."""
        self.samples = positive_int("samples", self.samples, "the length of the dataset")
        self.batch_size = positive_int("batch_size", self.batch_size, "samples in a batch")
        of_rank = self.samples // ranks
        if not self.batch_size <= of_rank or self.samples > _MOST_SAMPLES:
            whose = "there are" if ranks == 1 else f"each of {ranks} ranks has"
            raise OptionError(
                f"batch_size is {self.batch_size}, and {whose} {of_rank} samples; a batch can be at most as large, and "
                f"a dataset has at most {_MOST_SAMPLES:,} samples"
            )
        if self.k is not None:
            self.k = positive_number("k", self.k, "None pools no samples")
        self.max_visits = positive_int("max_visits", self.max_visits, "1 pools no samples")
        if self.max_visits > MOST_VISITS:
            raise OptionError(f"max_visits is {self.max_visits}; it must be at most {MOST_VISITS}")
        self.prune_probability = fraction("prune_probability", self.prune_probability, "0 prunes nothing")
        hint = "0 prunes and pools up to the last epoch"
        self.final_full_share = fraction("final_full_share", self.final_full_share, hint, may_be_1=True)
        if not isinstance(self.weighted, bool):
            raise OptionError(f"weighted is {short_repr(self.weighted)}; it must be True or False")
        self.updates = positive_int("updates", self.updates, "batches in an epoch; None: as many as plain training")
        if self.epochs is not None:
            self.epochs = positive_int("epochs", self.epochs, "those of the whole training")
        self.floor = number("floor", self.floor, "It is the lowest loss that a perfect fit can have")
        self.remember_loss = one_of("remember_loss", self.remember_loss, get_args(RememberLoss))
        self.select = one_of("select", self.select, (*get_args(Select), DOSES))
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise OptionError(f"seed is {short_repr(self.seed)}; it must be an int, the same in runs to be compared")
        self.seed = int(self.seed)

    @property
    def first_full_epoch(self) -> int | None:
        """The first epoch of the last share of training, which trains on all data; None if there is none."""
        if self.epochs is None or not self.final_full_share:
            return None
        return self.epochs - max(1, math.floor(self.epochs * self.final_full_share + 0.5))

    def warn_if_idle(self) -> None:
        """Warn of numbers of epochs with which nothing is ever pruned or pooled."""
        first_full = self.epochs if self.first_full_epoch is None else self.first_full_epoch
        if first_full is None or first_full > 1 or (not self.prune_probability and self.k is None):
            return
        advice = "final_full_share=0 prunes in the last epochs too"
        if self.epochs == 1:
            advice = "Divide it into several epochs with updates=, and give epochs= their number"
        warn(
            f"with epochs={self.epochs} and final_full_share={self.final_full_share}, no epoch prunes or pools: "
            f"the first has none before it to compare with, and the last share of training uses all data. {advice}"
        )


def checked_doses(doses: Any) -> dict[str, list[int]]:
    """The doses of a recorded run, ``SampleAttention.doses``, or OptionError."""
    are_doses = isinstance(doses, dict) and {*doses} == {"pruned", "pooled"}
    rows = [*doses.values()] if are_doses else [None]
    if not all(isinstance(row, list) and all(type(item) is int and item >= 0 for item in row) for row in rows):
        raise OptionError(
            f'select is {short_repr(doses)}; it must be "loss", "random", or the doses of a recorded run, '
            "attention.doses"
        )
    return {name: [*row] for name, row in doses.items()}
