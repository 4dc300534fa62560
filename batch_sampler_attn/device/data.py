"""Where a device loop's batches come from: tensors that live on the device, or a DataLoader through a ring."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from batch_sampler_attn.device.transfer import copy_in
from batch_sampler_attn.errors import DeviceLoopError, OptionError


class Augmentation(NamedTuple):
    """Random augmentation on the device.

    Attributes:
        apply: From images (batch, ...) and uniform numbers (batch, draws) to images of the same shape.
        draws: Uniform numbers in [0, 1) for each sample.
        fresh: Whether each visit draws its own numbers. By default they are drawn for each position of
            the epoch, so that a repeat sees the very images of the first visit.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    draws: int
    fresh: bool = False


class Batch(NamedTuple):
    """A batch as the data has it.

    Attributes:
        inputs: (batch, ...), as stored.
        targets: (batch, ...).
        uniforms: (batch, draws) for the augmentation, unless it draws afresh.
    """

    inputs: Tensor
    targets: Tensor
    uniforms: Tensor | None


class ResidentData:
    """Inputs and targets that stay on the device, visited in a new random order in every epoch.

    Args:
        inputs: (samples, ...) on the model's device. uint8 images are scaled to [0, 1] by the loop.
        targets: (samples, ...) on the same device.
        batch_size: Samples in a batch.
        drop_last: Whether the last, shorter batch is left out; otherwise it is trained on as it is.
        generator: A CPU generator that the orders are drawn from, so that they are the same on every device.
        shuffle: Whether to draw an order at all.

    Raises:
        OptionError: If the tensors do not fit each other or the batch size.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        generator: torch.Generator,
        drop_last: bool = False,
        shuffle: bool = True,
    ) -> None:
        if len(inputs) != len(targets):
            raise OptionError(f"there are {len(inputs)} inputs and {len(targets)} targets; each input needs one target")
        if inputs.device != targets.device:
            raise OptionError(f"inputs are on {inputs.device} and targets on {targets.device}; move both to one device")
        check_batch_size(batch_size, len(inputs))
        self.inputs = inputs
        self.targets = targets
        self.batch_size = batch_size
        self.device = inputs.device
        self.generator = generator
        self._shuffle = shuffle
        self.full_batches = len(inputs) // batch_size
        self.tail_size = 0 if drop_last else len(inputs) % batch_size
        self.order = torch.arange(len(inputs), device=self.device)
        self._within_batch = torch.arange(batch_size, device=self.device)
        self._uniforms: Tensor | None = None

    def reserve_uniforms(self, draws: int) -> None:
        """Keep ``draws`` numbers for every sample of an epoch, drawn with its order."""
        self._uniforms = torch.zeros(len(self.inputs), draws, device=self.device)

    def begin_epoch(self) -> None:
        """Draw a new order, into the same memory."""
        if self._shuffle:
            copy_in(self.order, torch.randperm(len(self.inputs), generator=self.generator))
        if self._uniforms is not None:
            copy_in(self._uniforms, torch.rand(self._uniforms.shape, generator=self.generator))

    def resume_epoch(self, cursor: int, staged: int) -> None:
        """Draw the order again, from the generator's state at the epoch's begin."""
        del cursor, staged
        self.begin_epoch()

    def stage(self, cursor: int) -> int:
        """How many batches are at hand, counted from the epoch's begin: all of them."""
        del cursor
        return self.full_batches + (self.tail_size > 0)

    def batch(self, cursor: Tensor) -> Batch:
        """The full batch at ``cursor``, an int64 0-d tensor on the device."""
        return self._gather(cursor * self.batch_size + self._within_batch)

    def tail(self) -> Batch:
        """The last, shorter batch."""
        return self._gather(self.full_batches * self.batch_size + self._within_batch[: self.tail_size])

    def sample(self, samples: int) -> Batch:
        """The first few samples as stored, without their uniform numbers."""
        return Batch(self.inputs[:samples], self.targets[:samples], None)

    def _gather(self, positions: Tensor) -> Batch:
        samples = self.order.index_select(0, positions)
        uniforms = None if self._uniforms is None else self._uniforms.index_select(0, positions)
        return Batch(self.inputs.index_select(0, samples), self.targets.index_select(0, samples), uniforms)


