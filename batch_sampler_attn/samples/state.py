"""All that attention to samples remembers, as one value; the rule that replaces it; and how it is saved."""

from __future__ import annotations

import base64
import json
import math
import random
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import ProtocolError, StateError
from batch_sampler_attn.flight import Feed, InFlight, Source
from batch_sampler_attn.ranks import Ranks, Shard, unpack_shard
from batch_sampler_attn.samples.options import DOSES, MOST_VISITS, SampleOptions
from batch_sampler_attn.samples.stream import SampleBatch, SampleStream, StreamState
from batch_sampler_attn.summary import SampleSummary

_LARGEST = 3.0e38  # What single precision holds.


class Changes(NamedTuple):
    """What memory has yet to apply; applying it twice changes nothing.

    Attributes:
        losses: Each after its sample.
        visits: Each after its sample.
        pruned: Each after the number of its pass.
        pooled: Each after the number of its update, from the first epoch on.
    """

    losses: tuple[tuple[int, float], ...] = ()
    visits: tuple[tuple[int, int], ...] = ()
    pruned: tuple[tuple[int, int], ...] = ()
    pooled: tuple[tuple[int, int], ...] = ()


class Memory:
    """What is too long to be replaced with each batch: five bytes a sample, and four an update that may pool.

    Attributes:
        losses: (samples,), the remembered losses, in single precision; NaN for a sample without one.
        visits: (samples,), visits in the epoch in progress that were handed out, up to 255.
        pruned: How many samples each pass has pruned.
        pooled: How many samples each update has pooled; empty where nothing can be.
    """

    def __init__(self, samples: int) -> None:
        self.losses = array("f", [math.nan]) * samples
        self.visits = array("B", [0]) * samples
        self.pruned = array("i")
        self.pooled = array("i")

    def apply(self, changes: Changes) -> None:
        """Remember what a step has changed."""
        for sample, loss in changes.losses:
            self.losses[sample] = max(-_LARGEST, min(loss, _LARGEST))
        for sample, visits in changes.visits:
            self.visits[sample] = visits
        for row, doses in ((self.pruned, changes.pruned), (self.pooled, changes.pooled)):
            for number, dose in doses:
                row[number:] = array("i", [dose])


class Counts(NamedTuple):
    """What adds up over an epoch.

    Attributes:
        handed_out: Batches.
        updates: Batches whose losses arrived.
        extra_updates: Of these, those made of pooled samples.
        pruned: Samples.
        passes: Passes over the data that began.
        loss_sum: Of base batches, by weight.
        weight_sum: Of the losses in it.
        nonfinite_losses: NaN and infinite ones, and those too large to be added up.
    """

    handed_out: int = 0
    updates: int = 0
    extra_updates: int = 0
    pruned: int = 0
    passes: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    nonfinite_losses: int = 0

    @property
    def mean_loss(self) -> float | None:
        """By weight; None if no loss was finite."""
        mean = self.loss_sum / self.weight_sum if self.weight_sum else math.inf
        return mean if math.isfinite(mean) else None


class SampleState(NamedTuple):
    """All that is remembered. It is replaced, never changed, so that an interrupt finds it before a batch or after it.

    Attributes:
        memory: Of samples and doses, up to the changes.
        changes: Those of the last step.
        epoch: Epochs ended so far.
        mean_loss: Of the epoch before, or of the last one that had any; None while there is none.
        counts: Of the epoch in progress.
        agreed_mean: Its mean over all ranks, once each of them has made its last update.
        flight: Batches between a loader and the loop.
        stream: Where the base order is.
        pool: Samples that are to come again, until there are enough for a batch; first in, first out, none twice.
        owed: How many samples are still to be pooled, where they are drawn at random.
        last_summary: Of the epoch that ended last; None before.
    """

    memory: Memory
    changes: Changes = Changes()
    epoch: int = 0
    mean_loss: float | None = None
    counts: Counts = Counts()
    agreed_mean: float | None = None
    flight: InFlight = InFlight()
    stream: StreamState = StreamState()
    pool: tuple[int, ...] = ()
    owed: int = 0
    last_summary: SampleSummary | None = None


