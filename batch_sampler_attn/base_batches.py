"""The base order of a batch sampler: lists of dataset indices, quickly, and again after a resume."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, RandomSampler

from batch_sampler_attn.errors import OptionError, StateError


class BaseBatches:
    """Batches of dataset indices from a sampler of indices, or from a sampler of batches.

    A ``RandomSampler`` without replacement is drawn as one permutation and sliced, with the very draws that
    torch makes, which is faster than collecting one index at a time. A sampler whose ``generator`` is None gets
    one of ours, seeded by one draw from torch's global generator, so that its later epochs can be resumed.

    Args:
        sampler: Yields indices if ``batch_size`` is given, else lists of indices.
        batch_size: Indices in a batch; None if ``sampler`` makes the batches.
        drop_last: Whether a last, shorter batch is left out.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int | None, drop_last: bool) -> None:
        self._sampler: Any = sampler
        self._own_generator: torch.Generator | None = None
        self.batch_size = batch_size
        self.drop_last = drop_last
        if batch_size is None and type(sampler) is BatchSampler:
            self._sampler, self.batch_size, self.drop_last = sampler.sampler, sampler.batch_size, sampler.drop_last
        self._check()

    def __len__(self) -> int:
        length = len(self._sampler)
        if self.batch_size is None:
            return length
        return length // self.batch_size if self.drop_last else -(-length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of a new epoch. Nothing is drawn before the first is asked for."""
        sampler = self._sampler
        if (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source)
            and self.batch_size is not None
        ):
            return self._sliced_permutation(sampler, self.batch_size)
        return self._collected()

    def begin_epoch(self) -> tuple[Iterator[list[int]], str | None]:
        """A new epoch's batches, and the state of the generator, if any, that they will be drawn from."""
        if hasattr(self._sampler, "generator"):
            self._generator()
        return iter(self), self.generator_state()

    def generator_state(self) -> str | None:
        """The state, in hexadecimal, of the generator that orders are drawn from; None if there is none yet."""
        generator = getattr(self._sampler, "generator", None) or self._own_generator
        return None if generator is None else bytes(generator.get_state().tolist()).hex()

    def set_generator_state(self, state: str | None) -> None:
        """Let the generator go on from ``state``.

        Raises:
            StateError: If there is no generator here, or torch refuses the state.
        """
        if state is None:
            return
        if not hasattr(self._sampler, "generator"):
            raise StateError(
                f"the state holds a random generator's state, but {type(self._sampler).__name__} has no generator; "
                "construct the sampler as it was when the state was saved"
            )
        try:
            tensor = torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
            torch.Generator().set_state(tensor)
        except (RuntimeError, ValueError, TypeError) as error:
            raise StateError(f"the state's generator is not one that this torch can load: {error}") from error
        if self._own_generator is None:
            self._own_generator = torch.Generator()
        self._generator().set_state(tensor)

    @property
    def is_set_by_epoch(self) -> bool:
        """Whether the order depends on the sampler's ``set_epoch``, which loops call as an epoch begins."""
        return hasattr(self._sampler, "set_epoch")

    def resumed(self, epoch_generator: str | None, position: int, last_batch: list[Any] | None) -> Iterator[list[int]]:
        """The batches from ``position`` on, of the epoch that was drawn from the state ``epoch_generator``.

        Raises:
            StateError: If the batch before ``position`` is not ``last_batch``: the order is another one.
        """
        before = self.generator_state()
        self.set_generator_state(epoch_generator)
        batches = iter(self)
        skipped = next(itertools.islice(batches, position - 1, None), None)
        if skipped is None or list(skipped) != last_batch:
            self.set_generator_state(before)
            raise StateError(
                f"batch {position - 1} of the resumed epoch has indices {skipped}, but had {last_batch} when the state "
                "was saved. The data set or the base sampler is another one, or the sampler shuffles without a "
                "generator of its own: give it generator=torch.Generator(), or call its set_epoch() as before"
            )
        return batches

    def _sliced_permutation(self, sampler: RandomSampler, batch_size: int) -> Iterator[list[int]]:
        samples = len(sampler.data_source)
        order: list[int] = torch.randperm(samples, generator=self._generator()).tolist()
        stop = samples - batch_size + 1 if self.drop_last else samples
        for start in range(0, stop, batch_size):
            yield order[start : start + batch_size]
        if sampler.generator is not None:
            # RandomSampler ends an epoch by drawing a second permutation, for the part of it that
            # num_samples leaves over. A generator that the user holds must end up in the same place.
            torch.randperm(samples, generator=sampler.generator)

    def _collected(self) -> Iterator[list[int]]:
        sampler = self._sampler
        if hasattr(sampler, "generator") and sampler.generator is None:
            sampler = copy.copy(sampler)
            sampler.generator = self._generator()
        if self.batch_size is None:
            yield from sampler
            return
        indices = iter(sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                return
            yield batch

    def _generator(self) -> torch.Generator:
        """The user's generator, or ours, seeded as RandomSampler seeds its own."""
        users: torch.Generator | None = getattr(self._sampler, "generator", None)
        if users is not None:
            return users
        if self._own_generator is None:
            seed = int(torch.empty((), dtype=torch.int64).random_().item())
            self._own_generator = torch.Generator()
            self._own_generator.manual_seed(seed)
        return self._own_generator

    def _check(self) -> None:
        if not hasattr(type(self._sampler), "__iter__") and not hasattr(type(self._sampler), "__getitem__"):
            raise OptionError(
                f"sampler is {self._sampler!r}; it must be a sampler of indices with a batch_size, such as "
                "RandomSampler(dataset), or a batch sampler without one"
            )
        if isinstance(self._sampler, Iterator):
            raise OptionError(
                f"sampler is a one-shot {type(self._sampler).__name__}, empty after one epoch; pass something that "
                "can be iterated over in every epoch, such as RandomSampler(dataset)"
            )
        if self.batch_size is not None and (
            not isinstance(self.batch_size, int) or isinstance(self.batch_size, bool) or self.batch_size < 1
        ):
            raise OptionError(f"batch_size is {self.batch_size!r}; it must be a whole number of at least 1")
        if not isinstance(self.drop_last, bool):
            raise OptionError(f"drop_last is {self.drop_last!r}; it must be True or False")
        if self.batch_size is None and self.drop_last:
            raise OptionError("drop_last is True without a batch_size; a batch sampler drops its last batch itself")
        try:
            samples = len(self._sampler)
        except TypeError:
            return
        if self.batch_size is not None and samples == 1:
            raise OptionError(
                "the sampler holds one sample; Batch-attention compares the losses of batches, which takes at "
                "least two samples. Was a batch sampler or a subset passed by mistake?"
            )
        if len(self) == 0:
            raise OptionError(
                f"the sampler holds no batch ({samples} samples, batch_size={self.batch_size}, "
                f"drop_last={self.drop_last}); use more data, a smaller batch_size or drop_last=False"
            )
