"""The base order of a batch sampler: lists of dataset indices, quickly, and again after a resume."""

from __future__ import annotations

import contextlib
import copy
import itertools
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import OptionError, StateError, shown
from batch_sampler_attn.indices import as_plain
from batch_sampler_attn.loading.base_checks import check_length, check_sampler, checked_batch_size
from batch_sampler_attn.option_values import count
from batch_sampler_attn.shards import Shard, own_shard, said_of_order, shard_of

# Of just these it is known that a None generator stands for torch's global one, and that a copy loses nothing:
# a subclass may count its epochs as it is iterated over.
_TAKES_OUR_GENERATOR = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)

_BATCHES_IN_A_CHUNK = 256

_MOST = "so many batches of each epoch's order, or None for all of them"


class BaseBatches:
    """Batches of dataset indices from a sampler of indices, or from a sampler of batches.

    A ``RandomSampler`` without replacement is drawn as one permutation and sliced, with the very draws that
    torch makes, which is faster than collecting one index at a time. One of torch's own samplers whose
    ``generator`` is None draws from a generator of ours, seeded by one draw from torch's global one, so that its
    epochs can be resumed. The sampler itself is never changed.

    Args:
        sampler: Yields indices if ``batch_size`` is given, else lists of indices.
        batch_size: Indices in a batch; None if ``sampler`` makes the batches.
        drop_last: Whether a last, shorter batch is left out.
        batches_per_epoch: The most batches in an epoch; None for all of them.
        rank: With ``world_size``: which part of the order is taken; None for all of it.
        world_size: The ranks that share the order.

    Attributes:
        batch_size: As in the arguments, or as the batch sampler of torch's has it that is taken apart.
        drop_last: Likewise.
        most_batches: ``batches_per_epoch``.
        shard: The part that is taken; None if nothing was said of it.

    Raises:
        OptionError: If an argument is not allowed, or there is no batch or only one sample to train on.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int | None,
        drop_last: bool,
        batches_per_epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_sampler(sampler)
        self._sampler: Any = sampler
        self._own_generator: torch.Generator | None = None
        self.batch_size = checked_batch_size(sampler, batch_size, drop_last)
        self.drop_last = drop_last
        self.most_batches = None if batches_per_epoch is None else count("batches_per_epoch", batches_per_epoch, _MOST)
        if type(sampler) is BatchSampler:
            self._sampler, self.batch_size, self.drop_last = sampler.sampler, sampler.batch_size, sampler.drop_last
        self.shard = shard_of(self._sampler, rank, world_size)
        plans = self.batch_size is None and self.is_set_by_epoch
        check_length(self._sampler, self, self.batch_size, self.drop_last, plans=plans)

    def __len__(self) -> int:
        length = len(self._sampler)
        if self.shard is not None:
            length = self.shard.length(length, self.batch_size, drop_last=self.drop_last)
        if self.batch_size is not None:
            length = length // self.batch_size if self.drop_last else -(-length // self.batch_size)
        return length if self.most_batches is None else min(length, self.most_batches)

    @property
    def length(self) -> int | None:
        """How many batches an epoch has; None where the sampler does not say, or says it only once it is begun."""
        return length_of(self) or None

    @property
    def sampler(self) -> Any:
        """What the batches are drawn from."""
        return self._sampler

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of a new epoch. Nothing is drawn before the first is asked for."""
        return itertools.islice(self._all_batches(), self.most_batches)

    def _all_batches(self) -> Iterator[list[int]]:
        sampler = self._sampler
        if (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
            and self.batch_size is not None
            and (self.shard is None or self.shard.ranks == 1)
        ):
            return itertools.chain.from_iterable(self._sliced_permutation(sampler, self.batch_size))
        return self._collected()

    def begin_epoch(self) -> tuple[Iterator[list[int]], str | None]:
        """A new epoch's batches, and the state of the generator, if any, that they will be drawn from."""
        if self._needs_our_generator:
            self._our_generator()
        return iter(self), self.generator_state()

    def generator_state(self) -> str | None:
        """The state, in hexadecimal, of the generator that orders are drawn from; None if there is none yet."""
        generator = self._users_generator or self._own_generator
        return None if generator is None else bytes(generator.get_state().tolist()).hex()

    def check_generator_state(self, name: str, state: object) -> str | None:
        """``state``, if it can be set here.

        Raises:
            StateError: If there is no generator here, or torch refuses the state.
        """
        if state is None:
            return None
        if self._users_generator is None and not self._needs_our_generator:
            raise StateError(
                f"{name} is in the state, but {type(self._sampler).__name__} has no generator here; "
                "construct the sampler as it was when the state was saved"
            )
        if not isinstance(state, str):
            raise StateError(f"{name} is {shown(state)} in the state; it must be hexadecimal text")
        try:
            torch.Generator().set_state(_from_hexadecimal(state))
        except (RuntimeError, ValueError, TypeError) as error:
            raise StateError(f"{name} in the state is none that this torch can load: {error}") from error
        return state

    def set_generator_state(self, state: str | None) -> None:
        """Let the generator go on from ``state``, which ``check_generator_state`` let pass."""
        if state is None:
            self._own_generator = None
            return
        generator = self._users_generator or self._own_generator
        if generator is None:
            generator = self._own_generator = torch.Generator()
        # In place, since an epoch that is going on draws from this very object.
        generator.set_state(_from_hexadecimal(state))

    @property
    def is_set_by_epoch(self) -> bool:
        """Whether the order depends on the sampler's ``set_epoch``, which loops call as an epoch begins."""
        return hasattr(self._sampler, "set_epoch") or hasattr(getattr(self._sampler, "sampler", None), "set_epoch")

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, or the one that it draws from, which epoch is about to begin, if it has an ear for it."""
        for sampler in (self._sampler, getattr(self._sampler, "sampler", None)):
            set_epoch = getattr(sampler, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(epoch)
                return

    @property
    def rank_shard(self) -> Shard:
        """The part of the data that this order is of, by its own shard or its sampler's."""
        return self.shard or own_shard(self._sampler) or Shard()

    def common_to_ranks(self) -> dict[str, Any]:
        """What an order that ranks share depends on, as JSON types: the same on each of them."""
        if self.rank_shard.ranks == 1:
            return {}
        _, state = self.begin_epoch()
        return {
            **said_of_order(self._sampler, self.shard),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "generator": None if state is None else zlib.crc32(state.encode()),
        }

    def resumed(
        self, epoch_generator: str | None, position: int, known: dict[int, list[Any] | None], *, is_exhausted: bool
    ) -> Iterator[list[int]]:
        """The batches from ``position`` on, of the epoch that was drawn from the state ``epoch_generator``.

        Args:
            epoch_generator: As ``begin_epoch`` gave it.
            position: At least 1.
            known: Batches before ``position``, by their position; where there is a None, what is drawn is put in.
            is_exhausted: Whether there were no more than ``position``.

        Raises:
            StateError: If one of them is another, or there are fewer or more: so the order is another one.
        """
        before, before_of_torch = self.generator_state(), torch.get_rng_state()
        try:
            if epoch_generator is not None:
                self.set_generator_state(epoch_generator)
            return self._checked(iter(self), position, known, is_exhausted=is_exhausted)
        except BaseException:
            self.set_generator_state(before)
            # A sampler without a generator of its own has drawn from it.
            torch.set_rng_state(before_of_torch)
            raise

    @staticmethod
    def _checked(
        batches: Iterator[list[int]], position: int, known: dict[int, list[Any] | None], *, is_exhausted: bool
    ) -> Iterator[list[int]]:
        for place in range(position):
            batch = next(batches, None)
            if place in known and known[place] is None:
                known[place] = batch
            if batch is None or known.get(place, batch) != batch:
                had = shown(known[place]) if place in known else "some"
                raise StateError(
                    f"batch {place} of the resumed epoch has indices {shown(batch)}, but had {had} when the state was "
                    "saved. The data set or the base sampler is another one, or the sampler shuffles without a "
                    "generator of its own: give it generator=torch.Generator(), or call its set_epoch() as before"
                )
        if is_exhausted and (more := next(batches, None)) is not None:
            raise StateError(
                f"the state had handed out {position} batches and then no more, but the base sampler goes on with "
                f"{shown(more)} here; the data set or the batch size is another one"
            )
        return batches

    def _sliced_permutation(self, sampler: RandomSampler, batch_size: int) -> Iterator[list[list[int]]]:
        """Many batches at a time, since going from one to the next in Python would take as long as making it."""
        samples = len(sampler.data_source)
        order: Any = torch.randperm(samples, generator=sampler.generator or self._our_generator())
        # Where NumPy is installed, as it is beside most torches, its tolist() is the faster one.
        with contextlib.suppress(RuntimeError):
            order = order.numpy()
        full = samples - samples % batch_size
        rows = order[:full].reshape(-1, batch_size)
        # A few batches' worth of Python integers at a time stays in the processor's cache.
        for first in range(0, len(rows), _BATCHES_IN_A_CHUNK):
            yield rows[first : first + _BATCHES_IN_A_CHUNK].tolist()
        if full < samples and not self.drop_last:
            yield [order[full:].tolist()]
        if sampler.generator is not None:
            # RandomSampler ends an epoch by drawing a second permutation, for the part of it that
            # num_samples leaves over. A generator that the user holds must end up in the same place.
            torch.randperm(samples, generator=sampler.generator)

    def _collected(self) -> Iterator[list[int]]:
        sampler = self._sampler
        if self._needs_our_generator:
            sampler = copy.copy(sampler)
            sampler.generator = self._our_generator()
        if self.batch_size is None:
            for batch in self._sharded(sampler):
                if not hasattr(batch, "__iter__"):
                    raise OptionError(
                        f"{type(self._sampler).__name__} yields {batch!r}, a single index; pass a batch_size with it, "
                        "or a sampler that yields lists of indices"
                    )
                # A copy, since a batch sampler may fill one list again and again.
                yield [as_plain(index) for index in batch]
            return
        indices = map(as_plain, self._sharded(sampler))
        while batch := list(itertools.islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch

    def _sharded(self, items: Iterable[Any]) -> Iterator[Any]:
        if self.shard is None or self.shard.ranks == 1:
            return iter(items)
        return self.shard.of(items, self.batch_size, drop_last=self.drop_last)

    @property
    def _users_generator(self) -> torch.Generator | None:
        """The generator of the user's sampler, or of the sampler that the user's batch sampler draws from."""
        for sampler in (self._sampler, getattr(self._sampler, "sampler", None)):
            generator = getattr(sampler, "generator", None)
            if isinstance(generator, torch.Generator):
                return generator
        return None

    @property
    def _needs_our_generator(self) -> bool:
        return type(self._sampler) in _TAKES_OUR_GENERATOR and self._sampler.generator is None

    def _our_generator(self) -> torch.Generator:
        """A generator that stays, seeded as RandomSampler seeds the one that it makes for each epoch."""
        if self._own_generator is None:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
            self._own_generator = torch.Generator()
            self._own_generator.manual_seed(seed)
        return self._own_generator


def _from_hexadecimal(state: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
