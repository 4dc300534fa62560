"""The epoch in progress: what goes out, what is in flight, and what the losses that come back are made into."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from batch_sampler_attn import notices
from batch_sampler_attn.agreement import Agreement
from batch_sampler_attn.rank_messages import mean_over
from batch_sampler_attn.samples.batch import SampleBatch
from batch_sampler_attn.samples.memory import NO_NEWS, News, SampleMemory
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.samples.place import Counts, Place, pack_place, unpack_place
from batch_sampler_attn.samples.stream import SampleStream
from batch_sampler_attn.samples.summary import SampleSummary
from batch_sampler_attn.shards import Shard


class SampleEpochs:
    """The rule of attention to samples: batches out, losses in.

    Each method works out another place, and goes there in one step.

    Args:
        options: Checked already.
        sampler: As ``SampleStream`` takes it.
        shard: This rank's part of the data.
        agreement: With the other ranks.

    Attributes:
        place: Where training is.
    """

    def __init__(
        self, options: SampleOptions, sampler: Iterable[Any] | None, shard: Shard, agreement: Agreement
    ) -> None:
        self.options = options
        self.agreement = agreement
        self.place = Place(SampleMemory.of(options.samples))
        self._shard = shard
        self._stream = SampleStream(options, sampler, shard)

    @property
    def epoch(self) -> int:
        """Epochs ended so far."""
        return self.place.epoch

    @property
    def mean_loss(self) -> float | None:
        """Of the epoch before, or the last one that had any; None while there is none."""
        return self.place.mean_loss

    @property
    def counts(self) -> Counts:
        """Of the epoch in progress."""
        return self.place.counts

    @property
    def flight(self) -> tuple[SampleBatch, ...]:
        """Handed out, with no losses yet; first in, first out."""
        return self.place.flight

    @property
    def memory(self) -> SampleMemory:
        """What is remembered of each sample, up to now."""
        place = self.place
        place.memory.tell(place.news)
        return place.memory

    # What is compared with what --------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """Whether the epoch is in the last share of training, in which all data is seen plainly."""
        first = self.options.first_plain_epoch
        return first is not None and self.epoch >= first

    @property
    def threshold(self) -> float | None:
        """Samples with a loss above are pooled; None while none is."""
        options = self.options
        if options.k is None or self.mean_loss is None or self.is_plain:
            return None
        threshold = options.floor + options.k * (self.mean_loss - options.floor)
        return threshold if math.isfinite(threshold) else None

    @property
    def fitted_below(self) -> float | None:
        """Samples with a loss below may be left out; None while none is."""
        return None if self.is_plain or not self.options.leave_out else self.mean_loss

    # Batches out -----------------------------------------------------------------------------------------

    def hand_out(self) -> SampleBatch | None:
        """The next batch; None once the epoch has all its updates."""
        place = self.place
        if place.to_resend:
            batch, after = place.to_resend[0], replace(place, to_resend=place.to_resend[1:])
        elif place.counts.handed_out == self.options.updates:
            return None
        else:
            batch, after = self._next_batch(place)
        self.place = replace(after, flight=(*after.flight, batch))
        return batch

    def take_back(self) -> None:
        """Whoever took what is in flight will not train on it: it goes out again first."""
        place = self.place
        self.place = replace(place, flight=(), to_resend=(*place.flight, *place.to_resend))

    def _next_batch(self, place: Place) -> tuple[SampleBatch, Place]:
        if self.is_plain and place.counts.handed_out == 0 and place.epoch == self.options.first_plain_epoch:
            place = replace(place, stream=place.stream.restarted(), pool=())
        size, counts = self.options.batch_size, place.counts
        counts = replace(counts, handed_out=counts.handed_out + 1)
        if len(place.pool) >= size:
            batch = SampleBatch([*place.pool[:size]], [1.0] * size, is_extra=True)
            return batch, replace(place, counts=counts, pool=place.pool[size:])
        batch, stream, left_out = self._stream.draw(place.stream, lambda: self.memory, self.fitted_below)
        counts = replace(
            counts,
            left_out=counts.left_out + left_out,
            passes=counts.passes + stream.passes - place.stream.passes,
        )
        return batch, replace(place, counts=counts, stream=stream)

    # Losses in -------------------------------------------------------------------------------------------

    def settle(self, losses: Sequence[float]) -> SampleBatch:
        """The losses of the batch that has been in flight longest, one a sample, in its order."""
        place, options, memory, threshold = self.place, self.options, self.memory, self.threshold
        batch = place.flight[0]
        counts, usable = _add_up(place.counts, batch, losses)
        news, pool = News({}, {}), dict.fromkeys(place.pool)
        is_remembered = not batch.is_extra or options.remember == "last"
        wanted = 0
        for sample, loss in zip(batch.indices, usable, strict=True):
            visits = news.visits[sample] = news.visits.get(sample, memory.visits[sample]) + 1
            if loss is None:
                continue
            if is_remembered:
                news.losses[sample] = loss
            if threshold is not None and loss > threshold and visits < options.max_visits and sample not in pool:
                wanted += 1
                if options.choose == "loss":
                    pool[sample] = None
        if options.choose == "random":
            pool |= dict.fromkeys(self._drawn_for_pool(news.visits, pool))
            counts = replace(counts, owed=wanted)
        self.place = replace(place, news=news, counts=counts, flight=place.flight[1:], pool=(*pool,))
        if counts.nonfinite_losses and not place.counts.nonfinite_losses:
            unusable = losses[usable.index(None)]
            notices.warn(
                f"a loss of {unusable} in epoch {place.epoch} is not finite, or too large to be averaged: it is kept "
                "out of the mean, and its sample is treated by the loss that it had before (said once an epoch; "
                "SampleSummary.nonfinite_losses counts them)"
            )
        return batch

    def _drawn_for_pool(self, visits: dict[int, int], pool: dict[int, None]) -> list[int]:
        """As many samples of the batch as losses have pooled of the one before, which tell nothing of these."""
        able = [sample for sample, made in visits.items() if made < self.options.max_visits and sample not in pool]
        rng = random.Random(f"{self.options.seed}, pool {self.epoch}, {self.counts.updates}")
        return rng.sample(able, min(self.counts.owed, len(able)))

    @property
    def is_over(self) -> bool:
        """Whether every update of the epoch was made."""
        return self.counts.updates == self.options.updates

    def summarize(self) -> SampleSummary:
        """The epoch in progress, up to now."""
        counts = self.counts
        mean_loss = counts.loss_sum / counts.weight_sum if counts.weight_sum else math.inf
        return SampleSummary(
            epoch=self.epoch,
            updates=counts.updates,
            extra_updates=counts.extra_updates,
            left_out=counts.left_out,
            passes=counts.passes,
            mean_loss=mean_loss if math.isfinite(mean_loss) else None,
            threshold=self.threshold,
            nonfinite_losses=counts.nonfinite_losses,
            is_plain=self.is_plain,
        )

    def end(self) -> None:
        """End the epoch: its mean, over all ranks, is what the next one compares with.

        Raises:
            RanksDivergedError: If another rank is not at its end.
        """
        place, summary = self.place, self.summarize()
        mean_loss, weight = (0.0, 0.0) if summary.mean_loss is None else (summary.mean_loss, place.counts.weight_sum)
        messages = self.agreement.end(place.epoch, place.counts.updates, mean_loss, weight)
        if any(message.samples for message in messages):
            summary = replace(summary, mean_loss=mean_over(messages))
        self.place = replace(
            place,
            memory=self.memory.next_epoch(),
            news=NO_NEWS,
            epoch=place.epoch + 1,
            mean_loss=place.mean_loss if summary.mean_loss is None else summary.mean_loss,
            counts=Counts(),
            last_summary=summary,
        )

    def agree_on_begin(self) -> None:
        """Hold options and place against those of the other ranks, as an epoch begins.

        Raises:
            ProtocolError: If there are ranks that nobody said are to choose apart.
            RanksDivergedError: If another rank is not where this one is.
        """
        self.agreement.check_is_sought()
        common = {**asdict(self.options), "mean_loss": self.mean_loss}
        self.agreement.begin(self.epoch, self.counts.updates, 0, common)

    # Saving and loading ----------------------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """As JSON types."""
        return pack_place(self.place, self.options, self._shard)

    def unpack(self, packed: object) -> Place:
        """The place that ``pack`` packed, for the options and the sampler that are here.

        Raises:
            StateError: If something is damaged. Nothing has changed then.
        """
        return unpack_place(packed, self.options, self._stream, self._shard)


def _add_up(counts: Counts, batch: SampleBatch, losses: Sequence[float]) -> tuple[Counts, list[float | None]]:
    """The counts with one batch more, and its losses, with None for those that are not finite."""
    loss_sum, weight_sum = counts.loss_sum, counts.weight_sum
    usable: list[float | None] = []
    for weight, loss in zip(batch.weights, losses, strict=True):
        total = loss_sum + weight * loss
        is_usable = math.isfinite(loss) and (batch.is_extra or math.isfinite(total))
        usable.append(loss if is_usable else None)
        if is_usable and not batch.is_extra:
            loss_sum, weight_sum = total, weight_sum + weight
    counts = replace(
        counts,
        updates=counts.updates + 1,
        extra_updates=counts.extra_updates + batch.is_extra,
        loss_sum=loss_sum,
        weight_sum=weight_sum,
        nonfinite_losses=counts.nonfinite_losses + usable.count(None),
    )
    return counts, usable
