"""What may be switched on to watch a schedule: a record of visits, and TensorBoard curves.

A recorder of your own is a subclass of ``Recorder``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.rule import Decision, EpochSummary
from batch_sampler_attn.tickets import plain_indices

# More than a line with the indices of a batch of 65,536 samples takes.
_LONGEST_LINE_BYTES = 1 << 20


class VisitRecord(NamedTuple):
    """One visit.

    Attributes:
        epoch: From 0.
        batch: Position of the batch in its epoch, from 0.
        visit: 1 for the first visit.
        loss: The loss that was reported.
        decision: "repeat" or "advance".
        indices: The batch's dataset indices, where a ``BatchAttentionSampler`` knows them.
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


class Recorder:
    """What a schedule tells its recorders. A subclass overrides what it wants to hear of."""

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        """A decision was made; the arguments are the fields of ``VisitRecord``."""

    def on_epoch_end(self, summary: EpochSummary) -> None:
        """An epoch, or a window, came to its end."""

    def on_epoch_abandoned(self, epoch: int) -> None:
        """The visits of the epoch in progress do not count; it begins anew."""

    def flush(self) -> None:
        """A state is being saved: what was recorded up to now must be safe."""


class MemoryRecorder(Recorder):
    """Keeps every visit and every summary in lists.

    Attributes:
        visits: One ``VisitRecord`` a visit.
        summaries: One ``EpochSummary`` an epoch.
    """

    def __init__(self) -> None:
        self.visits: list[VisitRecord] = []
        self.summaries: list[EpochSummary] = []

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        self.visits.append(
            VisitRecord(epoch, batch, visit, loss, decision.value, None if indices is None else tuple(indices))
        )

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self.summaries.append(summary)

    def on_epoch_abandoned(self, epoch: int) -> None:
        self.visits = [record for record in self.visits if record.epoch != epoch]


class JsonLinesRecorder(Recorder):
    """Appends one JSON object a visit to a file; ``read_visits`` reads it back.

    A loss that is not finite is written as the string "nan", "inf" or "-inf", since JSON has no such numbers;
    ``float`` takes them all. Lines reach the disk at the end of each epoch, with each saved state, and on ``close``.

    Args:
        path: The file. What an earlier run wrote to it stays; a last line that was cut off is removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        _remove_torn_line(self.path)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")

    def on_visit(
        self, epoch: int, batch: int, visit: int, loss: float, decision: Decision, indices: Sequence[int] | None
    ) -> None:
        line: dict[str, Any] = {
            "epoch": epoch,
            "batch": batch,
            "visit": visit,
            "loss": loss if -float("inf") < loss < float("inf") else str(loss),
            "decision": decision.value,
        }
        if indices is not None:
            line["indices"] = plain_indices(indices)
        self._write(line)

    def on_epoch_end(self, summary: EpochSummary) -> None:
        self._file.flush()

    def on_epoch_abandoned(self, epoch: int) -> None:
        self._write({"abandoned_epoch": epoch})

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()

    def __enter__(self) -> JsonLinesRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


class TensorBoardRecorder(Recorder):
    """Writes each epoch's summary as scalars named ``batch_attention/...``.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its ``add_scalar`` and ``flush``.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def on_epoch_end(self, summary: EpochSummary) -> None:
        for name, value in summary.as_dict().items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(f"batch_attention/{name}", value, summary.epoch)

    def flush(self) -> None:
        self._writer.flush()


def read_visits(path: str | os.PathLike[str]) -> list[VisitRecord]:
    """Read the visits that a ``JsonLinesRecorder`` wrote.

    Abandoned epochs are left out, and of a visit that was made again after a resume, the later line counts.

    Raises:
        RecordError: If a line is not one of a ``JsonLinesRecorder``'s.
    """
    visits: dict[tuple[int, int, int], VisitRecord] = {}
    with Path(path).open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text)
                if "abandoned_epoch" in line:
                    visits = {key: record for key, record in visits.items() if key[0] != line["abandoned_epoch"]}
                    continue
                record = _record_from_line(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RecordError(f"{path}, line {number} is not a recorded visit: {text.strip()[:80]!r}") from error
            key = record[:3]
            visits.pop(key, None)
            visits[key] = record
    return list(visits.values())


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
            deferred repeats that a ``window`` cut in two.
    """
    counts: dict[int, dict[int, int]] = {}
    for record in visits:
        batches = counts.setdefault(record.epoch, {})
        batches[record.batch] = max(batches.get(record.batch, 0), record.visit)
    for epoch in range(len(counts)):
        if epoch not in counts:
            raise RecordError(f"epoch {epoch} of {len(counts)} was not recorded; record the run from its begin")
        if sorted(counts[epoch]) != list(range(len(counts[epoch]))):
            raise RecordError(f"epoch {epoch} was recorded without some of its batches; record whole epochs")
    return [[counts[epoch][batch] for batch in range(len(counts[epoch]))] for epoch in range(len(counts))]


def _record_from_line(line: dict[str, Any]) -> VisitRecord:
    indices = line.get("indices")
    return VisitRecord(
        line["epoch"],
        line["batch"],
        line["visit"],
        float(line["loss"]),
        Decision(line["decision"]).value,
        None if indices is None else tuple(indices),
    )


def _remove_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end; of a file that is not a recorder's, change nothing."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_LINE_BYTES))
        tail = file.read()
        torn = tail[tail.rfind(b"\n") + 1 :]
        if not torn:
            return
        if not torn.startswith(b"{"):
            raise RecordError(
                f"{path} ends with {torn[:40]!r}, which is no recorded visit; give the recorder a file of its own"
            )
        file.truncate(size - len(torn))
