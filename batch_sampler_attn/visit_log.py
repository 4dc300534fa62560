"""Recorded visits: what they are, how they are read back, and what can be asked of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.line_file import is_whole
from batch_sampler_attn.rule import Decision
from batch_sampler_attn.timeline import Timeline


class VisitRecord(NamedTuple):
    """One visit.

    Attributes:
        epoch: From 0.
        batch: Position of the batch in its epoch, from 0; in its pass over the loader, where a
            ``BatchAttentionSampler`` serves windows that are longer than a pass.
        visit: 1 for the first visit.
        loss: The loss that was reported.
        decision: "repeat" or "advance".
        indices: The batch's dataset indices, where a ``BatchAttentionSampler`` knows them: plain numbers and strings.
    """

    epoch: int
    batch: int
    visit: int
    loss: float
    decision: str
    indices: tuple[int, ...] | None = None


class RepeatedBatch(NamedTuple):
    """How often one batch was repeated over the run.

    Attributes:
        repeats: Visits beyond the first in each epoch, added up.
        batch: Its position in the epoch.
        epochs: The epochs in which it was repeated.
        indices: Its dataset indices, where they were recorded.
    """

    repeats: int
    batch: int
    epochs: tuple[int, ...]
    indices: tuple[int, ...] | None


class RepeatedSample(NamedTuple):
    """How often the batches that a sample was in were repeated.

    Attributes:
        repeats: Visits beyond the first of its batches, added up over the run.
        sample: Its dataset index.
    """

    repeats: int
    sample: int


def read_visits(path: str | os.PathLike[str]) -> list[VisitRecord]:
    """Read the visits that a ``JsonLinesRecorder`` wrote: those of one run, each once, in the order of training.

    Of a file that several runs wrote to, one after the other, the last one counts. Where it went on from a saved state,
    the visits up to there are those before, and what an earlier run did from there on is left out; where it began anew,
    all before is. Abandoned epochs are left out, and so is a last line that was not written to its end.

    Raises:
        RecordError: If a line is not one of a ``JsonLinesRecorder``'s, or a run goes on from visits that are not there.
    """
    timeline = Timeline()
    with Path(path).open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.endswith(b"\n") and not is_whole(text):
                break
            try:
                line = json.loads(text)
                if "abandoned_epoch" in line:
                    timeline.abandon(line["abandoned_epoch"])
                elif "resumed_epoch" in line:
                    if not timeline.go_on(line["resumed_epoch"], line["visits"]):
                        raise RecordError(_missing(line["resumed_epoch"], line["visits"]))
                elif "another_pass" in line:
                    timeline.begin_pass()
                else:
                    timeline.add(_record_from_line(line))
            except RecordError as error:
                raise RecordError(f"{path}, line {number}: {error}") from None
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                shown = text.strip()[:80].decode(errors="replace")
                raise RecordError(f"{path}, line {number} is not a recorded visit: {shown!r}") from error
    return timeline.visits


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


def _record_from_line(line: dict[str, Any]) -> VisitRecord:
    indices = line.get("indices")
    numbers = line["epoch"], line["batch"], line["visit"]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{numbers} are not whole numbers")
    return VisitRecord(
        *numbers,
        float(line["loss"]),
        Decision(line["decision"]).value,
        None if indices is None else tuple(indices),
    )


def _missing(epoch: int, visits: int) -> str:
    return (
        f"a run goes on here from visit {visits} of epoch {epoch}, which is not in the lines above: some are "
        "missing, or they are another run's. Give each run a file of its own, or take these lines out"
    )
