"""Where training is: everything that changes from batch to batch, as one value, and how it is saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from batch_sampler_attn import checkpoint
from batch_sampler_attn.errors import StateError, shown
from batch_sampler_attn.samples.batch import SampleBatch, unpack_batch
from batch_sampler_attn.samples.memory import NO_NEWS, News, SampleMemory
from batch_sampler_attn.samples.options import MOST_VISITS, SampleOptions
from batch_sampler_attn.samples.pool import Pool, unpack_pool
from batch_sampler_attn.samples.stream import BEFORE_THE_FIRST_PASS, SampleStream, StreamPlace
from batch_sampler_attn.samples.summary import SampleSummary, unpack_summary
from batch_sampler_attn.shards import Shard, unpack_shard

_KEYS = {"version", "options", "epoch", "mean_loss", "counts", "losses", "visits", "stream", "pool", "flight"}

# No training takes as long, and what goes on from here can still be counted.
_LONGEST = 2**53


@dataclass(frozen=True, slots=True)
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
        nonfinite_losses: NaN and infinite ones, and those too large to be added up.
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where training is.

    It is never changed, but replaced by another one, so that an interrupt finds it before a batch or behind it. Only
    the memory is too large for that: what it has not been told yet stands beside it.

    Attributes:
        memory: Of losses and visits, up to the news.
        news: Of the batch that was settled last.
        epoch: Epochs ended so far.
        mean_loss: Of the epoch before, or the last one that had any; None while there is none.
        counts: Of the epoch in progress.
        flight: Handed out, with no losses yet; first in, first out.
        to_resend: In flight when a pass was left: these go out again before anything else.
        stream: Where the base order is.
        pool: Samples that are to come again.
        last_summary: Of the epoch that ended last; None before.
    """

    memory: SampleMemory
    news: News = NO_NEWS
    epoch: int = 0
    mean_loss: float | None = None
    counts: Counts = Counts()
    flight: tuple[SampleBatch, ...] = ()
    to_resend: tuple[SampleBatch, ...] = ()
    stream: StreamPlace = BEFORE_THE_FIRST_PASS
    pool: Pool = ()
    last_summary: SampleSummary | None = None


def pack_place(place: Place, options: SampleOptions, shard: Shard) -> dict[str, Any]:
    """As JSON types."""
    place.memory.tell(place.news)
    return {
        "version": checkpoint.VERSION,
        "options": asdict(options),
        "epoch": place.epoch,
        "mean_loss": place.mean_loss,
        "counts": asdict(place.counts),
        **place.memory.pack(),
        "stream": place.stream.pack(),
        "pool": [*place.pool],
        "flight": [asdict(batch) for batch in (*place.flight, *place.to_resend)],
        **({} if place.last_summary is None else {"last_summary": place.last_summary.as_dict()}),
        **({"shard": [*shard]} if shard.ranks > 1 else {}),
    }


def unpack_place(packed: object, options: SampleOptions, stream: SampleStream, shard: Shard) -> Place:
    """The place that ``pack_place`` packed.

    Raises:
        StateError: If it is of another version, of other options or of another rank, or is damaged.
    """
    fields = checkpoint.check_keys("the state of attention to samples", packed, _KEYS, {"shard", "last_summary"})
    checkpoint.check_version(fields["version"])
    checkpoint.check_options(asdict(options), fields["options"])
    saved_shard = unpack_shard(fields.get("shard", [0, 1]), shard, is_in_epoch=True)
    if saved_shard != shard:
        raise StateError(
            f"the state is of rank {saved_shard.rank} and its samples, and this is rank {shard.rank}; save and "
            "load one for each rank"
        )
    flight = fields["flight"]
    if not isinstance(flight, list):
        raise StateError(f"flight is {shown(flight)} in the state; it must be a list")
    mean_loss = fields["mean_loss"]
    place = Place(
        memory=SampleMemory.unpack(fields["losses"], fields["visits"], options.samples),
        epoch=checkpoint.check_count("epoch", fields["epoch"]),
        mean_loss=None if mean_loss is None else checkpoint.check_number("mean_loss", mean_loss, "the state"),
        counts=_unpack_counts(fields["counts"]),
        to_resend=tuple(unpack_batch(batch, options, shard) for batch in flight),
        stream=stream.unpack(fields["stream"]),
        pool=unpack_pool(fields["pool"], options, shard),
        last_summary=unpack_summary(fields.get("last_summary")),
    )
    broken = [*_contradictions(place, options, shard)]
    if broken:
        raise StateError(f"the state does not hold together: {'; '.join(broken)}. It was changed after it was saved")
    return place


def _unpack_counts(packed: object) -> Counts:
    counts = Counts()
    fields = checkpoint.check_keys("the epoch's counts", packed, set(asdict(counts)))
    numbers: dict[str, Any] = {
        name: checkpoint.check_number(name, value, "the state")
        if name.endswith("_sum")
        else checkpoint.check_count(name, value)
        for name, value in fields.items()
    }
    return replace(counts, **numbers)


def _contradictions(place: Place, options: SampleOptions, shard: Shard) -> Iterator[str]:
    counts, size = place.counts, options.batch_size
    made = counts.updates * size
    if counts.updates + len(place.to_resend) != counts.handed_out or counts.handed_out > options.updates:
        yield (
            f"{counts.handed_out} of {options.updates} batches were handed out, {counts.updates} are done with, and "
            f"{len(place.to_resend)} in flight"
        )
    drawn = (place.epoch * options.updates + counts.handed_out) * size
    if not counts.passes <= place.stream.passes <= min(drawn, _LONGEST) or (counts.left_out and not counts.passes):
        yield f"{counts.left_out} samples left out of {counts.passes} of {place.stream.passes} passes, {drawn} drawn"
    if max(place.epoch, counts.left_out) > _LONGEST:
        yield f"epoch {place.epoch}, and {counts.left_out} samples left out"
    if place.mean_loss is not None and not place.epoch:
        yield "a mean loss of an epoch before the first"
    if counts.extra_updates > (counts.updates if options.k is not None else 0):
        yield f"{counts.extra_updates} of {counts.updates} updates of pooled samples, with k={options.k}"
    if counts.owed > (size if options.choose == "random" and options.k is not None else 0):
        yield f"{counts.owed} samples to be pooled at random"
    visits = place.memory.visits
    is_counted = sum(visits) == made or (max(visits) == MOST_VISITS and sum(visits) < made)
    if not is_counted or sum(visits[shard.rank :: shard.ranks]) != sum(visits):
        yield f"{sum(visits)} visits to samples in {counts.updates} updates of {size}"
    least = 1 - options.leave_out if options.weighted else 1.0
    is_a_sum = counts.weight_sum == 0 == counts.loss_sum or (
        least * (1 - 1e-9) <= counts.weight_sum <= made / least * (1 + 1e-9)
    )
    if not is_a_sum or counts.nonfinite_losses > made:
        yield f"losses of {counts.loss_sum} in all, of weight {counts.weight_sum}, and {counts.nonfinite_losses} more"
    first = options.first_plain_epoch
    is_plainly_begun = first is not None and (place.epoch, counts.handed_out) > (first, 0)
    if is_plainly_begun and (place.pool or counts.extra_updates or any(batch.is_extra for batch in place.to_resend)):
        yield "pooled samples in the last share of training, which sees all data plainly"