class _SampleSource(Source):
    """The rule: batches out, losses in. Each step works out another state, and assigns it.

    Args:
        options: Checked already.
        sampler: Yields the order of a pass; None for a random order.
        shard: This rank's part of the data.
        doses: How many samples each pass prunes and each update pools, at random; None to select by the losses.
        ranks: What this rank agrees on with the others.

    Attributes:
        state: All that is remembered.
        feed: Holds the lock under which it is replaced.
    """

    leave_out = "report NaN for each of its samples"
    fewer = "use SampleAttention(..., updates=n)"
    feed: Feed

    def __init__(
        self,
        options: SampleOptions,
        sampler: Iterable[Any] | None,
        shard: Shard,
        doses: dict[str, list[int]] | None,
        ranks: Ranks,
    ) -> None:
        self.options = options
        self.state = SampleState(Memory(options.samples))
        self._shard = shard
        self._doses = doses
        self._ranks = ranks
        self._stream = SampleStream(options, sampler, shard, doses["pruned"] if doses else [])

    # What is compared with what --------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether the epoch is in the last share of training, which trains on all data."""
        first = self.options.first_full_epoch
        return first is not None and self.state.epoch >= first

    @property
    def threshold(self) -> float | None:
        """Samples with a loss above it are pooled; None while none is."""
        options, mean_loss = self.options, self.state.mean_loss
        if options.k is None or mean_loss is None or self.is_full:
            return None
        threshold = options.floor + options.k * (mean_loss - options.floor)
        return threshold if math.isfinite(threshold) else None

    def summarize(self) -> SampleSummary:
        counts, agreed_mean = self.state.counts, self.state.agreed_mean
        return SampleSummary(
            epoch=self.state.epoch,
            updates=counts.updates,
            extra_updates=counts.extra_updates,
            pruned=counts.pruned,
            passes=counts.passes,
            mean_loss=counts.mean_loss if agreed_mean is None else agreed_mean,
            threshold=self.threshold,
            nonfinite_losses=counts.nonfinite_losses,
            is_full=self.is_full,
        )

    # Batches out -----------------------------------------------------------------------------------------

    @property
    def out(self) -> tuple[SampleBatch, ...]:
        return self.state.flight.out

    def hand_out(self) -> list[int] | None:
        state = self.state
        if state.flight.resend:
            batch = state.flight.resend[0]
            self.state = state._replace(flight=state.flight.resent())
        elif state.counts.handed_out < self.options.updates:
            state.memory.apply(state.changes)
            batch, state = self._next_batch(state)
            seen, visits = state.memory.visits, dict[int, int]()
            for sample in batch.indices:
                made = visits.get(sample, seen[sample])
                visits[sample] = made + (made < MOST_VISITS)
            counts = state.counts._replace(handed_out=state.counts.handed_out + 1)
            changes = state.changes._replace(visits=tuple(visits.items()))
            self.state = state._replace(counts=counts, changes=changes, flight=state.flight.sent(batch))
        else:
            return None
        return list(batch.indices)

    def _next_batch(self, state: SampleState) -> tuple[SampleBatch, SampleState]:
        options, counts, stream, pool, owed = self.options, state.counts, state.stream, state.pool, state.owed
        is_full, size, pruned = self.is_full, options.batch_size, list[int]()
        if state.epoch == options.first_full_epoch and not counts.handed_out:
            # A new pass begins with the next sample.
            stream, pool, owed = StreamState(stream.passes), (), 0
        if len(pool) >= size:
            # Since they were pooled, the base order may have brought some of them as often as allowed.
            pool = tuple(sample for sample in pool if state.memory.visits[sample] < options.max_visits)
        if len(pool) >= size:
            batch, pool = SampleBatch([*pool[:size]], [1.0] * size, is_extra=True), pool[size:]
        else:
            fitted_below = None
            if options.prune_probability and not is_full and state.mean_loss is not None:
                # The losses that it is compared with are kept in single precision too.
                fitted_below = array("f", [max(-_LARGEST, min(state.mean_loss, _LARGEST))])[0]
            batch, stream, pruned = self._stream.draw(stream, state.memory.losses, fitted_below, is_full=is_full)
        begun = range(state.stream.passes, stream.passes)
        counts = counts._replace(pruned=counts.pruned + sum(pruned), passes=counts.passes + len(pruned))
        changes = Changes(pruned=tuple(zip(begun, pruned, strict=True)))
        return batch, state._replace(counts=counts, changes=changes, stream=stream, pool=pool, owed=owed)

    def recall(self) -> None:
        self.state = self.state._replace(flight=self.state.flight.recalled())

    def offer(self) -> SampleBatch:
        return self.out[0]

    def collect(self, ticket: SampleBatch) -> None:
        if self.out and self.out[0] is ticket:
            raise ProtocolError(
                "the next batch was requested before weighted_mean() or report() had the losses of the last one"
            )

    def missing(self, *, was_refused: bool) -> str:
        missing = 0 if was_refused else self.options.updates - self.state.counts.updates
        return f"{missing} of {self.options.updates} updates" if missing else ""

    # Losses in -------------------------------------------------------------------------------------------

    def settle(self, losses: Sequence[float]) -> None:
        """The losses of the current batch arrive, one a sample. After an epoch's last, ranks agree on its mean."""
        with self.feed.lock:
            state = self._settled(losses)
            counts = state.counts
            if counts.updates == self.options.updates:
                # Every rank is here at once, whereas a loop may be left on one rank alone.
                mean = self._ranks.end(state.epoch, counts.updates, counts.mean_loss, counts.weight_sum)
                state = state._replace(agreed_mean=mean)
            self.state = state

    def _settled(self, losses: Sequence[float]) -> SampleState:
        state, options, threshold = self.state, self.options, self.threshold
        state.memory.apply(state.changes)
        batch, visits, pool = state.flight.out[0], state.memory.visits, dict.fromkeys(state.pool)
        counts, usable = _add_up(state.counts, batch, losses)
        able = {sample: None for sample in batch.indices if visits[sample] < options.max_visits and sample not in pool}
        finite = [(sample, loss) for sample, loss in zip(batch.indices, usable, strict=True) if loss is not None]
        is_remembered = not batch.is_extra or options.remember_loss == "last"
        chosen = [sample for sample, loss in finite if threshold is not None and loss > threshold and sample in able]
        chosen, owed = [*dict.fromkeys(chosen)], state.owed
        number = state.epoch * options.updates + state.counts.updates
        if options.select != "loss":
            if self._doses and not self.is_full:
                owed += sum(self._doses["pooled"][number : number + 1])
            rng = random.Random(f"{options.seed}, pool {state.epoch}, {state.counts.updates}")
            # As many as the losses of earlier batches have selected, which say nothing of the samples of this one.
            drawn = rng.sample([*able], min(owed, len(able)))
            # The next batches take what this one cannot.
            owed += (0 if self._doses else len(chosen)) - len(drawn)
            chosen = drawn
        can_pool = options.k is not None or options.select == DOSES
        changes = Changes(tuple(finite) if is_remembered else (), pooled=((number, len(chosen)),) if can_pool else ())
        pool |= dict.fromkeys(chosen)
        return state._replace(changes=changes, counts=counts, flight=state.flight.landed(), pool=(*pool,), owed=owed)

    def closed(self) -> None:
        """End the epoch if it has all its updates, as where a loop counts batches by itself."""
        state = self.state
        if state.counts.updates < self.options.updates:
            return
        with self.feed.lock:
            state.memory.apply(state.changes)
            memory, summary = Memory(0), self.summarize()
            vars(memory).update(vars(state.memory), visits=array("B", [0]) * self.options.samples)
            self._ranks.forget()
            self.state = state._replace(
                memory=memory,
                changes=Changes(),
                epoch=state.epoch + 1,
                mean_loss=state.mean_loss if summary.mean_loss is None else summary.mean_loss,
                counts=Counts(),
                agreed_mean=None,
                last_summary=summary,
            )

    # Saving and loading ----------------------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """The state as JSON types."""
        with self.feed.lock:
            state = self.state
            state.memory.apply(state.changes)
            rows = {name: _pack(row) for name, row in vars(state.memory).items()}
        stream, summary = state.stream, state.last_summary
        packed = {name: value for name, value in state._asdict().items() if name not in ("memory", "changes")} | {
            "options": self._options_to_save(),
            "shard": [*self._shard],
            "counts": state.counts._asdict(),
            "stream": {
                "passes": stream.passes,
                "order": _pack(stream.order[: stream.left]),
                "could_be_pruned": _pack(stream.could_be_pruned[: stream.left]),
                "scale": stream.scale,
            },
            "pool": [*state.pool],
            "flight": [batch._asdict() for batch in state.flight.recalled().resend],
            "last_summary": None if summary is None else summary.as_dict(),
        }
        return checkpoint.seal({**packed, **rows})

    def unpack(self, packed: object) -> SampleState:
        """The state that ``pack`` packed. Raises StateError if it is damaged, or of other options or another rank."""
        keys = {*SampleState._fields, *vars(Memory(0)), "options", "shard"} - {"memory", "changes"}
        fields = checkpoint.unseal("the state of SampleAttention", packed, keys)
        shard = unpack_shard(fields.pop("shard"), self._shard, is_in_epoch=True)
        if shard != self._shard:
            raise StateError(
                f"the state is of rank {shard.rank} and its samples, and this is rank {self._shard.rank}; save and "
                "load one for each rank"
            )
        checkpoint.check_options(self._options_to_save(), fields.pop("options"))
        memory = Memory(0)
        for name, row in vars(memory).items():
            setattr(memory, name, _unpack(fields.pop(name), row.typecode))
        stream, summary = fields["stream"], fields["last_summary"]
        order, could_be_pruned = _unpack(stream["order"], "i"), _unpack(stream["could_be_pruned"], "B")
        unpacked = {
            "counts": Counts(**fields["counts"]),
            "flight": InFlight((), tuple(SampleBatch(**batch) for batch in fields["flight"])),
            "stream": StreamState(stream["passes"], order, could_be_pruned, len(order), stream["scale"]),
            "pool": tuple(fields["pool"]),
            "last_summary": None if summary is None else SampleSummary(**summary),
        }
        return SampleState(memory, **{name: value for name, value in fields.items() if name != "version"} | unpacked)

    def _options_to_save(self) -> dict[str, Any]:
        digest = zlib.crc32(json.dumps(self._doses, sort_keys=True).encode()) if self._doses else None
        return {**asdict(self.options), "doses_crc32": digest}


def _add_up(counts: Counts, batch: SampleBatch, losses: Sequence[float]) -> tuple[Counts, list[float | None]]:
    """The counts with one more batch, and its losses, with None for those that are not finite."""
    loss_sum, weight_sum = counts.loss_sum, counts.weight_sum
    usable: list[float | None] = []
    for weight, loss in zip(batch.weights, losses, strict=True):
        total = loss_sum + weight * loss
        is_usable = math.isfinite(loss) and (batch.is_extra or math.isfinite(total))
        usable.append(loss if is_usable else None)
        if is_usable and not batch.is_extra:
            loss_sum, weight_sum = total, weight_sum + weight
    counts = counts._replace(
        updates=counts.updates + 1,
        extra_updates=counts.extra_updates + batch.is_extra,
        loss_sum=loss_sum,
        weight_sum=weight_sum,
        nonfinite_losses=counts.nonfinite_losses + usable.count(None),
    )
    return counts, usable


def _pack(row: array[Any]) -> str:
    """Numbers in base64: a list of a million numbers is slow to write and read as JSON."""
    return base64.b64encode(row.tobytes()).decode()


def _unpack(packed: str, kind: str) -> array[Any]:
    row = array(kind)
    row.frombytes(base64.b64decode(packed))
    return row
