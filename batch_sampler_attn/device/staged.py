"""Batches that do not fit on the device: a DataLoader's, through a ring of buffers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from batch_sampler_attn.device.data import Batch, check_batch_size
from batch_sampler_attn.device.identity import crc_of
from batch_sampler_attn.device.staged_checks import check_fits, check_loader, check_pair
from batch_sampler_attn.device.transfer import copy_in
from batch_sampler_attn.errors import DeviceLoopError, OptionError


class StagedData:
    """A DataLoader's batches, copied to the device ahead of the cursor, for data that does not fit there.

    A ring of ``slots`` buffers is filled from pinned memory; a batch stays in its slot until the cursor is known to be
    past it. Half of the ring is filled before an epoch's first update. From then on, updates on what is at hand are
    enqueued first, and the slots that are free are filled while the device makes them.

    Args:
        loader: A DataLoader that yields (inputs, targets), two tensors of ``batch_size`` samples, in the last batch at
            most so many; every batch of the same shape and type. Its ``len`` is the number of batches. To go on in
            mid-epoch it is gone through again from the epoch's begin, so a data set that draws random numbers itself
            has to do so in worker processes; where other targets come then, the state is refused as one of other data.
            Without workers, the first sample is looked at once, here.
        batch_size: Samples in a batch.
        device: The model's device.
        slots: Buffers in the ring; at least 2. Between two reads of the cursor at most so many batches are trained on.

    Raises:
        OptionError: If an argument is not allowed, or the samples are not two tensors. A batch that differs from the
            others is a ``DeviceLoopError`` when it comes.
    """

    def __init__(self, loader: Any, batch_size: int, device: torch.device | str, *, slots: int = 64) -> None:
        check_batch_size(batch_size, None)
        if not isinstance(slots, int) or isinstance(slots, bool) or slots < 2:
            raise OptionError(f"slots is {slots!r}; a ring needs a whole number of buffers, at least 2")
        self.loader = loader
        self.batches = check_loader(loader)
        self.batch_size = batch_size
        # With its index, as tensors that are there have it.
        self.device = torch.empty(0, device=device).device
        # An order that is drawn from the sampler's own generator is to be saved as well.
        self.generator: torch.Generator | None = loader.generator or getattr(loader.sampler, "generator", None)
        self.slots = slots
        self._iterator: Iterator[Any] = iter(())
        self._staged = 0
        self._draws = 0
        self._uniform_draws: torch.Generator | None = None
        # Of the targets of the batches that came in this epoch.
        self._targets_crc = 0
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._uniforms: Tensor | None = None
        tail_size = self._find_tail_size()
        # A batch sampler of the user's own shows the size of its last batch when it comes to it: until then it may be
        # any, so that this batch is always trained on by itself.
        self._is_tail_known = tail_size is not None
        self.tail_size = batch_size if tail_size is None else tail_size
        self.full_batches = self.batches - (self.tail_size > 0)
        # For inputs and targets: (slots, batch_size, ...).
        self._buffers: tuple[Tensor, Tensor] | None = None
        example = self._probe()
        if example is not None and self._is_tail_known:
            self._make_ring(*example)

    @property
    def read_ahead(self) -> int:
        """How many batches the loader's workers, and with them its sampler, are ahead of what came."""
        ahead: int = self.loader.num_workers * (self.loader.prefetch_factor or 0)
        return ahead

    def reserve_uniforms(self, draws: int) -> None:
        """Keep ``draws`` numbers for every sample in the ring, drawn as it is filled."""
        self._draws = draws
        self._uniforms = torch.zeros(self.slots, self.batch_size, draws, device=self.device)

    def begin_epoch(self) -> None:
        """Begin to go through the loader."""
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        self._iterator = iter(self.loader)
        self._staged = self._targets_crc = 0
        if self._draws and self.loader.generator is None:
            # On a CPU dropout draws from torch's default generator in between, and not where an epoch is gone on with.
            seed = int(torch.empty((), dtype=torch.int64).random_())
            self._uniform_draws = torch.Generator().manual_seed(seed)

    def resume_epoch(self, cursor: int, staged: int) -> None:
        """Go through the loader again, past the first ``cursor`` batches, and fill the ring up to ``staged``."""
        self.begin_epoch()
        for batch in itertools.islice(self._iterator, cursor):
            self._note_targets(check_pair(f"batch {self._staged} of the loader", batch, DeviceLoopError)[1])
            self._staged += 1
            self._draw_uniforms()
        self._stage_up_to(staged)

    def identity(self) -> dict[str, Any]:
        """What tells this data, as far as the epoch has been staged, from others."""
        return {**self._known_ahead(), "targets": self._targets_crc}

    def identity_ahead(self, randomness: object) -> dict[str, Any]:
        """What is known of ``identity`` before the loader is gone through; None for what is not."""
        del randomness
        return self._known_ahead()

    def stage(self, cursor: int) -> int:
        """Fill the slots that the cursor has left; return how many batches are at hand, from the epoch's begin.

        With nothing at hand only half of the slots are filled: the others can be while the device trains on these.
        """
        slots = self.slots if self._staged > cursor else self.slots // 2
        return self._stage_up_to(min(cursor + slots, self.batches))

    def _stage_up_to(self, end: int) -> int:
        # Nothing to wait for: what is overwritten has been trained on, or the cursor would not have been read past it.
        with torch.cuda.stream(self._copies):
            while self._staged < end:
                self._fill(self._staged)
                self._staged += 1
                if self._staged == self.batches:
                    self._finish()
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        return self._staged

    def batch(self, cursor: Tensor) -> Batch:
        """The full batch at ``cursor``, an int64 0-d tensor on the device."""
        inputs, targets = self._ring()
        slot = torch.remainder(cursor, self.slots).reshape(1)
        uniforms = None if self._uniforms is None else self._uniforms.index_select(0, slot)[0]
        return Batch(inputs.index_select(0, slot)[0], targets.index_select(0, slot)[0], uniforms)

    def tail(self) -> Batch:
        """The last, shorter batch."""
        inputs, targets = self._ring()
        slot, size = self.full_batches % self.slots, self.tail_size
        uniforms = None if self._uniforms is None else self._uniforms[slot, :size]
        return Batch(inputs[slot, :size], targets[slot, :size], uniforms)

    def _find_tail_size(self) -> int | None:
        """Samples in the last, shorter batch, 0 if there is none; None if only the batch sampler knows."""
        batch_sampler = self.loader.batch_sampler
        if type(batch_sampler) is not BatchSampler:
            return None
        if batch_sampler.batch_size != self.batch_size:
            raise OptionError(
                f"batch_size is {self.batch_size}, and the loader's is {batch_sampler.batch_size}; give both the same"
            )
        samples = len(self.loader.sampler)
        if not batch_sampler.drop_last:
            check_batch_size(self.batch_size, samples)
        return 0 if batch_sampler.drop_last else samples % self.batch_size

    def _probe(self) -> tuple[Tensor, Tensor] | None:
        """A batch of the first sample; torch's random numbers stay as they are.

        None where the data set is not to be read in this process, which may have no access to it and must not share
        open files with the workers, and where there is no such sample.
        """
        loader = self.loader
        if loader.num_workers > 0:
            return None
        try:
            with torch.random.fork_rng(devices=[]):
                sample = loader.dataset[0]
                batch = loader.collate_fn(sample if loader.batch_sampler is None else [sample])
        except Exception:  # a loader that cannot do without will say so when it is gone through
            return None
        return check_pair("the loader's batch", batch, OptionError)

    def _make_ring(self, inputs: Tensor, targets: Tensor) -> None:
        size = self.slots, self.batch_size
        self._buffers = (
            torch.zeros((*size, *inputs.shape[1:]), dtype=inputs.dtype, device=self.device),
            torch.zeros((*size, *targets.shape[1:]), dtype=targets.dtype, device=self.device),
        )

    def _ring(self) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        return self._buffers

    def _fill(self, position: int) -> None:
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise DeviceLoopError(
                f"the loader ended after {position} batches, but its len() is {self.batches}"
            ) from None
        pair = check_pair(f"batch {position} of the loader", batch, DeviceLoopError)
        self._check_size(position, *map(len, pair))
        if self._buffers is None:
            self._make_ring(*pair)
        slot = position % self.slots
        for name, part, buffers in zip(("inputs", "targets"), pair, self._ring(), strict=True):
            check_fits(name, position, part, buffers)
        for part, buffers in zip(pair, self._ring(), strict=True):
            copy_in(buffers[slot, : len(part)], part)
        self._note_targets(pair[1])
        uniforms = self._draw_uniforms()
        if self._uniforms is not None and uniforms is not None:
            copy_in(self._uniforms[slot], uniforms)

    def _check_size(self, position: int, inputs: int, targets: int) -> None:
        is_last = position == self.batches - 1
        if is_last and not self._is_tail_known and inputs == targets and 0 < inputs <= self.batch_size:
            self.tail_size, self._is_tail_known = inputs, True
        expected = self.tail_size if is_last and self.tail_size else self.batch_size
        if inputs != expected or targets != expected:
            raise DeviceLoopError(
                f"batch {position} of the loader has {inputs} inputs and {targets} targets; it must have {expected} "
                "of each: full batches, and a shorter one at most at the end, of the same size in every epoch"
            )

    def _finish(self) -> None:
        # A sampler may draw once more as it ends, as RandomSampler does: the next epoch depends on it.
        if next(self._iterator, None) is not None:
            raise DeviceLoopError(f"the loader yields more batches than its len(), {self.batches}")

    def _known_ahead(self) -> dict[str, Any]:
        try:
            samples = len(self.loader.dataset)
        except TypeError:  # a data set by keys need not know
            samples = None
        return {
            "kind": type(self).__name__,
            "samples": samples,
            "batch_size": self.batch_size,
            "order": None,
            "targets": None,
        }

    def _note_targets(self, targets: Tensor) -> None:
        # Targets, since inputs may well be augmented otherwise by other workers. Those that a loader has put on the
        # device stay there: to look at them is to wait.
        if targets.device.type == "cpu":
            self._targets_crc = crc_of(targets, self._targets_crc)

    def _draw_uniforms(self) -> Tensor | None:
        if not self._draws:
            return None
        return torch.rand(self.batch_size, self._draws, generator=self.loader.generator or self._uniform_draws)
