"""Attention to samples: the user's side."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.attend import AttendedLoader
from batch_sampler_attn.errors import LossError, ProtocolError, StateError, plural, warn
from batch_sampler_attn.flight import NOTHING, Feed, check_loader
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.ranks import Ranks, RanksOption, Shard, shard_of
from batch_sampler_attn.samples.options import DOSES, RememberLoss, SampleOptions, Select, checked_doses
from batch_sampler_attn.samples.state import Memory, SampleRule, SampleState
from batch_sampler_attn.samples.stream import SampleBatch, check_sampler, samples_in_a_pass
from batch_sampler_attn.summary import SampleSummary


class AttendedSamples(AttendedLoader[Any, Any]):
    """What ``SampleAttention.attend`` returns: each iteration is one epoch, of exactly ``len()`` batches.

    Other attributes (``dataset``, ``batch_size``, ...) are those of the loader that it wraps.
    """

    def __len__(self) -> int:
        return len(self.schedule)


class SampleAttention:
    """Spends updates on badly fitted samples, and takes no more of them: an epoch has exactly ``updates``.

    Two halves, each of which can be used without the other. Well-fitted samples, with a loss below the mean of the epoch
    before, are *pruned* from a pass over the data with probability ``prune_probability``. Badly fitted samples, with a
    loss above ``k`` times that mean, are *pooled*, and come again in batches of such samples. What the pool adds and what
    pruning saves only change how fast training goes through the data: passes follow each other, and an epoch ends after
    ``updates`` batches wherever they are.

    It is a batch sampler for a ``torch.utils.data.DataLoader``, and needs no framework itself. Where losses arrive
    later than batches go out, as with workers, a sample's loss takes effect from then on; that is the same in every
    run with as many workers.

    (After the paper's future work, items 1 and 2: other criteria, and other ways to treat badly fitted data; pruning
    follows InfoBatch, Qin et al., 2024, at a fixed number of updates.)

    Args:
        samples: Length of the dataset.
        batch_size: Samples in a batch; every batch has as many.
        k: Samples with a loss above ``floor + k * (mean - floor)`` are pooled; None pools none.
        max_visits: The most visits to one sample in an epoch that pooling may bring it to, at most 255.
        prune_probability: That a well-fitted sample is pruned from a pass; 0 prunes none. InfoBatch's ``prune_ratio``.
        weighted: Weight the losses of well-fitted samples that stay, so that the expected gradient is that of all data.
        updates: Batches in an epoch; None takes as many as plain training, with this sampler and without ``drop_last``.
        epochs: Those of the whole training, which set where its last share begins; None for no such share.
        final_full_share: The share of training, at its end, that uses all data: the nearest number of epochs, and at
            least one. It is 1 minus InfoBatch's ``delta``.
        floor: The loss of a perfect fit, where it is not 0, as with label smoothing.
        remember_loss: Which loss of a sample counts: its "last", or that of its last visit in a "base" batch. The last
            is the most recent; a visit from the pool comes so soon after another that it can be lower than it will stay.
        select: "loss"; or one of two controls. "random" prunes and pools as many samples as the losses of this very run
            would select, whichever they are. The ``doses`` of a recorded run prune and pool as many as that run did.
        sampler: Yields the order of each pass, after ``set_epoch`` with the number of the pass if it has that; None for
            a random order that follows from ``seed``.
        seed: Of orders, and of what is pruned.
        rank: With ``world_size``, for ranks that train together: this one has every ``world_size``-th sample, and
            selects among these. An epoch takes as many updates on each rank.
        world_size: How many ranks there are.
        ranks: ``MeanOverRanks()`` from ``batch_sampler_attn.distributed``: losses are compared with the mean over all
            ranks' samples. None compares with this rank's; "refuse" is for one process, and refuses others.

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
        weighted: bool = True,
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
        doses = None if isinstance(select, str) else checked_doses(select)
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
            select=DOSES if doses is not None else "" if select == DOSES else select,  # type: ignore[arg-type]
            seed=seed,
        )
        options.check(ranks=shard.ranks)
        check_sampler(sampler)
        if updates is None:
            options.updates = -(-samples_in_a_pass(sampler, options.samples) // (options.batch_size * shard.ranks))
        self._rule = SampleRule(options, sampler, shard, doses)
        self._ranks = Ranks(ranks)
        self._source = _SampleSource(self._rule, self._ranks)
        self._feed = self._source.feed = Feed(self._source, self)
        self._was_loaded = False
        self._has_warned_of_end = False
        if options.warning is not None:
            warn(options.warning)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self.options).items())
        return f"<{type(self).__name__}({options}), epoch {self.epoch}, update {self.updates}>"

    # Progress --------------------------------------------------------------------------------------------

    @property
    def options(self) -> SampleOptions:
        """The options that this was made with."""
        return self._rule.options

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self.options.batch_size

    @property
    def epoch(self) -> int:
        """Epochs ended so far, which is the number, from 0, of the one in progress."""
        return self._state.epoch

    @property
    def updates(self) -> int:
        """Updates made in the epoch in progress."""
        return self._state.counts.updates

    @property
    def threshold(self) -> float | None:
        """Loss above which a sample is pooled; None while none is."""
        return self._rule.threshold(self._state)

    @property
    def indices(self) -> list[int]:
        """The samples of the current batch.

        Raises:
            ProtocolError: If there is no current batch.
        """
        return list(self._current("indices").indices)

    @property
    def weights(self) -> list[float]:
        """The weights of the current batch's losses, one a sample; their mean over a pass is 1.

        Raises:
            ProtocolError: If there is no current batch.
        """
        return list(self._current("weights").weights)

    @property
    def summary(self) -> SampleSummary:
        """The epoch in progress, up to now."""
        return self._rule.summarize(self._state)

    @property
    def last_summary(self) -> SampleSummary:
        """The epoch that ended last.

        Raises:
            ProtocolError: If none has ended yet.
        """
        state = self._state
        if state.last_summary is None:
            raise ProtocolError(
                f"no epoch has ended yet: {state.counts.updates} of the first one's {len(self)} updates are made, and "
                "a loop that is left early does not end it. The next attend() resumes it; .summary has it up to now"
            )
        return state.last_summary

    @property
    def doses(self) -> dict[str, list[int]]:
        """How many samples each pass has pruned and each update has pooled; ``select=`` takes it, also as JSON."""
        memory = self._memory()
        return {"pruned": memory.pruned.tolist(), "pooled": memory.pooled.tolist()}

    def loss_of(self, sample: int) -> float:
        """The loss that is remembered of a sample, by its index in the dataset; NaN if there is none."""
        if not 0 <= sample < self.options.samples:
            raise IndexError(f"sample {sample} is not one of the {self.options.samples}")
        return self._memory().losses[sample]

    # Training --------------------------------------------------------------------------------------------

    def attend(self, loader: Iterable[Any] | None = None) -> AttendedSamples:
        """Wrap a loader so that each iteration is one epoch: exactly ``len(self)`` batches.

        Each batch must be followed by one ``weighted_mean`` or ``report``. A loop that is left early does not end its
        epoch: the next iteration resumes it, at the current batch, as it does after ``load_state_dict``.

        Args:
            loader: A DataLoader built with ``batch_sampler=`` this; None yields lists of indices, for data in memory.

        Returns:
            What can be iterated over once an epoch. It may be made once, before the epochs.

        Raises:
            ProtocolError: If the loader was not built on this, yields batches in another order, or has a dataset of
                another length. While iterating: if a batch had no losses reported, or the loader drops batches.
        """
        source = self if loader is None else loader
        self._check(source)
        return AttendedSamples(self, source, self._deliver)

    def report(self, losses: Any) -> list[float]:
        """Report the losses of the current batch, one a sample, as they were before the update.

        Args:
            losses: (batch,), of any framework, or a list; computed with ``reduction="none"``.

        Returns:
            The weight of each loss, (batch,).

        Raises:
            LossError: If there is not one loss for each sample. The batch is still current then.
            ProtocolError: If there is no current batch.
        """
        batch = self._current("report()")
        self._settle(self._checked(losses, batch))
        return list(batch.weights)

    def weighted_mean(self, losses: Any) -> Any:
        """``report``, and the weighted mean of the losses, to be trained on.

        Args:
            losses: (batch,), a tensor of PyTorch or an array of NumPy. For other frameworks there is ``report``, or
                ``weights`` before the losses are computed.

        Returns:
            The mean, in the framework of the losses. Half precision is weighted in single precision.

        Raises:
            LossError: If there is not one loss for each sample, or they are of another type. The batch is still current
                then.
            ProtocolError: If there is no current batch.
        """
        batch = self._current("weighted_mean()")
        numbers = self._checked(losses, batch)
        mean = _weighted_mean(losses, batch.weights if self.options.weighted else None)
        self._settle(numbers)
        return mean

    def __len__(self) -> int:
        return self.options.updates

    def __iter__(self) -> Iterator[list[int]]:
        # All samples once, in order, except for the attended loader.
        samples, size = self.options.samples, self.batch_size
        return self._feed.indices(
            list(range(first, min(first + size, samples))) for first in range(0, samples, size)
        )

    @property
    def _state(self) -> SampleState:
        return self._source.state

    def _memory(self) -> Memory:
        """What is remembered of each sample, up to now."""
        with self._feed.lock:
            self._state.memory.apply(self._state.changes)
            return self._state.memory

    def _check(self, loader: Any) -> None:
        """Refuse loaders and ranks with which losses would go to other samples, or some samples to no rank."""
        given, count = self._given_shard, self._ranks.count
        if given is None and count > 1:
            raise ProtocolError(
                f"{count} ranks train together, and all of them would train on the same samples: give rank= and "
                "world_size=, or world_size=1 for ranks that have data of their own"
            )
        if given is not None and count > 1 and given.ranks not in (1, count):
            raise ProtocolError(
                f"world_size is {given.ranks}, and {count} ranks train together, so that no rank would see some of the "
                f"samples; give world_size={count}"
            )
        if isinstance(loader, AttendedLoader):
            raise ProtocolError("attend() was given what attend() returned; iterate over that itself")
        check_loader(self, loader)
        try:
            length = len(loader.dataset)
        except (AttributeError, TypeError, NotImplementedError):
            return
        if length != self.options.samples:
            raise ProtocolError(
                f"the loader's dataset has {length:,} samples, and samples is {self.options.samples:,}; make a "
                "SampleAttention(len(dataset), ...) for it, and another one when its length changes"
            )

    def _deliver(self, loader: Any) -> Iterator[Any]:
        self._check(loader)
        return self._epoch(loader)

    def _epoch(self, loader: Any) -> Iterator[Any]:
        self._source.end_if_whole()
        self._feed.close()
        if self.epoch == self.options.epochs and self.options.first_full_epoch is not None:
            if not self._has_warned_of_end:
                self._has_warned_of_end = True
                warn(
                    f"epoch {self.epoch} begins, and epochs={self.options.epochs} is the whole training: from here on "
                    "all data is used. Give epochs= the epochs that you train, or final_full_share=0 (one warning)"
                )
        self._ranks.require_choice()
        common = {**dataclasses.asdict(self.options), "mean_loss": self._state.mean_loss}
        self._ranks.begin(self.epoch, self.updates, 0, common)
        yield from self._feed.batches(loader)

    def _current(self, caller: str) -> SampleBatch:
        ticket, out = self._feed.ticket, self._state.flight.out
        if ticket is None or not out or out[0] is not ticket:
            raise ProtocolError(
                f"{caller} was used while there was no current batch, or after its losses had been reported; iterate "
                "over attention.attend(loader), and report once for each batch"
            )
        return ticket  # type: ignore[no-any-return]

    def _checked(self, losses: Any, batch: SampleBatch) -> list[float]:
        numbers = as_floats(losses)
        if len(numbers) != len(batch.indices):
            raise LossError(
                f"got {plural(len(numbers), 'loss', 'losses')} for a batch of {len(batch.indices)} samples; compute "
                'one loss for each sample, with reduction="none"'
            )
        return numbers

    def _settle(self, losses: list[float]) -> None:
        before = self._state.counts.nonfinite_losses
        self._source.settle(losses)
        if self._state.counts.nonfinite_losses and not before:
            # Too large to be averaged, if all of them are finite.
            unusable = next((loss for loss in losses if not math.isfinite(loss)), max(losses, key=abs))
            warn(
                f"a loss of {unusable} in epoch {self.epoch} is not finite, or too large to be averaged: it is kept "
                "out of the mean, and its sample keeps the loss that it had before (one warning an epoch; "
                "SampleSummary.nonfinite_losses counts them)"
            )

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume from here, as plain JSON types: about 13 bytes of text a sample.

        It may be taken at any time; a batch whose losses were not reported is trained on again after the resume. That
        holds after an interrupt (Ctrl-C) too, in ``attend``, ``report`` or ``weighted_mean`` itself: the state is the
        one before the batch or after it, and this object resumes as exactly. A signal handler should set a mark, and
        the loop save: while a loader is asked for its next batch, this is for the loader alone.

        The generator of a ``sampler`` of your own is yours to save, unless its order follows from ``set_epoch``. Each
        rank knows the losses of its own samples, and has a state of its own.
        """
        if self._feed.is_inside_loader:
            # A StatefulDataLoader asks for this with every batch that it hands out, ahead of the losses.
            return {"saved_by_loader": True}
        with self._feed.lock:
            return self._rule.pack(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        if self._feed.is_inside_loader:
            if not self._was_loaded:
                raise StateError(
                    "a StatefulDataLoader tried to restore this SampleAttention from a state of its own, which is "
                    "older than the losses. Save attention.state_dict() beside loader.state_dict(), and load both"
                )
            return
        state = self._rule.unpack(state_dict)
        self._ranks.forget()
        self._feed.close()
        self._source.state = state
        self._was_loaded = True


class _SampleSource:
    """What ``SampleAttention`` hands out; a ``flight.Source``.

    Args:
        rule: Leads from one state to the next.
        ranks: What this rank agrees on with the others.

    Attributes:
        state: All that is remembered.
        feed: Holds the lock under which it is replaced.
    """

    advice = "report NaN for each sample of a batch not to train on, and give updates=n for epochs of n batches"
    feed: Feed

    def __init__(self, rule: SampleRule, ranks: Ranks) -> None:
        self.state = SampleState(Memory(rule.options.samples))
        self._rule = rule
        self._ranks = ranks

    @property
    def out(self) -> tuple[SampleBatch, ...]:
        return self.state.flight.out

    @property
    def is_whole(self) -> bool:
        """Whether every update of the epoch was made."""
        return self.state.counts.updates == self._rule.options.updates

    def hand_out(self) -> list[int] | None:
        self.state, batch = self._rule.hand_out(self.state)
        return None if batch is None else list(batch.indices)

    def recall(self) -> None:
        self.state = self.state._replace(flight=self.state.flight.recalled())

    def start(self, loader: Any) -> Iterator[Any]:
        return iter(loader)

    def fetch(self, loader: Any) -> Any:
        return NOTHING

    def offer(self) -> SampleBatch:
        return self.state.flight.out[0]

    def collect(self, ticket: SampleBatch) -> None:
        out = self.state.flight.out
        if out and out[0] is ticket:
            raise ProtocolError(
                "the next batch was requested before weighted_mean() or report() had the losses of the last one"
            )

    def missing(self, *, was_refused: bool) -> str:
        made, due = self.state.counts.updates, self._rule.options.updates
        return "" if self.is_whole else f"{due - made} of {due} updates"

    def continues(self, *, has_length: bool) -> bool:
        return False

    def settle(self, losses: list[float]) -> None:
        """The losses of the current batch arrive. After an epoch's last batch, ranks agree on its mean."""
        with self.feed.lock:
            state = self._rule.settle(self.state, losses)
            counts = state.counts
            if counts.updates == self._rule.options.updates:
                # Every rank is here at once, whereas a loop may be left on one rank alone.
                mean = self._ranks.end(state.epoch, counts.updates, counts.mean_loss, counts.weight_sum)
                state = state._replace(agreed_mean=mean)
            self.state = state

    def closed(self) -> None:
        """End the epoch, if it has all its updates, as where a loop counts batches by itself."""
        if self.is_whole:
            self._ranks.forget()
            with self.feed.lock:
                self.state = self._rule.end(self.state)

    def end_if_whole(self) -> None:
        """End an epoch whose iterator was kept after its last batch."""
        if self.feed.is_open:
            self.closed()


def _weighted_mean(losses: Any, weights: list[float] | None) -> Any:
    """The mean of a tensor or an array, in its own framework; None weights all alike.

    Raises:
        LossError: If the losses are neither.
    """
    numpy = sys.modules.get("numpy")
    is_tensor = callable(getattr(losses, "new_tensor", None))
    if not is_tensor and not (numpy is not None and isinstance(losses, numpy.ndarray)):
        raise LossError(
            f"got losses of type {type(losses).__name__}; weighted_mean() takes a tensor of PyTorch or an array of "
            "NumPy. Compute the mean yourself, with the weights that report(losses) returns"
        )
    if is_tensor and not losses.is_floating_point():
        raise LossError(f"got losses of {losses.dtype}; they must be floating-point numbers")
    if weights is None:
        return losses.mean()
    if is_tensor:
        # A weight above 1 may take a loss out of the range of half precision.
        wide = losses.float() if losses.element_size() < 4 else losses
        return (wide * wide.new_tensor(weights)).mean().to(losses.dtype)
    return (losses * weights).mean()
