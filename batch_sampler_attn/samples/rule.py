"""The state of attention to samples as one value, the rule that replaces it, and how it is saved."""

from __future__ import annotations

import base64
import functools
import json
import math
import random
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import ProtocolError, warn
from batch_sampler_attn.flight import Feed, InFlight, Source, VisitIndices, iterate_resumed
from batch_sampler_attn.ranks import Ranks, Shard
from batch_sampler_attn.samples.options import DOSES, MOST_VISITS, SampleOptions, order_of
from batch_sampler_attn.samples.order import STRETCH, count_below, gathered, mapped, scatter, stretch
from batch_sampler_attn.summary import SampleSummary

_LARGEST = 3.38e38  # that bfloat16 holds
_NO_LOSS, _ZERO = 0xFFFF, 0x8000  # codes


class SampleBatch(NamedTuple):
    """One batch in flight."""

    indices: list[int]
    weights: list[float]  # of the losses, one per sample
    is_extra: bool  # made of pooled samples


def codes_of(losses: list[float]) -> list[int]:
    """Finite losses rounded to bfloat16, as 16-bit codes that sort like the losses.

    They are rounded up or down pseudorandomly: rounded to nearest, a mean would not follow many small steps.
    """
    if max(map(abs, losses), default=0.0) > _LARGEST:
        losses = [max(-_LARGEST, min(loss, _LARGEST)) for loss in losses]

    def code_of(bits: Any) -> Any:
        bits = bits + (bits * 0x9E3779B1 >> 16 & 0xFFFF) >> 16
        return bits ^ (0x8000 | (bits >> 15) * 0x7FFF)

    singles = array("f", [loss + 0.0 for loss in losses])  # + 0.0: there is one zero
    return mapped(code_of, array("I", singles.tobytes()))


@functools.cache
def loss_of_code() -> array[float]:
    """The loss of each code; NaN for the last, which means no loss."""
    bits = mapped(lambda code: code << 16 ^ 0xFFFF0000 - (code >> 15) * 0x7FFF0000, array("I", range(2**16)))
    return array("f", array("I", bits).tobytes())


class Changes(NamedTuple):
    """Changes that memory has yet to apply; applying them twice does no harm."""

    put: Sequence[tuple[str, list[int], list[int]]] = ()  # a row of memory, indices into it, and their new numbers
    pruned: Sequence[tuple[int, int]] = ()  # number of a pass, and samples that it has pruned
    pooled: Sequence[tuple[int, int]] = ()  # number of an update in all of training, and samples that it has pooled


class Memory:
    """Arrays too long to be replaced with each batch: five bytes per sample, six if samples can be pooled."""

    def __init__(self, samples: int, *, can_pool: bool = False) -> None:
        self.losses = array("H", [_NO_LOSS]) * samples  # codes
        self.means = array("H", [_ZERO]) * samples  # over visits, as codes
        self.visits = array("B", [0]) * samples  # with a finite loss, in all of training; counted up to 255
        self.epoch_visits = array("B", [0]) * (samples if can_pool else 0)  # handed out in the epoch in progress
        self.pruned = array("i")  # samples pruned by each pass so far
        self.pooled = array("i")  # samples pooled by each update so far; empty if none can be pooled

    def after(self, losses: list[tuple[int, float]], *, is_remembered: bool) -> list[tuple[str, list[int], list[int]]]:
        """The changes by these losses. A sample that occurs twice in a batch has made one visit."""
        samples = [sample for sample, _ in losses]
        visits = [made + (made < MOST_VISITS) for made in gathered(self.visits, samples)]
        means = map(loss_of_code().__getitem__, gathered(self.means, samples))
        changed = [mean + (loss - mean) / made for mean, (_, loss), made in zip(means, losses, visits, strict=True)]
        codes = codes_of([*changed, *(loss for _, loss in losses)])
        put = [("visits", samples, visits), ("means", samples, codes[: len(samples)])]
        return [*put, ("losses", samples, codes[len(samples) :])] if is_remembered else put

    def apply(self, changes: Changes) -> None:
        """Apply the changes of a step."""
        for name, indices, numbers in changes.put:
            scatter(getattr(self, name), indices, numbers)
        for row, doses in ((self.pruned, changes.pruned), (self.pooled, changes.pooled)):
            for number, dose in doses:
                row[number:] = array("i", [dose])


