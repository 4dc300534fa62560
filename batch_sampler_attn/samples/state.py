"""All that attention to samples remembers, as one value; the rule that replaces it; and how it is saved."""

from __future__ import annotations

import base64
import functools
import json
import math
import random
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import ProtocolError, warn
from batch_sampler_attn.flight import Feed, InFlight, Source, VisitIndices
from batch_sampler_attn.ranks import Ranks, Shard
from batch_sampler_attn.samples.options import DOSES, MOST_VISITS, SampleOptions, order_of
from batch_sampler_attn.samples.order import STRETCH, count_below, gathered, mapped, scatter, stretch
from batch_sampler_attn.summary import SampleSummary

_LARGEST = 3.38e38  # what bfloat16 holds
_NO_LOSS, _ZERO = 0xFFFF, 0x8000  # codes


class SampleBatch(NamedTuple):
    """One batch on its way."""

    indices: list[int]
    weights: list[float]  # of the losses, one a sample
    is_extra: bool  # it is made of pooled samples


def codes_of(losses: list[float]) -> list[int]:
    """Finite losses rounded to bfloat16, as numbers in the same order.

    Up or down as if at random: rounded to the nearest, a mean that many small steps should move would stay.
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
    """The loss of each code; NaN of the last, which is of none."""
    bits = mapped(lambda code: code << 16 ^ 0xFFFF0000 - (code >> 15) * 0x7FFF0000, array("I", range(2**16)))
    return array("f", array("I", bits).tobytes())


class Changes(NamedTuple):
    """What memory has yet to apply; applying it twice changes nothing."""

    put: Sequence[tuple[str, list[int], list[int]]] = ()  # a row of memory, places in it, what these are to have
    pruned: Sequence[tuple[int, int]] = ()  # each after the number of its pass
    pooled: Sequence[tuple[int, int]] = ()  # each after the number of its update, from the first epoch on


class Memory:
    """What is too long to be replaced with each batch: five bytes a sample, six where it may be pooled."""

    def __init__(self, samples: int, *, can_pool: bool = False) -> None:
        self.losses = array("H", [_NO_LOSS]) * samples  # codes
        self.means = array("H", [_ZERO]) * samples  # over visits, as codes
        self.visits = array("B", [0]) * samples  # with a finite loss, in the whole training; 255 of them or more
        self.epoch_visits = array("B", [0]) * (samples if can_pool else 0)  # handed out in the epoch in progress
        self.pruned = array("i")  # samples, in each pass so far
        self.pooled = array("i")  # samples, after each update; empty where nothing can be

    def after(self, losses: list[tuple[int, float]], *, is_remembered: bool) -> list[tuple[str, list[int], list[int]]]:
        """What these losses change. A sample that is twice in a batch had one visit."""
        samples = [sample for sample, _ in losses]
        visits = [made + (made < MOST_VISITS) for made in gathered(self.visits, samples)]
        means = map(loss_of_code().__getitem__, gathered(self.means, samples))
        changed = [mean + (loss - mean) / made for mean, (_, loss), made in zip(means, losses, visits, strict=True)]
        codes = codes_of([*changed, *(loss for _, loss in losses)])
        put = [("visits", samples, visits), ("means", samples, codes[: len(samples)])]
        return [*put, ("losses", samples, codes[len(samples) :])] if is_remembered else put

    def apply(self, changes: Changes) -> None:
        """Remember what a step has changed."""
        for name, places, numbers in changes.put:
            scatter(getattr(self, name), places, numbers)
        for row, doses in ((self.pruned, changes.pruned), (self.pooled, changes.pooled)):
            for number, dose in doses:
                row[number:] = array("i", [dose])


class Counts(NamedTuple):
    """What adds up over an epoch."""

    handed_out: int = 0  # batches
    updates: int = 0  # batches whose losses arrived
    extra_updates: int = 0  # of these, those made of pooled samples
    pruned: int = 0  # samples
    passes: int = 0  # that began
    loss_sum: float = 0.0  # of base batches, by weight
    weight_sum: float = 0.0
    nonfinite_losses: int = 0  # also those too large to be added up

    @property
    def mean_loss(self) -> float | None:
        """By weight; None if no loss was finite."""
        mean = self.loss_sum / self.weight_sum if self.weight_sum else math.inf
        return mean if math.isfinite(mean) else None


class StreamState(NamedTuple):
    """Where the base order is: pass after pass over the data."""

    passes: int = 0  # that began
    size: int = 0  # samples of the current pass
    drawn: int = 0  # so many of them
    pruned: int = 0  # so many of these
    limit: int = 0  # samples with a code below it are well fitted
    weights: tuple[float, float] = (1.0, 1.0)  # of samples that are not well fitted, and that are
    dose: int = 0  # how many samples the pass prunes, where that is recorded
    order: array[int] = array("i")  # the user's sampler's; empty where it is computed


class SampleState(NamedTuple):
    """All that is remembered. It is replaced, never changed: an interrupt finds it before a batch or after it."""

    memory: Memory
    changes: Changes = Changes()  # of the last step
    epoch: int = 0
    mean_loss: float | None = None  # of the last epoch that had one
    counts: Counts = Counts()
    agreed_mean: float | None = None  # of this epoch over all ranks, once each of them has made its last update
    flight: InFlight = InFlight()
    stream: StreamState = StreamState()
    pool: tuple[int, ...] = ()  # samples that wait until there are enough for a batch; first in, first out, none twice
    owed: int = 0  # how many samples are still to be pooled, where they are drawn at random
    last_summary: SampleSummary | None = None


class _SampleSource(Source):
    """The rule: batches out, losses in. Each step works out another state, and assigns it under the feed's lock."""

    advice = "To leave a batch out, report NaN for each of its samples; to train on fewer, use updates=n"
    feed: Feed

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
        loss_of_code()  # this, and importing NumPy, takes longer than a batch may

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

    @property
    def out(self) -> tuple[SampleBatch, ...]:
        return self.state.flight.out

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
        self.state = state._replace(flight=state.flight.sent(batch))
        return VisitIndices(batch.indices, visit)

    def _next_batch(self, state: SampleState) -> tuple[SampleBatch, SampleState]:
        options, counts, stream, pool, owed = self.options, state.counts, state.stream, state.pool, state.owed
        size, seen = options.batch_size, state.memory.epoch_visits
        indices, weights, pruned, visits = list[int](), list[float](), dict[int, int](), dict[int, int]()
        if state.epoch == options.first_full_epoch and not counts.handed_out:
            # A new pass begins with the next sample.
            stream, pool, owed = StreamState(stream.passes), (), 0
        if len(pool) >= size:
            # Since they were pooled, the base order may have brought some of them as often as allowed.
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
        """What is fixed as a pass begins. What it prunes is decided as samples are drawn."""
        options, losses, mean_loss = self.options, self.state.memory.losses, self.state.mean_loss
        order, doses = array("i"), self._doses["pruned"] if self._doses else None
        if self._sampler is not None:
            order = array("i", order_of(self._sampler, number, options.samples, self._shard))
        stream = StreamState(number + 1, size=len(order or self._own), order=order)
        if doses is not None and number == len(doses) + len(doses) // 10 + 1:
            warn(f"pass {number} begins, and the doses are of {len(doses)} passes: nothing is pruned from here on")
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
            # They keep the mean weight of the pass at 1.
            scale = 1 - options.prune_probability * fitted / stream.size
            stream = stream._replace(weights=(scale, scale / (1 - options.prune_probability)))
        return stream

    def _draw(self, stream: StreamState, indices: list[int], weights: list[float]) -> StreamState:
        """Add the next samples that the pass does not prune to a batch, up to the end of a stretch."""
        options, shard, losses = self.options, self._shard, self.state.memory.losses
        passes, size, drawn, pruned, limit, weight_of, dose, order = stream
        rank = f", rank {shard.rank}" if shard.ranks > 1 else ""
        text, (number, first) = f"{options.seed}, pass {passes - 1}{rank}", divmod(drawn, STRETCH)
        places, draws = stretch(size, text, number)
        if order:
            places = [*range(number * STRETCH, number * STRETCH + len(places))]
        own, judged, chance = order or self._own, places, int(options.prune_probability * 2**32)
        if options.select != "loss":
            # As many samples, whichever they are. All have the same chance, so none weighs more.
            judged, draws = stretch(size, f"{text}, pruned", number)
        # Of twice as many as are wanted, mostly enough stay.
        ahead = slice(first, first + 2 * (options.batch_size - len(indices)))
        codes = gathered(losses, [own[other] for other in judged[ahead]])
        for place, other, draw, code in zip(places[ahead], judged[ahead], draws[ahead], codes, strict=True):
            drawn, is_fitted = drawn + 1, code < limit
            # The last sample of a pass stays if no other does.
            if (other < dose or (is_fitted and draw < chance)) and pruned < size - 1:
                pruned += 1
                continue
            indices.append(own[place])
            weights.append(weight_of[is_fitted])
            if len(indices) == options.batch_size:
                break
        return stream._replace(drawn=drawn, pruned=pruned)

    def recall(self) -> None:
        self.state = self.state._replace(flight=self.state.flight.recalled())

    def offer(self) -> SampleBatch:
        return self.out[0]

    def collect(self, ticket: SampleBatch) -> None:
        if self.out and self.out[0] is ticket:
            raise ProtocolError("the next batch was requested before report() or weighted_mean() had the last losses")

    def missing(self, *, was_refused: bool) -> str:
        missing = 0 if was_refused else self.options.updates - self.state.counts.updates
        return f"{missing} of {self.options.updates} updates" if missing else ""

    def settle(self, losses: Sequence[float]) -> None:
        """The losses of the current batch arrive. After an epoch's last, ranks agree on its mean."""
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
        batch, visits, pool = state.flight.out[0], state.memory.epoch_visits, dict.fromkeys(state.pool)
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
            # As many as the losses of earlier batches have selected, which say nothing of the samples of this one.
            drawn = rng.sample([*able], min(owed, len(able)))
            # The next batches take what this one cannot.
            owed += (0 if self._doses else len(chosen)) - len(drawn)
            chosen = drawn
        remembered = state.memory.after(finite, is_remembered=is_remembered)
        changes = Changes(remembered, pooled=[(number, len(chosen))] if visits else [])
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
        """The state that ``pack`` packed, if it is of the same options and the same rank."""
        memory = Memory(0)
        keys = {*SampleState._fields, *vars(memory), "options"} - {"memory", "changes"}
        fields = checkpoint.unseal("the state of SampleAttention", packed, keys)
        checkpoint.check_options(self._options_to_save(), fields["options"])
        for name, row in vars(memory).items():
            setattr(memory, name, _unpack(fields[name], row.typecode))
        stream, summary = StreamState(**fields["stream"]), fields["last_summary"]
        flight = tuple(SampleBatch(**batch) for batch in fields["flight"])
        # 0.0 has the fingerprint of 0, and is no index.
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
        # A rank knows the losses of its own samples.
        return {**asdict(self.options), **self._shard._asdict(), "doses_crc32": digest}


def _add_up(counts: Counts, batch: SampleBatch, losses: Sequence[float]) -> tuple[Counts, list[float | None]]:
    """The counts with one more batch, and its losses, with None for those that are not finite."""
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
    # Codes take long to compress, and hardly get smaller.
    return base64.b64encode(row if row.typecode == "H" else zlib.compress(row, 1)).decode()


def _unpack(packed: str, kind: str) -> array[Any]:
    row, raw = array(kind), base64.b64decode(packed)
    row.frombytes(raw if kind == "H" else zlib.decompress(raw))
    return row
