"""What can be asked of recorded visits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders.visits import RepeatedBatch, RepeatedSample, VisitRecord


def most_repeated(visits: Iterable[VisitRecord], n: int = 10) -> list[RepeatedBatch]:
    """The ``n`` batches most often repeated: where to look for mislabelled or broken data.

    A batch is the same one in two epochs if its dataset indices are, in any order; where none were recorded, if
    its position is. Positions say something only of loaders that do not shuffle; pass the visits of one epoch, or
    use a ``BatchAttentionSampler``, if yours does.
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


def most_repeated_samples(visits: Iterable[VisitRecord], n: int = 10) -> list[RepeatedSample]:
    """The ``n`` samples whose batches were repeated most often.

    Where batches are shuffled anew in every epoch, a wrong label is in other company each time, and what is left over
    many epochs is the sample itself. Needs the dataset indices that a ``BatchAttentionSampler`` records.

    Raises:
        RecordError: If a visit was recorded without indices.
    """
    repeats: Counter[int] = Counter()
    for record in visits:
        if record.indices is None:
            raise RecordError("a visit was recorded without dataset indices; they take a BatchAttentionSampler")
        if record.visit > 1:
            repeats.update(record.indices)
    return [RepeatedSample(count, sample) for sample, count in repeats.most_common(n)]


def visit_counts(visits: Iterable[VisitRecord]) -> list[list[int]]:
    """Visits to each batch: one list an epoch, one number a batch, in order of position.

    Raises:
        RecordError: If epochs or batches are missing, as with a recorder that was switched on late, or with
            deferred repeats that a ``window`` cut in two; or if a position was begun twice in one epoch, as where a
            ``window`` is longer than a pass over the loader, or where two runs were recorded as one.
    """
    counts: dict[int, dict[int, int]] = {}
    begun: set[tuple[int, int]] = set()
    for record in visits:
        batches = counts.setdefault(record.epoch, {})
        batches[record.batch] = max(batches.get(record.batch, 0), record.visit)
        if record.visit == 1:
            if (record.epoch, record.batch) in begun:
                raise RecordError(
                    f"batch {record.batch} of epoch {record.epoch} was visited for the first time twice; record each "
                    "run with a recorder of its own, in windows that are no longer than a pass over the loader"
                )
            begun.add((record.epoch, record.batch))
    for epoch in range(len(counts)):
        if epoch not in counts:
            raise RecordError(f"epoch {epoch} of {len(counts)} was not recorded; record the run from its begin")
        if sorted(counts[epoch]) != list(range(len(counts[epoch]))):
            raise RecordError(f"epoch {epoch} was recorded without some of its batches; record whole epochs")
    return [[counts[epoch][batch] for batch in range(len(counts[epoch]))] for epoch in range(len(counts))]
