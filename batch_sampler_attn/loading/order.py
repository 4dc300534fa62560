"""The order of the base batches of a ``BatchAttentionSampler``: lists of dataset indices, the same after a resume."""

from __future__ import annotations

import copy
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import data

from batch_sampler_attn.checkpoint import plain_index
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError, short_repr
from batch_sampler_attn.options import length_of, positive_int
from batch_sampler_attn.ranks import Shard, own_shard, shard_of

# These draw from torch's global generator if their own is None, and can be copied safely. A subclass may have more
# state, such as a count of its epochs.
_TAKES_OUR_GENERATOR = (data.RandomSampler, data.SubsetRandomSampler, data.WeightedRandomSampler)

# These yield all of their data on each rank.
_UNSHARDED = (*_TAKES_OUR_GENERATOR, data.SequentialSampler)


class BaseBatches:
    """Batches of indices, in the order that torch draws; the arguments are those of ``BatchAttentionSampler``.

    If a torch sampler has no generator, its order is drawn from one of our own, so that its epochs can be resumed. That
    is seeded by one draw from torch's global generator. The sampler itself is not changed.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int | None,
        drop_last: bool,
        batches_per_epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        is_iterable = hasattr(type(sampler), "__iter__") or hasattr(type(sampler), "__getitem__")
        is_sampler = is_iterable and not isinstance(sampler, (data.Dataset, data.DataLoader, Iterator))
        yields_batches = batch_size is None or isinstance(sampler, data.BatchSampler)
        if not is_sampler or (yields_batches and (batch_size is not None or drop_last)):
            raise OptionError(
                f"sampler is {short_repr(sampler)}, batch_size {batch_size}, drop_last {drop_last}; give one that is "
                "iterable again in every epoch: of indices with a batch_size, or of batches without both options"
            )
        self.sampler = sampler
        self.batch_size = None if batch_size is None else positive_int("batch_size", batch_size, "indices in a batch")
        self.drop_last = drop_last
        if type(sampler) is data.BatchSampler:
            self.sampler, self.batch_size, self.drop_last = sampler.sampler, sampler.batch_size, sampler.drop_last
        # Including the sampler inside a user's batch sampler.
        self._samplers: tuple[Any, Any] = self.sampler, getattr(self.sampler, "sampler", None)
        self.most_batches = batches_per_epoch
        if batches_per_epoch is not None:
            self.most_batches = positive_int("batches_per_epoch", batches_per_epoch, "the most batches of an epoch")
        self.shard = shard_of(self.sampler, rank, world_size)
        self._own_generator: torch.Generator | None = None

    def __len__(self) -> int:
        length = len(self.sampler)
        if self.shard is not None:
            length = self.shard.length(length, self.batch_size, drop_last=self.drop_last)
        if self.batch_size is not None:
            length = length // self.batch_size if self.drop_last else -(-length // self.batch_size)
        return length if self.most_batches is None else min(length, self.most_batches)

    @property
    def length(self) -> int | None:
        """The number of batches in an epoch; None if the sampler does not know it, or not before an epoch begins."""
        return length_of(self) or None

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of a new epoch. Nothing is drawn before the first one is requested."""
        return itertools.islice(self._collected(), self.most_batches)

    def begin_epoch(self) -> tuple[Iterator[list[int]], str | None]:
        """The batches of a new epoch, and the state of the generator, if any, from which they will be drawn."""
        self._our_generator()
        return iter(self), self.generator_state()

    def resumed(
        self, epoch_generator: str | None, position: int, known: dict[int, list[Any] | None], *, is_exhausted: bool
    ) -> Iterator[list[int]]:
        """The batches from ``position`` on, in an epoch that began with ``epoch_generator``.

        Each None in ``known``, by position, becomes the batch that is drawn; StateError if any other batch differs.
        """
        before, before_of_torch = self.generator_state(), torch.get_rng_state()
        try:
            if epoch_generator is not None:
                self.set_generator_state(epoch_generator)
            batches = iter(self)
            for index in range(position + is_exhausted):
                batch = next(batches, None)
                if index in known and known[index] is None:
                    known[index] = batch
                is_end = index == position
                if (batch is None) != is_end or batch != known.get(index, batch):
                    saved = short_repr(known.get(index, "none" if is_end else "some"))
                    raise StateError(
                        f"batch {index} of the resumed epoch has indices {short_repr(batch)}, and had {saved}. The "
                        "dataset or the sampler differs, or it shuffles without a generator of its own: give it "
                        "generator=torch.Generator(), or call its set_epoch() as before"
                    )
        except BaseException:
            self.set_generator_state(before)
            # A sampler without a generator of its own has drawn from it.
            torch.set_rng_state(before_of_torch)
            raise
        return batches

    @property
    def is_set_by_epoch(self) -> bool:
        """Whether the order depends on the ``set_epoch`` of the sampler, which loops call at the start of an epoch."""
        return any(hasattr(sampler, "set_epoch") for sampler in self._samplers)

    def set_epoch(self, epoch: int) -> None:
        """Pass the number of the coming epoch to the sampler, or to the one inside it, if it defines ``set_epoch``."""
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
                return

    @property
    def generator(self) -> torch.Generator | None:
        """The generator that orders are drawn from; None if there is none yet."""
        return self._users_generator or self._own_generator

    def generator_state(self, state: torch.Tensor | None = None) -> str | None:
        """``state``, or the generator's current state, in hexadecimal; None without a generator."""
        if state is None and self.generator is not None:
            state = self.generator.get_state()
        return None if state is None else bytes(state.tolist()).hex()

    def check_generator_state(self, name: str, state: str | None) -> str | None:
        """``state``, if ``set_generator_state`` has a generator to set; else raise StateError."""
        kind = type(self.sampler)
        if state is not None and self._users_generator is None and kind not in _TAKES_OUR_GENERATOR:
            where = f"{name} is in the state, but {kind.__name__} has no generator here"
            raise StateError(f"{where}; construct the sampler as it was when the state was saved")
        return state

    def set_generator_state(self, state: str | None) -> None:
        """Set a state that ``check_generator_state`` has returned."""
        if state is None:
            self._own_generator = None
            return
        generator = self.generator
        if generator is None:
            generator = self._own_generator = torch.Generator()
        # In place: an epoch in progress draws from this object.
        generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))

    @property
    def rank_shard(self) -> Shard:
        """This rank's part of the order: ``shard``, or the sampler's own."""
        return self.shard or own_shard(self.sampler) or Shard()

    def check_shard(self, here: Shard) -> None:
        """Refuse an order with which ranks train on the same data, or on another rank's; ``here`` is this rank."""
        shard = self.shard or own_shard(self.sampler)
        if shard is None and any(type(sampler) in _UNSHARDED for sampler in self._samplers):
            found = "yields all of the data on each rank"
        elif shard is not None and shard.ranks > 1 and shard != here:
            found = f"is for rank {shard.rank} of {shard.ranks}"
        else:
            return
        raise ProtocolError(
            f"the {type(self.sampler).__name__} {found}, and the schedule decides on rank {here.rank} of {here.ranks}. "
            f"Give BatchAttentionSampler rank={here.rank}, world_size={here.ranks}, or a DistributedSampler; or "
            "world_size=1, if each rank has its own data"
        )

    def common_to_ranks(self) -> dict[str, int]:
        """Integers, by name, that are equal on all ranks if they share one order; empty for a single rank."""
        if self.rank_shard.ranks == 1:
            return {}
        sampler, (_, state) = self.sampler, self.begin_epoch()
        facts = {
            "seed of the order": getattr(sampler, "seed", 0),
            "epoch of set_epoch": getattr(sampler, "epoch", 0),
            "shuffle": getattr(sampler, "shuffle", 0),
            # Without a shard, the sampler draws a rank's own part, whose length may differ.
            "length of the order": self.shard and length_of(sampler),
            "samples of the data": length_of(getattr(sampler, "data_source", getattr(sampler, "dataset", None))),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "generator": state and zlib.crc32(state.encode()),
        }
        return {name: value for name, value in facts.items() if isinstance(value, int)}

    def _collected(self) -> Iterator[list[int]]:
        items = self.sampler
        if (generator := self._our_generator()) is not None:
            items = copy.copy(items)
            items.generator = generator
        if self.shard is not None and self.shard.ranks > 1:
            items = self.shard.of(items, self.batch_size, drop_last=self.drop_last)
        if self.batch_size is None:
            for batch in items:
                if not hasattr(batch, "__iter__"):
                    kind = type(self.sampler).__name__
                    raise OptionError(f"{kind} yields {batch!r}, a single index; pass a batch_size with it")
                # A copy, since a batch sampler may reuse one list.
                yield [plain_index(index) for index in batch]
            return
        indices = map(plain_index, items)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch

    @property
    def _users_generator(self) -> torch.Generator | None:
        generators = (getattr(sampler, "generator", None) for sampler in self._samplers)
        return next((generator for generator in generators if isinstance(generator, torch.Generator)), None)

    def _our_generator(self) -> torch.Generator | None:
        """The generator for a torch sampler that has none, made on first use; None for other samplers."""
        if type(self.sampler) not in _TAKES_OUR_GENERATOR or self.sampler.generator is not None:
            return None
        if self._own_generator is None:
            # As RandomSampler seeds the generator that it makes for each epoch.
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
            self._own_generator = torch.Generator().manual_seed(seed)
        return self._own_generator
