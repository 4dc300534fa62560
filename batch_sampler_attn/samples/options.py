"""The options of attention to samples, and the checks of a user's sampler and doses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from batch_sampler_attn.checkpoint import plain_index
from batch_sampler_attn.errors import OptionError, short_repr, warn
from batch_sampler_attn.options import fraction, number, one_of, positive_int, positive_number
from batch_sampler_attn.ranks import Shard, own_shard

RememberLoss = Literal["last", "base"]
Select = Literal["loss", "random"]

MOST_VISITS = 255  # counted in a byte
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
        """Validate the options and make them plain Python values; warn if nothing would ever be pruned or pooled."""
        self.samples = positive_int("samples", self.samples, "the length of the dataset")
        self.batch_size = positive_int("batch_size", self.batch_size, "samples in a batch")
        of_rank = self.samples // ranks
        if self.batch_size > of_rank:
            there = f"there are {of_rank}" if ranks == 1 else f"each of {ranks} ranks has {of_rank}"
            raise OptionError(f"batch_size is {self.batch_size}, and {there} samples; a batch cannot have more")
        if self.k is not None:
            self.k = positive_number("k", self.k, "None pools no samples")
        self.max_visits = positive_int("max_visits", self.max_visits, "1 pools no samples")
        if self.max_visits > MOST_VISITS:
            raise OptionError(f"max_visits is {self.max_visits}; it must be at most {MOST_VISITS}")
        self.prune_probability = fraction("prune_probability", self.prune_probability, "0 prunes nothing")
        hint = "0 prunes and pools up to the last epoch"
        self.final_full_share = fraction("final_full_share", self.final_full_share, hint, may_be_1=True)
        self.weighted = bool(self.weighted)
        self.updates = positive_int("updates", self.updates, "batches in an epoch; None: as many as plain training")
        if self.epochs is not None:
            self.epochs = positive_int("epochs", self.epochs, "epochs of the whole training")
        self.floor = number("floor", self.floor, "It is the lowest loss that a perfect fit can have")
        self.remember_loss = one_of("remember_loss", self.remember_loss, get_args(RememberLoss))
        self.select = one_of("select", self.select, (*get_args(Select), DOSES))
        if not isinstance(self.seed, Integral) or isinstance(self.seed, bool):
            raise OptionError(f"seed is {short_repr(self.seed)}; it must be an int, the same in runs to be compared")
        self.seed = int(self.seed)
        first_full = self.epochs if self.first_full_epoch is None else self.first_full_epoch
        if first_full is None or first_full > 1 or (not self.prune_probability and self.k is None):
            return
        advice = "final_full_share=0 prunes in the last epochs too"
        if self.epochs == 1:
            advice = "Divide it into several epochs with updates=, and give epochs= their number"
        warn(
            f"with epochs={self.epochs} and final_full_share={self.final_full_share}, no epoch prunes or pools: "
            f"the first has no previous one to compare with, and the last share of training uses all data. {advice}"
        )

    @property
    def first_full_epoch(self) -> int | None:
        """The first of the final epochs that use all data; None if there are none."""
        if self.epochs is None or not self.final_full_share:
            return None
        return self.epochs - max(1, math.floor(self.epochs * self.final_full_share + 0.5))


def checked_doses(doses: Any) -> dict[str, Any]:
    """A copy of the doses of a recorded run, if they are valid; else raise OptionError."""
    are_doses = isinstance(doses, dict) and {*doses} == {"samples", "updates", "pruned", "pooled"}
    rows = [doses["pruned"], doses["pooled"], [doses["samples"], doses["updates"]]] if are_doses else [None]
    if not all(isinstance(row, list) and all(type(item) is int and item >= 0 for item in row) for row in rows):
        raise OptionError(f'select is {short_repr(doses)}; it must be "loss", "random", or attention.doses of a run')
    return {name: [*row] if isinstance(row, list) else row for name, row in doses.items()}


def check_sampler(sampler: object) -> None:
    """Refuse a sampler that can be iterated over only once, or that gives a rank other samples in every epoch."""
    shard = own_shard(sampler)
    is_of_a_rank = shard is not None and shard.ranks > 1
    if is_of_a_rank or not hasattr(sampler, "__iter__") or isinstance(sampler, (Iterator, type)):
        raise OptionError(
            f"sampler is {short_repr(sampler)}; it must be iterable again in each pass, and not a DistributedSampler, "
            "with which no rank knows the losses of its own samples: give rank= and world_size= instead"
        )


def order_of(sampler: Any, pass_number: int, samples: int, shard: Shard) -> list[int]:
    """This rank's indices of a pass: a rank knows the losses of its own samples only."""
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(pass_number)
    order = [plain_index(index) for index in sampler]
    for index in order:
        if type(index) is not int or not 0 <= index < samples:
            raise OptionError(f"the sampler yields {short_repr(index)}; it must yield ints from 0 to {samples - 1}")
    own = [index for index in order if index % shard.ranks == shard.rank]
    if not own:
        raise OptionError(f"the sampler yields {len(order)} indices, none of them for this rank; each pass needs some")
    return own