class Counts(NamedTuple):
    """Totals of an epoch."""

    handed_out: int = 0  # batches
    updates: int = 0  # batches whose losses arrived
    extra_updates: int = 0  # of these, batches made of pooled samples
    pruned: int = 0  # samples
    passes: int = 0  # that began
    loss_sum: float = 0.0  # of base batches, by weight
    weight_sum: float = 0.0
    nonfinite_losses: int = 0  # including those that would overflow the sum

    @property
    def mean_loss(self) -> float | None:
        """The weighted mean loss; None if no loss was finite."""
        mean = self.loss_sum / self.weight_sum if self.weight_sum else math.inf
        return mean if math.isfinite(mean) else None


class StreamState(NamedTuple):
    """Progress in the base order, which is one pass over the data after another."""

    passes: int = 0  # that began
    size: int = 0  # samples of the current pass
    drawn: int = 0  # samples of the pass that were drawn
    pruned: int = 0  # samples drawn that were pruned
    limit: int = 0  # samples with a code below it are well fitted
    weights: tuple[float, float] = (1.0, 1.0)  # of samples that are not well fitted, and of those that are
    dose: int = 0  # samples that the pass prunes, if doses are given
    order: array[int] = array("i")  # from the user's sampler; empty if it is computed


class SampleState(NamedTuple):
    """All that is remembered. One assignment replaces it, so an interrupt finds it before or after a batch."""

    memory: Memory
    changes: Changes = Changes()  # of the last step
    epoch: int = 0
    mean_loss: float | None = None  # of the last epoch that had one
    counts: Counts = Counts()
    agreed_mean: float | None = None  # of this epoch over all ranks, once each of them has made its last update
    flight: InFlight = InFlight()
    stream: StreamState = StreamState()
    pool: tuple[int, ...] = ()  # samples waiting until they fill a batch; first in, first out, without duplicates
    owed: int = 0  # samples still to be pooled, if they are drawn at random
    last_summary: SampleSummary | None = None


