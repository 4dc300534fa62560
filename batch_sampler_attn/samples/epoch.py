"""The epoch in progress: what goes out, what is in flight, and what the losses that come back are made into."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.agreement import Agreement
from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.rank_messages import mean_over
from batch_sampler_attn.samples.batch import SampleBatch, unpack_batch
from batch_sampler_attn.samples.memory import SampleMemory
from batch_sampler_attn.samples.options import SampleOptions
from batch_sampler_attn.samples.pool import Pool
from batch_sampler_attn.samples.stream import SampleStream
from batch_sampler_attn.samples.summary import SampleSummary
from batch_sampler_attn.shards import Shard, unpack_shard


@dataclass(slots=True)
class Counts:
    """What adds up over an epoch.

    Attributes:
        handed_out: Batches.
        updates: Batches whose losses came back.
        extra_updates: Of these, those made of pooled samples.
        left_out: Samples.
        passes: Passes over the data that were begun.
        loss_sum: Of base batches, by weight.
        weight_sum: Of the losses in it.
        nonfinite_losses: NaN and infinite ones.
        owed: Samples to be pooled of the next batch, where they are chosen at random.
    """

    handed_out: int = 0
    updates: int = 0
    extra_updates: int = 0
    left_out: int = 0
    passes: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    nonfinite_losses: int = 0
    owed: int = 0


class SampleEpochs:
    """The rule of attention to samples: batches out, losses in.

    Args:
        options: Checked already.
        sampler: As ``SampleStream`` takes it.
        shard: This rank's part of the data.
        agreement: With the other ranks.

    Attributes:
        epoch: Epochs ended so far.
        mean_loss: Of the epoch before, or the last one that had any; None while there is none.
        counts: Of the epoch in progress.
        flight: Handed out, with no losses yet; first in, first out.
    """

    def __init__(
        self, options: SampleOptions, sampler: Iterable[Any] | None, shard: Shard, agreement: Agreement
    ) -> None:
        self.options = options
        self.agreement = agreement
        self._shard = shard
        self.epoch = 0
        self.mean_loss: float | None = None
        self.counts = Counts()
        self.flight: deque[SampleBatch] = deque()
        self.memory = SampleMemory(options.samples)
        self._stream = SampleStream(options, sampler, shard)
        self._pool = Pool()
        # In flight when a state was saved: these go out again before anything else.
        self._to_resend: deque[SampleBatch] = deque()

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
        if self._to_resend:
            batch = self._to_resend.popleft()
        elif self.counts.handed_out == self.options.updates:
            return None
        else:
            batch = self._next_batch()
            self.counts.handed_out += 1
        self.flight.append(batch)
        return batch

    def take_back(self) -> None:
        """Whoever took what is in flight will not train on it: it goes out again first."""
        self._to_resend.extendleft(reversed(self.flight))
        self.flight.clear()

    def _next_batch(self) -> SampleBatch:
        if self.is_plain and self.counts.handed_out == 0 and self.epoch == self.options.first_plain_epoch:
            self._stream.restart()
            self._pool.clear()
        size = self.options.batch_size
        if len(self._pool) >= size:
            return SampleBatch(self._pool.take(size), [1.0] * size, is_extra=True)
        batch = SampleBatch([], [], is_extra=False)
        passes = self._stream.passes
        for _ in range(size):
            drawn, left_out = self._stream.draw(self.memory, self.fitted_below)
            self.counts.left_out += left_out
            batch.indices.append(drawn.sample)
            batch.weights.append(drawn.weight)
        self.counts.passes += self._stream.passes - passes
        return batch

    # Losses in -------------------------------------------------------------------------------------------

    def settle(self, losses: Sequence[float]) -> SampleBatch:
        """The losses of the batch that has been in flight longest, one a sample, in its order."""
        batch, counts = self.flight.popleft(), self.counts
        threshold, wanted = self.threshold, 0
        for sample, weight, loss in zip(batch.indices, batch.weights, losses, strict=True):
            self.memory.count_visit(sample)
            if not math.isfinite(loss):
                counts.nonfinite_losses += 1
                continue
            if not batch.is_extra:
                counts.loss_sum += weight * loss
                counts.weight_sum += weight
            if not batch.is_extra or self.options.remember == "last":
                self.memory.keep(sample, loss)
            if threshold is not None and loss > threshold and self._may_come_again(sample):
                wanted += 1
                if self.options.choose == "loss":
                    self._pool.add(sample)
        if self.options.choose == "random":
            self._pool_any(batch.indices, counts.owed)
            counts.owed = wanted
        counts.updates += 1
        counts.extra_updates += batch.is_extra
        return batch

    def _may_come_again(self, sample: int) -> bool:
        return self.memory.visits[sample] < self.options.max_visits and sample not in self._pool

    def _pool_any(self, indices: list[int], wanted: int) -> None:
        """As many samples of the batch as losses have pooled of the one before, which tell nothing of these."""
        able = [sample for sample in dict.fromkeys(indices) if self._may_come_again(sample)]
        rng = random.Random(f"{self.options.seed}, pool {self.epoch}, {self.counts.updates}")
        for sample in rng.sample(able, min(wanted, len(able))):
            self._pool.add(sample)

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

    def end(self) -> SampleSummary:
        """End the epoch: its mean, over all ranks, is what the next one compares with.

        Raises:
            RanksDivergedError: If another rank is not at its end.
        """
        summary = self.summarize()
        mean_loss, weight = (0.0, 0.0) if summary.mean_loss is None else (summary.mean_loss, self.counts.weight_sum)
        messages = self.agreement.end(self.epoch, self.counts.updates, mean_loss, weight)
        if any(message.samples for message in messages):
            summary = replace(summary, mean_loss=mean_over(messages))
        if summary.mean_loss is not None:
            self.mean_loss = summary.mean_loss
        self.epoch += 1
        self.counts = Counts()
        self.memory.begin_epoch()
        return summary

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
        return {
            "epoch": self.epoch,
            "mean_loss": self.mean_loss,
            "counts": asdict(self.counts),
            **self.memory.pack(),
            "stream": self._stream.pack(),
            "pool": self._pool.pack(),
            "flight": [asdict(batch) for batch in (*self.flight, *self._to_resend)],
            **({"shard": [*self._shard]} if self._shard.ranks > 1 else {}),
        }

    def unpacked(self, fields: dict[str, Any]) -> SampleEpochs:
        """The epochs that ``pack`` packed, with the options and the sampler that are here.

        Raises:
            StateError: If something is damaged. Nothing has changed then.
        """
        options = self.options
        shard = unpack_shard(fields.get("shard", [0, 1]), self._shard, is_in_epoch=True)
        if shard != self._shard:
            raise StateError(
                f"the state is of rank {shard.rank} and its samples, and this is rank {self._shard.rank}; save and "
                "load one for each rank"
            )
        twin = SampleEpochs(options, None, self._shard, self.agreement)
        twin._stream = self._stream.unpacked(fields["stream"])
        twin.epoch = checkpoint.check_count("epoch", fields["epoch"])
        if fields["mean_loss"] is not None:
            twin.mean_loss = checkpoint.check_number("mean_loss", fields["mean_loss"], "the state")
        counts = checkpoint.check_keys("the epoch's counts", fields["counts"], set(asdict(Counts())))
        for name, value in counts.items():
            is_sum = name.endswith("_sum")
            checked = (
                checkpoint.check_number(name, value, "the state") if is_sum else checkpoint.check_count(name, value)
            )
            setattr(twin.counts, name, checked)
        twin.memory = SampleMemory.unpack(fields["losses"], fields["visits"], options.samples)
        twin._pool = Pool.unpack(fields["pool"], options.samples)
        flight = fields["flight"]
        if not isinstance(flight, list):
            raise StateError(f"flight is {shown(flight)} in the state; it must be a list")
        twin._to_resend = deque(unpack_batch(batch, options) for batch in flight)
        behind, handed_out = twin.counts.updates, twin.counts.handed_out
        if behind + len(flight) != handed_out or handed_out > options.updates:
            raise StateError(
                f"the state had handed out {handed_out} of {options.updates} batches, of which {behind} are done "
                f"with and {len(flight)} in flight; it was changed after it was saved"
            )
        return twin
