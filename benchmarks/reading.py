"""Reading the raw records of the benchmarks, with every check that they have to pass."""

from __future__ import annotations

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
            said = _contradiction(evaluated, epoch, data) if evaluated else "there is none"
            if said:
                raise RecordsError(
                    f"{folder / 'runs.jsonl'}: the confusion matrix of {name} at its {which} epoch contradicts the "
                    f"rest of the records: {said}. Copy both files from the same place, or make the run again"
                )


def _contradiction(evaluated: Evaluated, epoch: Epoch, data: Data) -> str | None:
    """What is wrong with a confusion matrix."""
    classes = len(data.classes)
    if {len(evaluated.confusion), *map(len, evaluated.confusion)} != {classes}:
        return f"it is not {classes} by {classes}, one row and one column for each class"
    matrix = np.array(evaluated.confusion)
    right, images = matrix.diagonal(), int(matrix.sum())
    macro_f1 = float((2 * right / np.maximum(matrix.sum(0) + matrix.sum(1), 1)).mean())
    for what, found, expected in (
        ("epoch", evaluated.epoch, epoch.epoch),
        ("images", images, data.test_images),
        ("images right", int(right.sum()), round(epoch.accuracy * images)),
        ("macro-F1", macro_f1, epoch.macro_f1),
    ):
        if abs(found - expected) > 1e-6:
            return f"{what} is {found:,.7g} in it, and {expected:,.7g} in epochs.jsonl and configuration.json"
    return None


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
        what = f"{path}, line {number} does not fit schema version {SCHEMA_VERSION}: "
        if first["type"] == "json_invalid":
            how = "is cut off" if "EOF while parsing" in first["msg"] else f"is not JSON ({first['msg']})"
            raise RecordsError(
                f"{what}the line {how}. Copy the file again from where it was made, or delete the run's lines in all "
                "files, and the benchmark makes the run again"
            ) from error
        where = ".".join(map(str, first["loc"])) or "the whole line"
        raise RecordsError(
            f"{what}{where}: {first['msg']}. Make the records with this version of the benchmark, or read them with "
            "the one that made them"
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
