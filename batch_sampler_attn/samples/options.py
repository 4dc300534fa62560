"""The options of attention to samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from batch_sampler_attn.errors import OptionError, shown
from batch_sampler_attn.option_values import count, finite_number, positive_number, share, word

Remember = Literal["last", "base"]
Choose = Literal["loss", "random"]

# Counted in a byte.
MOST_VISITS = 255
# Indices are kept in 32 bits.
MOST_SAMPLES = 2**31 - 1


@dataclass(slots=True)
class SampleOptions:
    """The options of ``SampleAttention``, which documents each."""

    samples: int
    batch_size: int
    k: float | None
    max_visits: int
    leave_out: float
    weighted: bool
    updates: int
    epochs: int | None
    plain_share: float
    floor: float
    remember: str
    choose: str
    seed: int

    def check(self, *, ranks: int = 1) -> None:
        """Make every option a plain number or string.

        Args:
            ranks: That share the samples.

        Raises:
            OptionError: If one has a value that is not allowed.
        """
        self.samples = count("samples", self.samples, "it is the length of the data set")
        self.batch_size = count("batch_size", self.batch_size, "samples in a batch")
        if not self.batch_size <= self.samples <= MOST_SAMPLES:
            raise OptionError(
                f"batch_size is {self.batch_size} and samples {self.samples}; a batch can be as large as the data "
                f"set at most, and that has at most {MOST_SAMPLES:,} samples"
            )
        if self.batch_size > self.samples // ranks:
            raise OptionError(
                f"batch_size is {self.batch_size}, and each of {ranks} ranks has {self.samples // ranks} samples; a "
                "batch can be as large as that at most"
            )
        if self.k is not None:
            self.k = positive_number("k", self.k, "None pools no samples")
        self.max_visits = count("max_visits", self.max_visits, "1 pools no samples")
        if self.max_visits > MOST_VISITS:
            raise OptionError(f"max_visits is {self.max_visits}; it must be at most {MOST_VISITS}")
        self.leave_out = share("leave_out", self.leave_out, "0 leaves nothing out")
        self.plain_share = share(
            "plain_share", self.plain_share, "0 has attention to the last epoch", is_whole_allowed=True
        )
        if not isinstance(self.weighted, bool):
            raise OptionError(f"weighted is {shown(self.weighted)}; it must be True or False")
        self.updates = count("updates", self.updates, "an epoch takes as many; None takes as many as plain training")
        if self.epochs is not None:
            self.epochs = count("epochs", self.epochs, "of the whole training, which says when its last share begins")
        self.floor = finite_number("floor", self.floor, "It is the lowest loss that a perfect fit can have")
        self.remember = word("remember", self.remember, get_args(Remember))
        self.choose = word("choose", self.choose, get_args(Choose))
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise OptionError(f"seed is {shown(self.seed)}; it must be an int, the same in every run that is compared")
        self.seed = int(self.seed)

    @property
    def first_plain_epoch(self) -> int | None:
        """From which epoch on all data is seen plainly; None if that is not known, or never."""
        if self.epochs is None or not self.plain_share:
            return None
        return self.epochs - max(1, math.floor(self.epochs * self.plain_share + 0.5))