class StagedData:
    """A DataLoader's batches, copied to the device ahead of the cursor, for data that does not fit there.

    A ring of ``slots`` buffers is filled from pinned memory; a batch stays in its slot until the cursor is known to be
    past it. Half of the ring is filled before an epoch's first update. From then on, updates on what is at hand are
    enqueued first, and the slots that are free are filled while the device makes them.

    Args:
        loader: A DataLoader that yields (inputs, targets) of ``batch_size`` samples, the last batch at most so many.
            Its ``len`` is the number of batches. To go on in mid-epoch it is gone through again from the epoch's
            begin, so a data set that draws random numbers itself has to do so in worker processes.
        batch_size: Samples in a batch.
        device: The model's device.
        slots: Buffers in the ring; at least 2. Between two reads of the cursor at most so many batches are trained on.

    Raises:
        OptionError: If an argument is not allowed.
    """

    def __init__(self, loader: Any, batch_size: int, device: torch.device | str, *, slots: int = 64) -> None:
        if slots < 2:
            raise OptionError(f"slots is {slots!r}; a ring needs at least 2 buffers")
        check_batch_size(batch_size, None)
        self._loader = loader
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.generator: torch.Generator | None = getattr(loader, "generator", None)
        self._slots = slots
        self._check_loader()
        self._iterator: Iterator[Any] = iter(())
        self._staged = 0
        self._draws = 0
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        first_inputs, first_targets, last_size = self._probe()
        batches = len(loader)
        self.tail_size = 0 if last_size == batch_size else last_size
        self.full_batches = batches - (self.tail_size > 0)
        self.inputs = self._buffer(first_inputs)
        self.targets = self._buffer(first_targets)
        self._uniforms: Tensor | None = None

    def reserve_uniforms(self, draws: int) -> None:
        """Keep ``draws`` numbers for every sample in the ring, drawn as it is filled."""
        self._draws = draws
        self._uniforms = torch.zeros(self._slots, self.batch_size, draws, device=self.device)

    def begin_epoch(self) -> None:
        """Begin to go through the loader."""
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self.device))
        self._iterator = iter(self._loader)
        self._staged = 0

    def resume_epoch(self, cursor: int, staged: int) -> None:
        """Go through the loader again, past the first ``cursor`` batches, and fill the ring up to ``staged``."""
        self.begin_epoch()
        for _ in itertools.islice(self._iterator, cursor):
            self._staged += 1
            self._draw_uniforms()
        self._stage_up_to(staged)

    def stage(self, cursor: int) -> int:
        """Fill the slots that the cursor has left; return how many batches are at hand, from the epoch's begin.

        With nothing at hand only half of the slots are filled: the others can be while the device trains on these.
        """
        slots = self._slots if self._staged > cursor else self._slots // 2
        return self._stage_up_to(min(cursor + slots, self.full_batches + (self.tail_size > 0)))

    def _stage_up_to(self, end: int) -> int:
        # Nothing to wait for: what is overwritten has been trained on, or the cursor would not have been read past it.
        with torch.cuda.stream(self._copies):
            while self._staged < end:
                self._fill(self._staged)
                self._staged += 1
                if self._staged == self.full_batches + (self.tail_size > 0):
                    self._finish()
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
        return self._staged

    def batch(self, cursor: Tensor) -> Batch:
        """The full batch at ``cursor``, an int64 0-d tensor on the device."""
        slot = torch.remainder(cursor, self._slots).reshape(1)
        uniforms = None if self._uniforms is None else self._uniforms.index_select(0, slot)[0]
        return Batch(self.inputs.index_select(0, slot)[0], self.targets.index_select(0, slot)[0], uniforms)

    def tail(self) -> Batch:
        """The last, shorter batch."""
        slot, size = self.full_batches % self._slots, self.tail_size
        uniforms = None if self._uniforms is None else self._uniforms[slot, :size]
        return Batch(self.inputs[slot, :size], self.targets[slot, :size], uniforms)

    def _check_loader(self) -> None:
        if not isinstance(self._loader, DataLoader) or isinstance(self._loader.dataset, IterableDataset):
            raise OptionError(
                f"loader is {type(self._loader).__name__}; pass a torch.utils.data.DataLoader of a data set with "
                "indices, or put the tensors on the device and use ResidentData"
            )

    def _probe(self) -> tuple[Tensor, Tensor, int]:
        """Shapes and types, from the first sample of the data set; torch's random numbers stay as they are."""
        dataset, collate = self._loader.dataset, self._loader.collate_fn
        with torch.random.fork_rng(devices=[]):
            inputs, targets = collate([dataset[0]])
        samples = len(self._loader.sampler) if self._loader.batch_sampler is not None else len(dataset)
        full, rest = divmod(samples, self.batch_size)
        if full == 0:
            check_batch_size(self.batch_size, samples)
        drops_last = len(self._loader) == full
        return inputs, targets, self.batch_size if drops_last or rest == 0 else rest

    def _buffer(self, example: Tensor) -> Tensor:
        shape = (self._slots, self.batch_size, *example.shape[1:])
        return torch.zeros(shape, dtype=example.dtype, device=self.device)

    def _fill(self, position: int) -> None:
        try:
            inputs, targets = next(self._iterator)
        except StopIteration:
            raise DeviceLoopError(
                f"the loader ended after {position} batches, but its len() is {len(self._loader)}"
            ) from None
        slot, size = position % self._slots, len(inputs)
        expected = self.batch_size if position < self.full_batches else self.tail_size
        if size != expected or len(targets) != expected:
            raise DeviceLoopError(
                f"batch {position} of the loader has {size} inputs and {len(targets)} targets; it must have {expected} "
                "of each: full batches, and a shorter one at most at the end"
            )
        copy_in(self.inputs[slot, :size], inputs)
        copy_in(self.targets[slot, :size], targets)
        uniforms = self._draw_uniforms()
        if self._uniforms is not None and uniforms is not None:
            copy_in(self._uniforms[slot], uniforms)

    def _finish(self) -> None:
        # A sampler may draw once more as it ends, as RandomSampler does: the next epoch depends on it.
        if next(self._iterator, None) is not None:
            raise DeviceLoopError(f"the loader yields more batches than its len(), {len(self._loader)}")

    def _draw_uniforms(self) -> Tensor | None:
        if not self._draws:
            return None
        return torch.rand(self.batch_size, self._draws, generator=self.generator)


def check_batch_size(batch_size: object, samples: int | None) -> None:
    """Refuse batch sizes that no batch could have.

    Raises:
        OptionError: If it is not a whole number of at least 1, or more than ``samples``.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise OptionError(f"batch_size is {batch_size!r}; it must be a whole number of at least 1")
    if samples is not None and batch_size > samples:
        raise OptionError(f"batch_size is {batch_size}, but there are {samples} samples; use at most {samples}")
