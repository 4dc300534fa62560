"""Analysis of recorded visits: which batches were repeated, and how often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders.memory import VisitRecord


class RepeatedBatch(NamedTuple):
    """A batch, with its number of repeats and the epochs in which it was repeated.

    ``batch`` is its position in the first of these epochs; ``indices`` are its dataset indices, if recorded.
    """

    repeats: int
    batch: int
    epochs: tuple[int, ...]
    indices: tuple[int, ...] | None


def most_repeated(visits: Iterable[VisitRecord], n: int = 10) -> list[RepeatedBatch]:
    """Return the ``n`` batches that were repeated most, in which to look for mislabelled or broken data.

    Batches of two epochs are the same if they have the same dataset indices, in any order, or, without indices, the
    same position.
    """
    repeats: dict[object, RepeatedBatch] = {}
    for record in visits:
        if record.visit == 1:
            continue
        key = record.batch if record.indices is None else tuple(sorted(record.indices))
        known = repeats.get(key, RepeatedBatch(0, record.batch, (), record.indices))
        epochs = known.epochs if record.epoch in known.epochs else (*known.epochs, record.epoch)
        repeats[key] = known._replace(repeats=known.repeats + 1, epochs=epochs)
    return sorted(repeats.values(), key=lambda batch: -batch.repeats)[:n]


def visit_counts(visits: Iterable[VisitRecord]) -> list[list[int]]:
    """Return the number of visits to each batch: one list for each epoch, one number for each position.

    Raises:
        RecordError: If an epoch or a batch is missing, or a batch has two first visits in one epoch.
    """
    counts: dict[int, dict[int, int]] = {}
    for record in visits:
        batches = counts.setdefault(record.epoch, {})
        if record.visit == 1 and record.batch in batches:
            raise RecordError(
                f"batch {record.batch} of epoch {record.epoch} has two first visits; give each run its own recorder, "
                "and an epoch_length of at most the loader's length"
            )
        batches[record.batch] = record.visit
    for epoch in range(len(counts)):
        batches = counts.get(epoch, {})
        if not batches or max(batches) >= len(batches):
            raise RecordError(f"epoch {epoch} was not recorded whole; give the schedule its recorder before it trains")
    return [[counts[epoch][batch] for batch in sorted(counts[epoch])] for epoch in sorted(counts)]