class _SampleSource(Source):
    """The rule: it hands out batches and takes losses. Each step computes a new state and assigns it under a lock."""

    advice = "To skip a batch, report NaN for each of its samples; to train on fewer, use updates=n"
    feed: Feed
    starts_resumed = False  # whether the next iterator is made in mid-epoch, where the saved run had one

    def __init__(
        self, options: SampleOptions, sampler: Any, shard: Shard, doses: dict[str, Any] | None, ranks: Ranks
    ) -> None:
        self.options = options
        can_pool = options.k is not None or options.select == DOSES
        self.state = SampleState(Memory(options.samples, can_pool=can_pool))
        self._sampler = sampler
        self._shard = shard
        self._doses = doses
        self._ranks = ranks
        self._own = range(shard.rank, options.samples, shard.ranks)
        loss_of_code()  # computed now, since it takes longer, with the import of NumPy, than a batch should

    def start(self, loader: Any) -> Iterator[Any]:
        starts_resumed, self.starts_resumed = self.starts_resumed, False
        data = sys.modules.get("torch.utils.data")
        # Persistent workers keep their seed, and other loaders have states of their own.
        is_plain = data is not None and getattr(type(loader), "__iter__", None) is data.DataLoader.__iter__
        if not (starts_resumed and is_plain) or loader.persistent_workers:
            return iter(loader)
        return iterate_resumed(loader)

    @property
    def is_full(self) -> bool:
        """Whether the epoch is in the last share of training, which trains on all data."""
        first = self.options.first_full_epoch
        return first is not None and self.state.epoch >= first

    @property
    def threshold(self) -> float | None:
        """Loss above which samples are pooled; None while no sample can be pooled."""
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

    @property
    def sent(self) -> tuple[SampleBatch, ...]:
        return self.state.flight.sent

    def hand_out(self) -> list[int] | None:
        state = self.state
        visit = state.epoch, state.counts.handed_out - len(state.flight.resend)
        if state.flight.resend:
            batch = state.flight.resend[0]
        elif state.counts.handed_out < self.options.updates:
            state.memory.apply(state.changes)
            batch, state = self._next_batch(state)
        else:
            return None
        self.state = state._replace(flight=state.flight.sending(batch))
        return VisitIndices(batch.indices, visit)

    def _next_batch(self, state: SampleState) -> tuple[SampleBatch, SampleState]:
        options, counts, stream, pool, owed = self.options, state.counts, state.stream, state.pool, state.owed
        size, seen = options.batch_size, state.memory.epoch_visits
        indices, weights, pruned, visits = list[int](), list[float](), dict[int, int](), dict[int, int]()
        if state.epoch == options.first_full_epoch and not counts.handed_out:
            # A new pass begins with the next sample.
            stream, pool, owed = StreamState(stream.passes), (), 0
        if len(pool) >= size:
            # Since they were pooled, the base order may have brought some of them to their most visits.
            pool = tuple(sample for sample in pool if seen[sample] < options.max_visits)
        is_extra = len(pool) >= size
        if is_extra:
            indices, weights, pool = [*pool[:size]], [1.0] * size, pool[size:]
        while len(indices) < size:
            if stream.drawn == stream.size:
                stream = self._begin_pass(stream.passes)
            before = stream.pruned
            stream = self._draw(stream, indices, weights)
            pruned[stream.passes - 1] = stream.pruned
            counts = counts._replace(pruned=counts.pruned + stream.pruned - before)
        for sample in indices if seen else ():
            visits[sample] = min(visits.get(sample, seen[sample]) + 1, MOST_VISITS)
        put = [("epoch_visits", [*visits], [*visits.values()])] if visits else []
        changes = Changes(put, [*pruned.items()])
        begun = stream.passes - state.stream.passes
        counts = counts._replace(handed_out=counts.handed_out + 1, passes=counts.passes + begun)
        state = state._replace(counts=counts, changes=changes, stream=stream, pool=pool, owed=owed)
        return SampleBatch(indices, weights, is_extra), state

    def _begin_pass(self, number: int) -> StreamState:
        """The state at the start of a pass. What the pass prunes is decided when samples are drawn."""
        options, losses, mean_loss = self.options, self.state.memory.losses, self.state.mean_loss
        order, doses = array("i"), self._doses["pruned"] if self._doses else None
        if self._sampler is not None:
            order = array("i", order_of(self._sampler, number, options.samples, self._shard))
        stream = StreamState(number + 1, size=len(order or self._own), order=order)
        if doses is not None and number == len(doses) + len(doses) // 10 + 1:
            warn(f"pass {number} begins, and the doses have {len(doses)} passes: nothing is pruned from here on")
        if self.is_full:
            return stream
        if doses is not None:
            return stream._replace(dose=sum(doses[number : number + 1]))
        if not options.prune_probability or mean_loss is None:
            return stream
        # The code of an equal loss may be one less.
        stream = stream._replace(limit=codes_of([mean_loss])[0] - 1)
        if options.weighted and options.select == "loss":
            own = memoryview(losses)[self._shard.rank :: self._shard.ranks]
            fitted = count_below(stream.limit, array("H", map(losses.__getitem__, order)) if order else own)
            # These weights have a mean of 1 over the pass.
            scale = 1 - options.prune_probability * fitted / stream.size
            stream = stream._replace(weights=(scale, scale / (1 - options.prune_probability)))
        return stream

    def _draw(self, stream: StreamState, indices: list[int], weights: list[float]) -> StreamState:
        """Add the next samples to a batch, except those that the pass prunes, up to the end of a stretch."""
        options, shard, losses = self.options, self._shard, self.state.memory.losses
        passes, size, drawn, pruned, limit, weight_of, dose, order = stream
        rank = f", rank {shard.rank}" if shard.ranks > 1 else ""
        text, (number, first) = f"{options.seed}, pass {passes - 1}{rank}", divmod(drawn, STRETCH)
        positions, draws = stretch(size, text, number)
        if order:
            positions = [*range(number * STRETCH, number * STRETCH + len(positions))]
        own, judged, chance = order or self._own, positions, int(options.prune_probability * 2**32)
        if options.select != "loss":
            # As many samples, but random ones. All have the same chance, so none is weighted.
            judged, draws = stretch(size, f"{text}, pruned", number)
        # Twice as many as are needed: mostly enough remain after pruning.
        ahead = slice(first, first + 2 * (options.batch_size - len(indices)))
        codes = gathered(losses, [own[other] for other in judged[ahead]])
        for position, other, draw, code in zip(positions[ahead], judged[ahead], draws[ahead], codes, strict=True):
            drawn, is_fitted = drawn + 1, code < limit
            # A pass keeps its last sample if it has kept no other.
            if (other < dose or (is_fitted and draw < chance)) and pruned < size - 1:
                pruned += 1
                continue
            indices.append(own[position])
            weights.append(weight_of[is_fitted])
            if len(indices) == options.batch_size:
                break
        return stream._replace(drawn=drawn, pruned=pruned)

    def recall(self) -> None:
        self.state = self.state._replace(flight=self.state.flight.recalled())

    def offer(self) -> SampleBatch:
        return self.sent[0]

    def collect(self, ticket: SampleBatch) -> None:
        if self.sent and self.sent[0] is ticket:
            raise ProtocolError("the next batch was requested before report() or weighted_mean() had the last losses")

    def missing(self, *, end_reported: bool) -> str:
        missing = 0 if end_reported else self.options.updates - self.state.counts.updates
        return f"{missing} of {self.options.updates} updates" if missing else ""

    def record_losses(self, losses: Sequence[float]) -> None:
        """Record the losses of the current batch. After the last batch of an epoch, ranks agree on its mean."""
        with self.feed.lock:
            state = self._after_losses(losses)
            counts = state.counts
            if counts.updates == self.options.updates:
                # All ranks get here together, whereas a loop may be left on one rank alone.
                mean = self._ranks.end(state.epoch, counts.updates, counts.mean_loss, counts.weight_sum)
                state = state._replace(agreed_mean=mean)
            self.state = state

    def _after_losses(self, losses: Sequence[float]) -> SampleState:
        state, options, threshold = self.state, self.options, self.threshold
        state.memory.apply(state.changes)
        batch, visits, pool = state.flight.sent[0], state.memory.epoch_visits, dict.fromkeys(state.pool)
        counts, usable = _add_up(state.counts, batch, losses)
        able = dict.fromkeys(sample for sample in batch.indices if visits and visits[sample] < options.max_visits)
        able = {sample: None for sample in able if sample not in pool}
        finite = [(sample, loss) for sample, loss in zip(batch.indices, usable, strict=True) if loss is not None]
        is_remembered = not batch.is_extra or options.remember_loss == "last"
        chosen = [sample for sample, loss in finite if threshold is not None and loss > threshold and sample in able]
        chosen, owed = [*dict.fromkeys(chosen)], state.owed
        number = state.epoch * options.updates + state.counts.updates
        if options.select != "loss":
            if self._doses and not self.is_full:
                owed += sum(self._doses["pooled"][number : number + 1])
            rng = random.Random(f"{options.seed}, pool {state.epoch}, {state.counts.updates}")
            # As many as the losses of earlier batches selected: these are independent of the samples of this one.
            drawn = rng.sample([*able], min(owed, len(able)))
            # The next batches pool what this one cannot.
            owed += (0 if self._doses else len(chosen)) - len(drawn)
            chosen = drawn
        remembered = state.memory.after(finite, is_remembered=is_remembered)
        changes = Changes(remembered, pooled=[(number, len(chosen))] if visits else [])
        pool |= dict.fromkeys(chosen)
        return state._replace(changes=changes, counts=counts, flight=state.flight.landed(), pool=(*pool,), owed=owed)

    def closed(self) -> None:
        """End the epoch if all its updates are made, even if the loop was left after the last batch."""
        state = self.state
        if state.counts.updates < self.options.updates:
            return
        with self.feed.lock:
            state.memory.apply(state.changes)
            memory, summary = Memory(0), self.summarize()
            visits = array("B", [0]) * len(state.memory.epoch_visits)
            vars(memory).update(vars(state.memory), epoch_visits=visits)
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
        packed = state._asdict() | {
            "options": self._options_to_save(),
            "counts": state.counts._asdict(),
            "stream": stream._asdict() | {"order": _pack(stream.order)},
            "pool": [*state.pool],
            "flight": [batch._asdict() for batch in state.flight.recalled().resend],
            "last_summary": None if summary is None else summary.as_dict(),
        }
        del packed["memory"], packed["changes"]
        return checkpoint.seal(packed | rows)

    def unpack(self, packed: object) -> SampleState:
        """The state that ``pack`` packed, if it has the same options and the same rank."""
        memory = Memory(0)
        keys = {*SampleState._fields, *vars(memory), "options"} - {"memory", "changes"}
        fields = checkpoint.unseal("the state of SampleAttention", packed, keys)
        checkpoint.check_options(self._options_to_save(), fields["options"])
        for name, row in vars(memory).items():
            setattr(memory, name, _unpack(fields[name], row.typecode))
        stream, summary = StreamState(**fields["stream"]), fields["last_summary"]
        flight = tuple(SampleBatch(**batch) for batch in fields["flight"])
        # 0.0 has the fingerprint of 0, but is not an index.
        checkpoint.plain_indices([*fields["pool"], *(index for batch in flight for index in batch.indices)])
        return SampleState(
            memory,
            epoch=fields["epoch"],
            mean_loss=fields["mean_loss"],
            counts=Counts(**fields["counts"]),
            agreed_mean=fields["agreed_mean"],
            flight=InFlight((), flight),
            stream=stream._replace(order=_unpack(fields["stream"]["order"], "i")),
            pool=tuple(fields["pool"]),
            owed=fields["owed"],
            last_summary=None if summary is None else SampleSummary(**summary),
        )

    def _options_to_save(self) -> dict[str, Any]:
        digest = zlib.crc32(json.dumps(self._doses, sort_keys=True).encode()) if self._doses else None
        # With the shard: a rank knows the losses of its own samples only.
        return {**asdict(self.options), **self._shard._asdict(), "doses_crc32": digest}


def _add_up(counts: Counts, batch: SampleBatch, losses: Sequence[float]) -> tuple[Counts, list[float | None]]:
    """The counts with one more batch, and its losses, with None for each that is not finite."""
    loss_sum, weight_sum = counts.loss_sum, counts.weight_sum
    usable: list[float | None] = []
    for weight, loss in zip(batch.weights, losses, strict=True):
        total = loss_sum + weight * loss
        is_usable = math.isfinite(loss if batch.is_extra else total)
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
    # Codes compress slowly, and hardly at all.
    return base64.b64encode(row if row.typecode == "H" else zlib.compress(row, 1)).decode()


def _unpack(packed: str, kind: str) -> array[Any]:
    row, raw = array(kind), base64.b64decode(packed)
    row.frombytes(raw if kind == "H" else zlib.decompress(raw))
    return row
