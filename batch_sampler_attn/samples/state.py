"""All that attention to samples remembers, as one value; the rule that leads to the next one; and how it is saved."""

from __future__ import annotations

import base64
import binascii
import json
import math
import random
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, short_repr
from batch_sampler_attn.flight import InFlight
from batch_sampler_attn.ranks import Shard, unpack_shard
from batch_sampler_attn.samples.options import DOSES, MOST_VISITS, SampleOptions
from batch_sampler_attn.samples.stream import SampleBatch, SampleStream, StreamState
from batch_sampler_attn.summary import SampleSummary

_LARGEST = 3.0e38  # What single precision holds.


class Changes(NamedTuple):
    """What memory has yet to apply. Applying it twice changes nothing.

    Attributes:
        losses: By sample.
        visits: By sample.
        pruned: Each with the number of its pass.
        pooled: Each with the number of its update, from the first epoch on.
    """

    losses: dict[int, float] = {}
    visits: dict[int, int] = {}
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
        """Remember what a batch has changed."""
        for sample, loss in changes.losses.items():
            self.losses[sample] = in_single_precision(loss)
        for sample, visits in changes.visits.items():
            self.visits[sample] = min(visits, MOST_VISITS)
        for row, doses in ((self.pruned, changes.pruned), (self.pooled, changes.pooled)):
            for number, dose in doses:
                row[number:] = array("i", [dose])

    def next_epoch(self) -> Memory:
        """With these very rows, but no visits."""
        memory = Memory(0)
        vars(memory).update(vars(self), visits=array("B", [0]) * len(self.losses))
        return memory


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
    """All that is remembered. It is never changed, but replaced, so that an interrupt finds it before a batch or after.

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


class SampleRule:
    """From one state to the next: batches out, losses in.

    Args:
        options: Checked already.
        sampler: Yields the order of a pass; None for a random order.
        shard: This rank's part of the data.
        doses: How many samples each pass prunes and each update pools, whichever they are; None to choose by the losses.
    """

    def __init__(
        self,
        options: SampleOptions,
        sampler: Iterable[Any] | None,
        shard: Shard,
        doses: dict[str, list[int]] | None,
    ) -> None:
        self.options = options
        self._shard = shard
        self._doses = doses
        self._stream = SampleStream(options, sampler, shard, doses and doses["pruned"])

    def is_full(self, state: SampleState) -> bool:
        """Whether the epoch is in the last share of training, which trains on all data."""
        first = self.options.first_full_epoch
        return first is not None and state.epoch >= first

    def threshold(self, state: SampleState) -> float | None:
        """Samples with a loss above it are pooled; None while none is."""
        options = self.options
        if options.k is None or state.mean_loss is None or self.is_full(state):
            return None
        threshold = options.floor + options.k * (state.mean_loss - options.floor)
        return threshold if math.isfinite(threshold) else None

    def summarize(self, state: SampleState) -> SampleSummary:
        """The epoch in progress, up to now."""
        counts = state.counts
        return SampleSummary(
            epoch=state.epoch,
            updates=counts.updates,
            extra_updates=counts.extra_updates,
            pruned=counts.pruned,
            passes=counts.passes,
            mean_loss=counts.mean_loss if state.agreed_mean is None else state.agreed_mean,
            threshold=self.threshold(state),
            nonfinite_losses=counts.nonfinite_losses,
            is_full=self.is_full(state),
        )

    def hand_out(self, state: SampleState) -> tuple[SampleState, SampleBatch | None]:
        """The next batch, in flight from here on; None once the epoch has all its updates."""
        if state.flight.resend:
            return state._replace(flight=state.flight.resent()), state.flight.resend[0]
        if state.counts.handed_out == self.options.updates:
            return state, None
        state.memory.apply(state.changes)
        batch, state = self._next_batch(state)
        seen, visits = state.memory.visits, dict[int, int]()
        for sample in batch.indices:
            visits[sample] = visits.get(sample, seen[sample]) + 1
        counts = state.counts._replace(handed_out=state.counts.handed_out + 1)
        changes = state.changes._replace(visits=visits)
        return state._replace(counts=counts, changes=changes, flight=state.flight.sent(batch)), batch

    def _next_batch(self, state: SampleState) -> tuple[SampleBatch, SampleState]:
        options, counts, stream, pool, owed = self.options, state.counts, state.stream, state.pool, state.owed
        is_full, size = self.is_full(state), options.batch_size
        if is_full and state.epoch == options.first_full_epoch and not counts.handed_out:
            # A new pass begins with the next sample.
            stream, pool, owed = StreamState(stream.passes), (), 0
        if len(pool) >= size:
            # Since they were pooled, the base order may have brought some of them as often as allowed.
            pool = tuple(sample for sample in pool if state.memory.visits[sample] < options.max_visits)
        if len(pool) >= size:
            batch, pool, pruned = SampleBatch([*pool[:size]], [1.0] * size, is_extra=True), pool[size:], []
        else:
            can_prune = options.prune_probability and not is_full and state.mean_loss is not None
            # Losses are kept in single precision, so the mean that they are compared with is rounded alike.
            limit = in_single_precision(state.mean_loss) if can_prune else None
            batch, stream, pruned = self._stream.draw(stream, state.memory.losses, limit, is_full=is_full)
        begun = range(state.stream.passes, state.stream.passes + len(pruned))
        counts = counts._replace(pruned=counts.pruned + sum(pruned), passes=counts.passes + len(pruned))
        changes = Changes(pruned=tuple(zip(begun, pruned, strict=True)))
        return batch, state._replace(counts=counts, changes=changes, stream=stream, pool=pool, owed=owed)

    def settle(self, state: SampleState, losses: Sequence[float]) -> SampleState:
        """The losses of the batch that has been in flight longest arrive, one a sample, in its order."""
        state.memory.apply(state.changes)
        options, visits, threshold = self.options, state.memory.visits, self.threshold(state)
        batch = state.flight.out[0]
        counts, usable = _add_up(state.counts, batch, losses)
        remembered: dict[int, float] = {}
        pool = dict.fromkeys(state.pool)
        is_remembered = not batch.is_extra or options.remember_loss == "last"
        wanted = 0
        for sample, loss in zip(batch.indices, usable, strict=True):
            if loss is None:
                continue
            if is_remembered:
                remembered[sample] = loss
            if threshold is not None and loss > threshold and visits[sample] < options.max_visits:
                if sample not in pool:
                    wanted += 1
                    if options.select == "loss":
                        pool[sample] = None
        number, owed, pooled = state.epoch * options.updates + state.counts.updates, state.owed, wanted
        if options.select != "loss":
            if options.select == DOSES:
                dosed = (self._doses or {"pooled": []})["pooled"]
                owed += dosed[number] if number < len(dosed) and not self.is_full(state) else 0
            drawn = self._draw_for_pool(state, batch, pool, owed)
            pool |= dict.fromkeys(drawn)
            pooled = len(drawn)
            # What this batch could not take is left for the next ones. By its own losses, they say nothing of it.
            owed += (wanted if options.select == "random" else 0) - pooled
        can_pool = options.k is not None or options.select == DOSES
        changes = Changes(remembered, pooled=((number, pooled),) if can_pool else ())
        return state._replace(changes=changes, counts=counts, flight=state.flight.landed(), pool=(*pool,), owed=owed)

    def _draw_for_pool(self, state: SampleState, batch: SampleBatch, pool: dict[int, None], owed: int) -> list[int]:
        visits = state.memory.visits
        able = [sample for sample in dict.fromkeys(batch.indices) if visits[sample] < self.options.max_visits]
        able = [sample for sample in able if sample not in pool]
        rng = random.Random(f"{self.options.seed}, pool {state.epoch}, {state.counts.updates}")
        return rng.sample(able, min(owed, len(able)))

    def end(self, state: SampleState) -> SampleState:
        """The epoch ends: its mean is what the next one compares with."""
        state.memory.apply(state.changes)
        summary = self.summarize(state)
        return SampleState(
            memory=state.memory.next_epoch(),
            epoch=state.epoch + 1,
            mean_loss=state.mean_loss if summary.mean_loss is None else summary.mean_loss,
            flight=state.flight,
            stream=state.stream,
            pool=state.pool,
            owed=state.owed,
            last_summary=summary,
        )

    # Saving and loading ----------------------------------------------------------------------------------

    def pack(self, state: SampleState) -> dict[str, Any]:
        """A state as JSON types."""
        memory, stream = state.memory, state.stream
        memory.apply(state.changes)
        left = stream.left
        return checkpoint.seal(
            {
                "options": self._options_to_save(),
                "epoch": state.epoch,
                "mean_loss": state.mean_loss,
                "counts": state.counts._asdict(),
                "agreed_mean": state.agreed_mean,
                **{name: _pack(row) for name, row in vars(memory).items()},
                "stream": {
                    "passes": stream.passes,
                    "order": _pack(stream.order[:left]),
                    "could_be_pruned": _pack(stream.could_be_pruned[:left]),
                    "scale": stream.scale,
                },
                "pool": [*state.pool],
                "owed": state.owed,
                "flight": [batch._asdict() for batch in state.flight.recalled().resend],
                "last_summary": None if state.last_summary is None else state.last_summary.as_dict(),
                "shard": [*self._shard],
            }
        )

    def unpack(self, packed: object) -> SampleState:
        """The state that ``pack`` packed.

        Raises:
            StateError: If it is of another version, of other options or of another rank, or is damaged.
        """
        keys = {*SampleState._fields, *vars(Memory(0)), "options", "shard"} - {"memory", "changes"}
        fields = checkpoint.unseal("the state of SampleAttention", packed, keys)
        shard = unpack_shard(fields["shard"], self._shard, is_in_epoch=True)
        if shard != self._shard:
            raise StateError(
                f"the state is of rank {shard.rank} and its samples, and this is rank {self._shard.rank}; save and "
                "load one for each rank"
            )
        checkpoint.check_options(self._options_to_save(), fields["options"])
        samples = self.options.samples
        memory = Memory(0)
        memory.losses = _unpack("losses", fields["losses"], "f", samples)
        memory.visits = _unpack("visits", fields["visits"], "B", samples)
        memory.pruned, memory.pooled = (_unpack(name, fields[name], "i") for name in ("pruned", "pooled"))
        stream, summary = fields["stream"], fields["last_summary"]
        order = _unpack("order", stream["order"], "i")
        could_be_pruned = _unpack("could_be_pruned", stream["could_be_pruned"], "B", len(order))
        return SampleState(
            memory,
            epoch=fields["epoch"],
            mean_loss=fields["mean_loss"],
            counts=Counts(**fields["counts"]),
            agreed_mean=fields["agreed_mean"],
            flight=InFlight((), tuple(SampleBatch(**batch) for batch in fields["flight"])),
            stream=StreamState(stream["passes"], order, could_be_pruned, len(order), stream["scale"]),
            pool=tuple(fields["pool"]),
            owed=fields["owed"],
            last_summary=None if summary is None else SampleSummary(**summary),
        )

    def _options_to_save(self) -> dict[str, Any]:
        digest = None if self._doses is None else zlib.crc32(json.dumps(self._doses, sort_keys=True).encode())
        return {**asdict(self.options), "doses_crc32": digest}


def in_single_precision(number: float) -> float:
    """The nearest number that memory can hold, as a double."""
    return array("f", [max(-_LARGEST, min(number, _LARGEST))])[0]


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
    """Numbers as text, lowest byte first, in base64: a list of a million numbers is slow to write and read as JSON."""
    return base64.b64encode(_lowest_first(row).tobytes()).decode()


def _unpack(name: str, packed: object, kind: str, length: int | None = None) -> array[Any]:
    row = array(kind)
    try:
        row.frombytes(base64.b64decode(packed, validate=True))  # type: ignore[arg-type]
        is_as_long = length in (None, len(row))
    except (TypeError, ValueError, binascii.Error):
        is_as_long = False
    if not is_as_long:
        raise StateError(f"{name} is {short_repr(packed)} in the state; it must be {length} numbers in base64")
    return _lowest_first(row)


def _lowest_first(row: array[Any]) -> array[Any]:
    if sys.byteorder == "big":
        row = row[:]
        row.byteswap()
    return row
