"""Reading the raw records of the benchmarks, with every check that they have to pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from pydantic import ValidationError

from benchmarks.errors import RecordsError
from benchmarks.schema import (
    SCHEMA_VERSION,
    Checked,
    Configuration,
    Data,
    Epoch,
    Evaluated,
    OfRun,
    Run,
    RunName,
    SelectionConfiguration,
)

Record = TypeVar("Record", bound=Checked)


class Records(NamedTuple):
    """A folder of records, checked."""

    configuration: Configuration | SelectionConfiguration
    runs: dict[RunName, Run]
    epochs: dict[RunName, list[Epoch]]  # of each run, in order


def read_records(folder: Path) -> Records:
    """Read a folder of records; a ``RecordsError`` if they are damaged, incomplete or contradict each other."""
    configuration = read_configuration(folder)
    digest = configuration.digest()
    runs: dict[RunName, Run] = {}
    for line in read_lines(folder / "runs.jsonl", Run, digest):
        if line.run in runs:
            raise RecordsError(f"{folder / 'runs.jsonl'} has two lines of {line.run}; a run is recorded once")
        runs[line.run] = line
    epochs: dict[RunName, list[Epoch]] = {name: [] for name in runs}
    for epoch in read_lines(folder / "epochs.jsonl", Epoch, digest):
        if epoch.run not in runs:
            raise RecordsError(
                f"{folder / 'epochs.jsonl'} has epochs of {epoch.run}, of which runs.jsonl does not know"
            )
        epochs[epoch.run].append(epoch)
    for name, run in runs.items():
        last = run.last.epoch if run.last else max(len(epochs[name]), 1)
        if [epoch.epoch for epoch in epochs[name]] != list(range(1, last + 1)):
            raise RecordsError(
                f"{folder}: an epoch of {name} is missing, of the {last} that runs.jsonl says; copy both files from "
                "the same place"
            )
    records = Records(configuration, runs, epochs)
    if isinstance(configuration, Configuration):
        _check_confusion(folder, records, configuration.data)
    return records


def _check_confusion(folder: Path, records: Records, data: Data) -> None:
    for name, run in records.runs.items():
        best = max(records.epochs[name], key=lambda epoch: epoch.accuracy)
        for which, evaluated, epoch in (("best", run.best, best), ("last", run.last, records.epochs[name][-1])):
            for what, found, expected in _compare(evaluated, epoch, data):
                if abs(found - expected) > 1e-6:
                    raise RecordsError(
                        f"{folder / 'runs.jsonl'}: the confusion matrix of {name} at its {which} epoch contradicts the "
                        f"rest of the records: {what} {found:,.7g}, and elsewhere {expected:,.7g}. Copy all files from "
                        "the same place, or make the run again"
                    )


def _compare(evaluated: Evaluated | None, epoch: Epoch, data: Data) -> Iterator[tuple[str, float, float]]:
    """Numbers that have to be equal; where two are not, those after them may not exist."""
    yield "number of matrices", 0 if evaluated is None else 1, 1
    assert evaluated is not None
    yield "epoch", evaluated.epoch, epoch.epoch
    sizes = [len(evaluated.confusion), *map(len, evaluated.confusion)]
    yield from (("classes", size, len(data.classes)) for size in sizes)
    matrix = np.array(evaluated.confusion)
    right, images = matrix.diagonal(), int(matrix.sum())
    yield "images", images, data.test_images
    yield "images right", int(right.sum()), round(epoch.accuracy * images)
    yield "macro-F1", float((2 * right / np.maximum(matrix.sum(0) + matrix.sum(1), 1)).mean()), epoch.macro_f1


def read_configuration(folder: Path) -> Configuration | SelectionConfiguration:
    """The configuration of a folder of records; a ``RecordsError`` if there is none, or it is of another schema."""
    path = folder / "configuration.json"
    text = _read_text(path)
    if '"study"' in text:
        return parse_record(path, 1, text, SelectionConfiguration)
    return parse_record(path, 1, text, Configuration)


def read_lines(path: Path, kind: type[Record], digest: str | None = None) -> list[Record]:
    """The lines of a file of JSON lines, of the configuration of this digest; a ``RecordsError`` if one is damaged."""
    lines = enumerate(_read_text(path).split("\n"), start=1)
    records = [parse_record(path, number, line, kind) for number, line in lines if line.strip()]
    for record in records:
        if digest is not None and isinstance(record, OfRun):
            check_configuration(path, record, digest)
    return records


def parse_record(path: Path, number: int, text: str, kind: type[Record]) -> Record:
    """A record from line ``number`` of a file; a ``RecordsError`` if it does not fit the schema."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise RecordsError(
            f"{path}, line {number} does not fit schema version {SCHEMA_VERSION}: {where}{first['msg']}. Copy the file "
            "again if it is damaged, or delete the run's lines in all files, and the benchmark makes the run again; "
            "read records of another version with that one"
        ) from error


def check_configuration(path: Path, line: OfRun, digest: str) -> None:
    """Refuse a line of another configuration, with a ``RecordsError``."""
    if line.configuration != digest:
        raise RecordsError(
            f"{path} has a line of {line.run} from configuration {line.configuration}, but the folder's is {digest}; "
            "runs of two configurations do not go into one table. Keep one folder for each"
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordsError(
            f"{path} cannot be read ({error}); records are made by python -m benchmarks.cifar --out FOLDER"
        ) from error
