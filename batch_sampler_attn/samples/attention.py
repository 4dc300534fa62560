"""Attention to samples: the user's side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from batch_sampler_attn.agreement import Agreement, ReduceOption
from batch_sampler_attn.errors import LossError, ProtocolError, StateError
from batch_sampler_attn.losses import as_floats
from batch_sampler_attn.samples.batch import SampleBatch
from batch_sampler_attn.samples.delivery import SampleDelivery
from batch_sampler_attn.samples.epoch import SampleEpochs
from batch_sampler_attn.samples.loaders import check_loader, check_ranks
from batch_sampler_attn.samples.options import Choose, Remember, SampleOptions
from batch_sampler_attn.samples.samplers import check_sampler, samples_in_a_pass
from batch_sampler_attn.samples.summary import SampleSummary
from batch_sampler_attn.samples.weighing import weighted_mean
from batch_sampler_attn.shards import Shard, shard_of


class SampleAttention:
    """Spends updates on badly fitted samples, and none on top: an epoch takes exactly ``updates`` of them.

    Two halves, each of which can be used without the other. Samples that are well fitted, with a loss below the mean
    of the epoch before, are *left out* of a pass over the data with probability ``leave_out``. Samples that are badly
    fitted, with a loss above ``k`` times that mean, are *pooled*, and come again in batches of such samples. What the
    pool adds and what leaving out saves only change how fast training goes through the data: passes follow each other,
    and an epoch ends after ``updates`` batches wherever they are.

    It is a batch sampler for a ``torch.utils.data.DataLoader``, and needs no framework itself. Where losses come back
    later than batches go out, as with workers, a sample's loss takes effect from then on; that is the same in every
    run with as many workers.

    (After the paper's future work, items 1 and 2: other criteria, and other ways to treat badly fitted data; leaving
    out follows InfoBatch, Qin et al., 2024, at a fixed number of updates.)

    Args:
        samples: Length of the data set.
        batch_size: Samples in a batch; every batch has as many.
        k: Samples with a loss above ``floor + k * (mean - floor)`` are pooled; None pools none.
        max_visits: The most visits to one sample in an epoch that pooling may bring it to.
        leave_out: Probability that a well-fitted sample is left out of a pass; 0 leaves none out.
        weighted: Weigh the losses of well-fitted samples that stay, so that the expected gradient is that of all data.
        updates: Batches in an epoch; None takes as many as plain training, with this sampler and without ``drop_last``.
        epochs: Of the whole training, which says when its last share begins; None for no such share.
        plain_share: Of training, at its end, that sees all data plainly: the nearest number of epochs, one at least.
        floor: The loss of a perfect fit, where it is not 0, as with label smoothing.
        remember: Which loss of a sample is: its "last", or that of its last visit in a "base" batch. The last is the
            most recent; a visit from the pool comes so soon after another that it can be lower than it will stay.
        choose: "loss"; or "random", the control: as many samples are left out and pooled as the losses of this very run
            would choose, whichever they are.
        sampler: Yields the order of each pass, told its number by ``set_epoch`` if it has that; None for a random
            order that follows from ``seed``.
        seed: Of orders, and of what is left out.
        rank: With ``world_size``, for ranks that train together: this one has every ``world_size``-th sample, and
            chooses among these. An epoch takes as many updates on each rank.
        world_size: How many ranks there are.
        reduce: ``MeanOverRanks()`` from ``batch_sampler_attn.distributed``: losses are compared with the mean over all
            ranks' samples. None compares with this rank's; "refuse" is for one process, and refuses others.

    Raises:
        OptionError: If an argument is not allowed.

    Example:
        >>> attention = SampleAttention(6, 2, leave_out=0.5)
        >>> difficulty = [0.1, 0.1, 0.1, 0.1, 3.0, 3.0]
        >>> for epoch in range(2):
        ...     for indices in attention.attend():
        ...         weights = attention.report([difficulty[index] for index in indices])
        >>> attention.last_summary.updates, attention.last_summary.left_out > 0
        (3, True)
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        k: float | None = None,
        max_visits: int = 2,
        leave_out: float = 0.5,
        weighted: bool = True,
        updates: int | None = None,
        epochs: int | None = None,
        plain_share: float = 0.15,
        floor: float = 0.0,
        remember: Remember = "last",
        choose: Choose = "loss",
        sampler: Iterable[Any] | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        reduce: ReduceOption = "refuse",
    ) -> None:
        self._told_shard = shard_of(sampler, rank, world_size)
        shard = self._told_shard or Shard()
        options = SampleOptions(
            samples=samples,
            batch_size=batch_size,
            k=k,
            max_visits=max_visits,
            leave_out=leave_out,
            weighted=weighted,
            updates=1 if updates is None else updates,
            epochs=epochs,
            plain_share=plain_share,
            floor=floor,
            remember=remember,
            choose=choose,
            seed=seed,
        )
        options.check(ranks=shard.ranks)
        check_sampler(sampler)
        if updates is None:
            options.updates = -(-samples_in_a_pass(sampler, options.samples) // (options.batch_size * shard.ranks))
        self._epochs = SampleEpochs(options, sampler, shard, Agreement(reduce))
        self._delivery = SampleDelivery(self._epochs)
        self._was_loaded = False

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(self.options).items())
        return f"<{type(self).__name__}({options}), epoch {self.epoch}, update {self.updates}>"

    # What is going on ------------------------------------------------------------------------------------

    @property
    def options(self) -> SampleOptions:
        """The options that this was made with."""
        return self._epochs.options

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""
        return self.options.batch_size

    @property
    def epoch(self) -> int:
        """Epochs ended so far, which is the number, from 0, of the one in progress."""
        return self._epochs.epoch

    @property
    def updates(self) -> int:
        """Updates of the epoch in progress that were made."""
        return self._epochs.counts.updates

    @property
    def threshold(self) -> float | None:
        """Loss above which a sample is pooled; None while none is."""
        return self._epochs.threshold

    @property
    def indices(self) -> list[int]:
        """The samples of the batch that is out.

        Raises:
            ProtocolError: If none is.
        """
        return list(self._batch_out("indices").indices)

    @property
    def weights(self) -> list[float]:
        """The weights of the losses of the batch that is out, one a sample; their mean over a pass is 1.

        Raises:
            ProtocolError: If none is.
        """
        return list(self._batch_out("weights").weights)

    @property
    def summary(self) -> SampleSummary:
        """The epoch in progress, up to now."""
        return self._epochs.summarize()

    @property
    def last_summary(self) -> SampleSummary:
        """The epoch that ended last.

        Raises:
            ProtocolError: If none has ended yet.
        """
        summary = self._epochs.place.last_summary
        if summary is None:
            raise ProtocolError("no epoch has ended yet; .summary tells of the one in progress")
        return summary

    def loss_of(self, sample: int) -> float:
        """The loss that is remembered of a sample, by its index in the data set; NaN if it was never seen."""
        if not 0 <= sample < self.options.samples:
            raise IndexError(f"sample {sample} is none of the {self.options.samples}")
        return self._epochs.memory.losses[sample]

    # Training --------------------------------------------------------------------------------------------

    def attend(self, loader: Iterable[Any] | None = None) -> Iterator[Any]:
        """One epoch, or what is left of one after ``load_state_dict``: exactly ``len(self)`` batches.

        Each batch must be followed by one ``weigh`` or ``report``. A loop that is left early does not end its epoch:
        the next ``attend`` goes on with it, at the batch that was out.

        Args:
            loader: A DataLoader built with ``batch_sampler=`` this; None yields lists of indices, for data in memory.

        Raises:
            ProtocolError: If the loader was not built on this, hands batches out in another order, or has data of
                another length. While iterating: if a batch had no losses reported, or the loader keeps batches back.
        """
        check_ranks(self._told_shard, self._epochs.agreement.ranks)
        if loader is not None:
            check_loader(self, self.options.samples, loader)
        return self._delivery.deliver(loader)

    def report(self, losses: Any) -> list[float]:
        """Tell the losses of the batch that is out, one a sample, as they were before the update.

        Args:
            losses: (batch,), of any framework, or a list; computed with ``reduction="none"``.

        Returns:
            The weight of each.

        Raises:
            LossError: If there is not one loss for each sample. The batch is still out then.
            ProtocolError: If no batch is out.
        """
        out = self._batch_out("report()")
        numbers = as_floats(losses)
        if len(numbers) != len(out.indices):
            raise LossError(
                f"got {len(numbers)} losses for a batch of {len(out.indices)} samples; compute one loss for each sample"
            )
        self._epochs.settle(numbers)
        return list(out.weights)

    def weigh(self, losses: Any) -> Any:
        """``report``, and the weighted mean of the losses, to be trained on.

        Args:
            losses: (batch,), a tensor of PyTorch or an array of NumPy. For other frameworks there is ``report``, or
                ``weights`` before the losses are computed.

        Raises:
            LossError: If there is not one loss for each sample, or they are a list. The batch is still out then.
            ProtocolError: If no batch is out.
        """
        mean = weighted_mean(losses, self._batch_out("weigh()").weights if self.options.weighted else None)
        self.report(losses)
        return mean

    def __len__(self) -> int:
        return self.options.updates

    def __iter__(self) -> Iterator[list[int]]:
        return self._delivery.batches()

    def _batch_out(self, word: str) -> SampleBatch:
        if self._delivery.out is None:
            raise ProtocolError(
                f"{word} was asked for while no batch was out, after its losses had been reported, or after a loader "
                "with persistent workers was gone through elsewhere; iterate over attention.attend(loader), report once"
            )
        return self._delivery.out

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as plain JSON types: about 13 bytes of text a sample.

        It may be taken at any time; a batch whose losses were not reported is trained on again after the resume. That
        holds after an interrupt (Ctrl-C) too, in ``attend``, ``report`` or ``weigh`` itself: the state is the one
        before the batch or behind it, never in between, and this object goes on as exactly. A signal handler should set
        a mark, and the loop save: while a loader is asked for its next batch, this is for the loader alone.

        The generator of a ``sampler`` of your own is yours to save, unless its order follows from ``set_epoch``. Each
        rank knows the losses of its own samples, and has a state of its own.
        """
        if self._delivery.is_inside_loader:
            # A StatefulDataLoader asks for this with every batch that it hands out, ahead of the losses.
            return {"saved_by_loader": True}
        return self._epochs.pack()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises:
            StateError: If it is of another version or of other options, or is damaged. Nothing is assigned then.
        """
        if self._delivery.is_inside_loader:
            if not self._was_loaded:
                raise StateError(
                    "a StatefulDataLoader tried to restore this SampleAttention from a state of its own, which is "
                    "older than the losses. Save attention.state_dict() beside loader.state_dict(), and load both"
                )
            return
        place = self._epochs.unpack(state_dict)
        self._epochs.agreement.forget()
        self._delivery.close()
        self._epochs.place = place
        self._was_loaded = True
