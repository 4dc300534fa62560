"""A rank's part of an order that all ranks draw alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.checkpoint import check_count
from batch_sampler_attn.errors import OptionError, StateError, shown
from batch_sampler_attn.option_values import count

Item = TypeVar("Item")


class Shard(NamedTuple):
    """Every ``ranks``-th item of an order, from the ``rank``-th on.

    Items are indices, or whole batches. So that every rank has as many batches, one that would go without the last
    takes an item from the order's beginning; with ``drop_last``, ranks leave out what not all of them have.

    Attributes:
        rank: From 0.
        ranks: That share the order.
    """

    rank: int = 0
    ranks: int = 1

    def length(self, items: int, batch_size: int | None, *, drop_last: bool) -> int:
        """How many of so many items are this rank's."""
        whole, left = divmod(items, self.ranks)
        return whole + (left > 0 and self._has_one_more(whole, left, batch_size, drop_last=drop_last))

    def of(self, items: Iterable[Item], batch_size: int | None, *, drop_last: bool) -> Iterator[Item]:
        """This rank's items.

        Args:
            items: The whole order.
            batch_size: Of the batches that are made of them; None if they are batches.
            drop_last: Whether a last, shorter batch is left out.
        """
        iterator = iter(items)
        first: list[Item] = []
        for whole in itertools.count():
            group = list(itertools.islice(iterator, self.ranks))
            first = first or group
            if len(group) == self.ranks:
                yield group[self.rank]
                continue
            if group and self._has_one_more(whole, len(group), batch_size, drop_last=drop_last):
                yield group[self.rank] if self.rank < len(group) else first[(self.rank - len(group)) % len(first)]
            return

    def _has_one_more(self, whole: int, left: int, batch_size: int | None, *, drop_last: bool) -> bool:
        """Whether this rank takes part where ``left`` items are left after ``whole`` ones for every rank."""
        if drop_last:
            return False
        is_a_batch_of_its_own = batch_size is None or whole % batch_size == 0
        return self.rank < left or is_a_batch_of_its_own


def shard_of(sampler: Any, rank: object, world_size: object) -> Shard | None:
    """The shard that a sampler's arguments name, or that the sampler itself is for; None if nothing says.

    Raises:
        OptionError: If one of the two is missing or not allowed, or the sampler shards by itself already.
    """
    if rank is None and world_size is None:
        return None
    ranks = count("world_size", world_size, "ranks that share the data; 1 for a rank with data of its own")
    if ranks == 1 and rank is None:
        return Shard()
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < ranks:
        raise OptionError(f"rank is {shown(rank)}; it must be an int from 0 to {ranks - 1}, with world_size={ranks}")
    if ranks > 1 and (own := own_shard(sampler)) is not None:
        raise OptionError(
            f"{type(sampler).__name__} is for rank {own.rank} of {own.ranks} already; leave rank= and world_size= out"
        )
    return Shard(rank, ranks)


def own_shard(sampler: Any) -> Shard | None:
    """The shard that a sampler, or the one that it draws from, is for, as a ``DistributedSampler`` says it."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        rank, ranks = getattr(part, "rank", None), getattr(part, "num_replicas", None)
        if isinstance(rank, int) and isinstance(ranks, int):
            return Shard(rank, ranks)
    return None


def said_of_order(sampler: Any, shard: Shard | None) -> dict[str, int]:
    """What ranks that share an order need to have in common of it, as far as their samplers say it, named for messages.

    Args:
        sampler: Of the order.
        shard: That is taken of it; None if the sampler has a rank's part by itself, which may be of another length.
    """
    numbers = {"seed": "seed of the order", "epoch": "epoch of set_epoch", "shuffle": "shuffle"}
    says = {said: value for name, said in numbers.items() if isinstance(value := getattr(sampler, name, 0), int)}
    data = getattr(sampler, "data_source", getattr(sampler, "dataset", None))
    lengths = {"length of the order": shard and length_of(sampler), "samples of the data": length_of(data)}
    return {**says, **{said: length for said, length in lengths.items() if length is not None}}


def unpack_shard(packed: object, here: Shard, *, is_in_epoch: bool) -> Shard:
    """The shard that a state was saved on.

    Raises:
        StateError: If it is damaged, or shares an epoch in progress among another number of ranks.
    """
    if not isinstance(packed, list) or len(packed) != 2:
        raise StateError(f"shard is {shown(packed)} in the state; it must be [rank, ranks]")
    shard = Shard(*(check_count("a number in shard", number) for number in packed))
    if shard.rank >= shard.ranks:
        raise StateError(f"the state is of rank {shard.rank} of {shard.ranks}; it was changed after it was saved")
    if is_in_epoch and shard.ranks != here.ranks:
        raise StateError(
            f"the state was saved in the middle of an epoch of {shard.ranks} ranks, and there are {here.ranks} here. "
            "Load one that was saved between two epochs, or go on with as many ranks"
        )
    return shard
