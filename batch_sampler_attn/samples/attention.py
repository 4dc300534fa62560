"""Attention to samples: the public interface."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from batch_sampler_attn.attend import AttendedLoader
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, plural, warn
from batch_sampler_attn.flight import Feed, check_loader
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.options import length_of, positive_int
from batch_sampler_attn.ranks import Ranks, RanksOption, Shard, shard_of
from batch_sampler_attn.samples.options import DOSES, RememberLoss, SampleOptions, Select, check_sampler, checked_doses
from batch_sampler_attn.samples.rule import Memory, SampleBatch, _SampleSource, loss_of_code
from batch_sampler_attn.summary import SampleSummary


class Suspect(NamedTuple):
    """A sample that is hard, or whose label may be wrong."""

    sample: int  # its index in the dataset
    mean_loss: float  # over its visits
    visits: int  # with a finite loss, in all of training; counted up to 255


class AttendedSamples(AttendedLoader[Any, Any]):
    """The loader that ``SampleAttention.attend`` returns: each iteration is one epoch, of exactly ``len()`` batches."""

    def __len__(self) -> int:
        return len(self.schedule)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, for trainers that save their loaders: ``SampleAttention`` saves the position."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing, since there is no state to load."""


class SampleAttention:
    """Trains more on badly fitted samples and less on well-fitted ones, with exactly ``updates`` batches in an epoch.

    Well-fitted samples, with a loss below the previous epoch's mean, are *pruned* from a pass over the data with
    probability ``prune_probability``. Badly fitted samples, with a loss above ``k`` times that mean, are *pooled*, and
    repeated in batches of such samples. Either can be used alone. Passes over the data follow each other, and an
    epoch ends after ``updates`` batches, possibly in the middle of a pass.

    It is a batch sampler for a ``torch.utils.data.DataLoader``, and needs no framework itself. With workers, a loss
    takes effect after the batches that were requested before it arrived. (This extends the paper's future work;
    pruning follows InfoBatch, Qin et al., 2024, at a fixed number of updates.)

    Args:
        samples: Length of the dataset.
        batch_size: Number of samples in every batch.
        k: Samples with a loss above ``floor + k * (mean - floor)`` are pooled; None pools none.
        max_visits: A sample is pooled only while it has fewer visits than this in the epoch; at most 255.
        prune_probability: Chance that a pass prunes a well-fitted sample; 0 prunes none. InfoBatch's ``prune_ratio``.
        weighted: Whether to weight the losses of well-fitted samples that are not pruned. As in InfoBatch, the expected
            gradient is then that of all data. Off by default: without weights, training gained more on rare subgroups,
            and weights did not prevent harm from label noise (benchmarks/records/selection-report).
        updates: Batches in an epoch; None takes as many as plain training, with this sampler and without ``drop_last``.
        epochs: Total number of epochs, of which ``final_full_share`` is a share; None prunes and pools to the end.
        final_full_share: Final share of training on all data, at least one epoch; 0: none. InfoBatch's ``1 - delta``.
        floor: The loss of a perfect fit, if it is not 0, as with label smoothing.
        remember_loss: Which loss of a sample counts: its "last", or that of its last visit in a "base" batch.
        select: "loss", or one of two controls. "random" prunes and pools as many samples as the losses of this run
            select, but random ones. The ``doses`` of an earlier run prune and pool as many as it did.
        sampler: Yields the order of each pass; ``set_epoch``, if defined, is first called with the pass's index; None
            draws a random order from ``seed``.
        seed: Seed of the order and of pruning.
        rank: Index of this rank among ranks that train together; it trains on every ``world_size``-th sample.
        world_size: Number of ranks; 1 if each rank has its own data.
        ranks: ``MeanOverRanks()`` from ``batch_sampler_attn.distributed`` compares losses with the mean over all ranks'
            samples, None with this rank's mean. "refuse" is for a single process, and raises an error on several ranks.

    Raises:
        OptionError: If an argument is not allowed.

    Example:
        >>> attention = SampleAttention(6, 2, prune_probability=0.5)
        >>> difficulty = [0.1, 0.1, 0.1, 0.1, 3.0, 3.0]
        >>> for epoch in range(2):
        ...     for indices in attention.attend():
        ...         weights = attention.report([difficulty[index] for index in indices])
        >>> attention.last_summary.updates, attention.last_summary.pruned > 0
        (3, True)
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        k: float | None = None,
        max_visits: int = 2,
        prune_probability: float = 0.5,
        weighted: bool = False,
        updates: int | None = None,
        epochs: int | None = None,
        final_full_share: float = 0.15,
        floor: float = 0.0,
        remember_loss: RememberLoss = "last",
        select: Select | dict[str, list[int]] = "loss",
        sampler: Iterable[Any] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        ranks: RanksOption = "refuse",
    ) -> None:
        self._given_shard = shard_of(sampler, rank, world_size)
        shard = self._given_shard or Shard()
        doses = None if isinstance(select, str) and select != DOSES else checked_doses(select)
        options = SampleOptions(
            samples=samples,
            batch_size=batch_size,
            k=k,
            max_visits=max_visits,
            prune_probability=prune_probability,
            weighted=weighted,
            updates=1 if updates is None else updates,
            epochs=epochs,
            final_full_share=final_full_share,
            floor=floor,
            remember_loss=remember_loss,
            select=select if doses is None else DOSES,  # type: ignore[arg-type]
            seed=seed,
        )
        options.check(ranks=shard.ranks)
        if sampler is not None:
            check_sampler(sampler)
        if updates is None:
            options.updates = -(-(length_of(sampler) or options.samples) // (options.batch_size * shard.ranks))
        if doses is not None and (doses["samples"], doses["updates"]) != (options.samples, options.updates):
            raise OptionError(
                f"select has doses of {doses['samples']} samples and {doses['updates']} updates an epoch, and here are "
                f"{options.samples} and {options.updates}; use the doses of a run with the same numbers"
            )
        self._ranks = Ranks(ranks)
        self._source = _SampleSource(options, sampler, shard, doses, self._ranks)
        self._feed = self._source.feed = Feed(self._source, self)
        self._has_warned_of_end = False
        self.batch_size = options.batch_size

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self.options).items())
        return f"<{type(self).__name__}({options}), epoch {self.epoch}, update {self.updates}>"

    @property
    def options(self) -> SampleOptions:
        """The options, as given and checked."""
        return self._source.options

    @property
    def epoch(self) -> int:
        """Zero-based index of the epoch in progress; also the number of epochs ended."""
        return self._source.state.epoch

    @property
    def updates(self) -> int:
        """Number of updates made in the epoch in progress."""
        return self._source.state.counts.updates

    @property
    def threshold(self) -> float | None:
        """Loss above which a sample is pooled; None while no sample can be pooled."""
        return self._source.threshold

    @property
    def indices(self) -> list[int]:
        """Dataset indices of the current batch; raises ProtocolError if there is none."""
        return list(self._current("indices").indices)

    @property
    def weights(self) -> list[float]:
        """Weights of the current batch's losses, one per sample; their mean over a pass is 1."""
        return list(self._current("weights").weights)

    @property
    def summary(self) -> SampleSummary:
        """Summary of the epoch in progress so far."""
        return self._source.summarize()

    @property
    def last_summary(self) -> SampleSummary:
        """Summary of the last epoch that ended; raises ProtocolError if none has ended."""
        summary = self._source.state.last_summary
        if summary is None:
            raise ProtocolError(
                f"no epoch has ended yet: {self.updates} of {len(self)} updates are made. A loop that is left early "
                "does not end its epoch: the next attend() resumes it, and .summary has it so far"
            )
        return summary

    @property
    def doses(self) -> dict[str, Any]:
        """How many samples each pass pruned and each update pooled, as JSON types; pass it to ``select=``."""
        memory = self._memory()
        run = {"samples": self.options.samples, "updates": self.options.updates}
        return {**run, "pruned": memory.pruned.tolist(), "pooled": memory.pooled.tolist()}

    def loss_of(self, sample: int) -> float:
        """The remembered loss of the sample with this dataset index, to within 0.8 %; NaN if there is none."""
        if not 0 <= sample < self.options.samples:
            raise IndexError(f"sample {sample} is not one of the {self.options.samples}")
        return loss_of_code()[self._memory().losses[sample]]

    def suspects(self, n: int) -> list[Suspect]:
        """Return the samples with the highest mean loss over their visits, worst first; ties by index.

        Args:
            n: Maximum number of samples. Samples without a finite loss, and those of other ranks, are not returned.
        """
        n, memory = positive_int("n", n, "the most samples"), self._memory()
        seen = itertools.compress(range(len(memory.visits)), memory.visits)
        worst, loss_of = heapq.nlargest(n, seen, key=memory.means.__getitem__), loss_of_code()
        return [Suspect(sample, loss_of[memory.means[sample]], memory.visits[sample]) for sample in worst]

    def attend(self, loader: Iterable[Any] | None = None) -> AttendedSamples:
        """Wrap a loader so that each iteration is one epoch: exactly ``len(self)`` batches.

        Call ``weighted_mean`` or ``report`` once for each batch. Leaving the loop early does not end the epoch: the
        next iteration resumes it at the current batch, as after ``load_state_dict``. Reuse it for all epochs.

        Args:
            loader: A DataLoader with this as ``batch_sampler``; None yields lists of indices, for data in memory.

        Raises:
            ProtocolError: If losses could not be attributed to samples through the loader. While iterating, if a
                batch's losses were not reported, or the loader drops batches.
        """
        source = self if loader is None else loader
        self._check(source)
        return AttendedSamples(self, source, self._epoch)

    def report(self, losses: Any) -> list[float]:
        """Report the losses of the current batch, computed before the update, and return their weights.

        Args:
            losses: Shape (batch,), from any framework, or a list; computed with ``reduction="none"``.

        Raises:
            LossError: If there is not one loss for each sample. The batch is still current then.
            ProtocolError: If there is no current batch.
        """
        batch, numbers = self._checked("report()", losses)
        self._record_losses(numbers)
        return list(batch.weights)

    def weighted_mean(self, losses: Any) -> Any:
        """Report the losses and return their weighted mean to train on. Half precision is weighted in single precision.

        Args:
            losses: Shape (batch,), a PyTorch tensor or NumPy array. For others, use ``weights`` and ``report``.

        Raises:
            LossError: If ``report`` would raise it, or the losses are of another type. The batch is still current then.
            ProtocolError: If there is no current batch.
        """
        batch, numbers = self._checked("weighted_mean()", losses)
        mean = _weighted_mean(losses, batch.weights if self.options.weighted else None)
        self._record_losses(numbers)
        return mean

    def __len__(self) -> int:
        return self.options.updates

    def __iter__(self) -> Iterator[list[int]]:
        # All samples once, in order, except for the attended loader.
        samples, size = self.options.samples, self.batch_size
        return self._feed.indices(list(range(first, min(first + size, samples))) for first in range(0, samples, size))

    def _memory(self) -> Memory:
        with self._feed.lock:
            self._source.state.memory.apply(self._source.state.changes)
            return self._source.state.memory

    def _check(self, loader: Any) -> None:
        """Refuse loaders and ranks with which losses would go to other samples, or some samples to no rank."""
        given, count = self._given_shard, self._ranks.shard.ranks
        if count > 1 and (given is None or given.ranks not in (1, count)):
            problem = "train on the same samples" if given is None else "leave some samples out"
            raise ProtocolError(
                f"{count} ranks would {problem}: give rank= and world_size={count}; 1 if each has its own data"
            )
        if isinstance(loader, AttendedLoader):
            raise ProtocolError("attend() was given what attend() returned; iterate over the attended loader itself")
        check_loader(self, loader)
        length, samples = length_of(getattr(loader, "dataset", None)), self.options.samples
        if length not in (None, samples):
            raise ProtocolError(f"the dataset has {length:,} samples, not {samples:,}; make another SampleAttention")

    def _epoch(self, loader: Any) -> Iterator[Any]:
        self._check(loader)
        if self._feed.ticket is not None:
            # The last loop stopped early, perhaps after its last batch, and has kept the iterator.
            self._source.closed()
        if self._source.is_full and self.epoch == self.options.epochs and not self._has_warned_of_end:
            self._has_warned_of_end = True
            warn(
                f"epoch {self.epoch} begins, and epochs={self.options.epochs} is the whole training: all data is used "
                "from here on. Set epochs= to the epochs that you train, or final_full_share=0 (one warning)"
            )
        self._ranks.require_choice()
        common = {**dataclasses.asdict(self.options), "mean_loss": self._source.state.mean_loss}
        self._ranks.begin(self.epoch, self.updates, 0, common)
        yield from self._feed.batches(loader)

    def _current(self, caller: str) -> SampleBatch:
        ticket, sent = self._feed.ticket, self._source.sent
        if ticket is None or not sent or sent[0] is not ticket:
            raise ProtocolError(
                f"{caller} was used with no current batch of attention.attend(loader), or after its losses arrived"
            )
        return ticket

    def _checked(self, caller: str, losses: Any) -> tuple[SampleBatch, list[float]]:
        batch, numbers = self._current(caller), as_floats(losses)
        if len(numbers) != self.batch_size:
            got = plural(len(numbers), "loss", "losses")
            raise LossError(f'got {got} for a batch of {self.batch_size} samples; compute them with reduction="none"')
        return batch, numbers

    def _record_losses(self, losses: list[float]) -> None:
        epoch, before = self.epoch, self._source.state.counts.nonfinite_losses
        self._source.record_losses(losses)
        if self.summary.nonfinite_losses and not before:
            # If all of them are finite, one is too large to be averaged.
            unusable = next((loss for loss in losses if not math.isfinite(loss)), max(losses, key=abs))
            warn(
                f"a loss of {unusable} in epoch {epoch} is not finite, or too large to be averaged: it is ignored "
                "(one warning an epoch; SampleSummary.nonfinite_losses counts them)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, as plain JSON types: at most 8 bytes of text per sample.

        Call it at any time in a loop, even after an interrupt (Ctrl-C), but not in a signal handler. A batch whose
        losses were not reported is trained on again after the resume. Each rank has its own state. Save the generator
        of your own ``sampler`` yourself, unless its order depends only on ``set_epoch``.
        """
        # A StatefulDataLoader calls this with every batch that it requests, ahead of the losses.
        return {"saved_by_loader": True} if self._feed.is_inside_loader else self._source.pack()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a state that ``state_dict`` returned.

        Raises:
            StateError: If the state has another version or other options, or is damaged. Nothing is changed then.
        """
        if self._feed.is_loaders_state():
            return
        state = self._source.unpack(state_dict)
        self._ranks.forget()
        self._feed.loaded()
        self._source.state = state
        self._source.starts_resumed = state.counts.handed_out > 0


def _weighted_mean(losses: Any, weights: list[float] | None) -> Any:
    """The weighted mean of a tensor or an array; the plain mean if ``weights`` is None."""
    numpy = sys.modules.get("numpy")
    is_tensor = callable(getattr(losses, "new_tensor", None))
    is_array = numpy is not None and isinstance(losses, numpy.ndarray)
    if not (losses.is_floating_point() if is_tensor else is_array):
        raise LossError(
            f"weighted_mean() got losses of type {type(losses).__name__} ({getattr(losses, 'dtype', '')}); it takes a "
            "tensor of floats or a NumPy array. For others, use the weights that report(losses) returns"
        )
    if weights is None:
        return losses.mean()
    if is_tensor:
        # A weight above 1 may make a loss overflow in half precision.
        wide = losses.float() if losses.element_size() < 4 else losses
        return (wide * wide.new_tensor(weights)).mean()
    return (losses * weights).mean()
