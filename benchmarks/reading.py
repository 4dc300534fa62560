"""Reading the raw records of the CIFAR benchmarks, with every check that they have to pass."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from benchmarks.errors import RecordsError
from benchmarks.schema import (
    SCHEMA_VERSION,
    Checked,
    Configuration,
    ConfusionMatrix,
    Data,
    Epoch,
    Evaluated,
    OfRun,
    Run,
    RunName,
)


class Records(NamedTuple):
    """A folder of records, checked.

    Attributes:
        configuration: What all runs have in common.
        runs: By name.
        epochs: Of each run, in order.
    """

    configuration: Configuration
    runs: dict[RunName, Run]
    epochs: dict[RunName, list[Epoch]]


Record = TypeVar("Record", bound=Checked)


def read_records(folder: Path) -> Records:
    """Read and check a folder of records.

    Raises:
        RecordsError: If a file is missing, a line is not what the schema says, a line is of another configuration
            than the folder, a run's epochs do not follow each other, or a confusion matrix contradicts the rest.
    """
    configuration = read_configuration(folder)
    digest = configuration.digest()
    runs: dict[RunName, Run] = {}
    for line in read_lines(folder / "runs.jsonl", Run):
        check_configuration(folder / "runs.jsonl", line, digest)
        if line.run in runs:
            raise RecordsError(f"{folder / 'runs.jsonl'} has two lines of {line.run}; a run is recorded once")
        runs[line.run] = line
    epochs: dict[RunName, list[Epoch]] = {name: [] for name in runs}
    for epoch in read_lines(folder / "epochs.jsonl", Epoch):
        check_configuration(folder / "epochs.jsonl", epoch, digest)
        done = epochs.get(epoch.run)
        if done is None:
            raise RecordsError(
                f"{folder / 'epochs.jsonl'} has epochs of {epoch.run}, of which runs.jsonl does not know"
            )
        if epoch.epoch != len(done) + 1:
            raise RecordsError(
                f"{folder}: epoch {len(done) + 1} of {epoch.run} is missing; epoch {epoch.epoch} follows"
            )
        done.append(epoch)
    for name, run in runs.items():
        if run.last.epoch != len(epochs[name]):
            raise RecordsError(
                f"{folder}: {name} has {len(epochs[name])} epochs, and runs.jsonl says {run.last.epoch}; copy both "
                "files from the same place"
            )
    _check_confusion(folder, configuration, runs, epochs)
    return Records(configuration, runs, epochs)


def read_configuration(folder: Path) -> Configuration:
    """The configuration of a folder of records.

    Raises:
        RecordsError: If there is none, or it is of another schema.
    """
    path = folder / "configuration.json"
    return parse_record(path, 1, _read_text(path), Configuration)


def read_lines(path: Path, kind: type[Record]) -> list[Record]:
    """The lines of a file of JSON lines, checked.

    Raises:
        RecordsError: If the file cannot be read, or a line is not what the schema says.
    """
    lines = _read_text(path).split("\n")
    if lines[-1] == "":  # what follows the last line break
        lines.pop()
    return [parse_record(path, number, line, kind) for number, line in enumerate(lines, start=1)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordsError(
            f"{path} cannot be read ({reason}); records are made by python -m benchmarks.cifar --out FOLDER"
        ) from error


def check_line(place: str, text: str) -> None:
    """Refuse what no record of any kind is.

    Raises:
        RecordsError: If the line is empty, or begins with a byte order mark.
    """
    if text.startswith("\ufeff"):
        raise RecordsError(
            f"{place} begins with a byte order mark, which some editors add. Save the file as UTF-8 without one, or "
            "copy it again from where it was made"
        )
    if not text.strip():
        raise RecordsError(f"{place} is empty. Delete the empty line, or copy the file again from where it was made")


def parse_record(path: Path, number: int, text: str | bytes, kind: type[Record]) -> Record:
    """A record from its JSON.

    Raises:
        RecordsError: If it is not what the schema says.
    """
    text = text.decode(errors="surrogateescape") if isinstance(text, bytes) else text
    place = f"{path}, line {number}"
    check_line(place, text)
    try:
        return kind.model_validate_json(text.encode(errors="surrogateescape"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole line"
        what = f"{place} does not fit schema version {SCHEMA_VERSION}: "
        if first["type"] == "json_invalid":
            is_cut = "EOF while parsing" in first["msg"]
            how = "the line is cut off" if is_cut else f"the line is not JSON ({first['msg']})"
            raise RecordsError(
                f"{what}{how}. Copy the file again from where it was made, or delete the run's lines in all files, and "
                "the benchmark makes the run again"
            ) from error
        raise RecordsError(
            f"{what}{where}: {first['msg']}. Make the records with this version of the benchmark, or read them with "
            "the one that made them"
        ) from error


def check_configuration(path: Path, line: OfRun, digest: str) -> None:
    """Refuse a line of another configuration.

    Raises:
        RecordsError: If it is.
    """
    if line.configuration != digest:
        raise RecordsError(
            f"{path} has a line of {line.run} from configuration {line.configuration}, but the folder's is {digest}; "
            "runs of two configurations do not go into one table. Keep one folder for each"
        )


def _check_confusion(
    folder: Path, configuration: Configuration, runs: dict[RunName, Run], epochs: dict[RunName, list[Epoch]]
) -> None:
    """Refuse confusion matrices that contradict the data set, their epochs, or each other.

    Raises:
        RecordsError: If one does.
    """
    images_of_classes: list[int] | None = None
    for name, run in runs.items():
        best = max(epochs[name], key=lambda epoch: epoch.accuracy)
        for which, evaluated, epoch in (("best", run.best, best), ("last", run.last, epochs[name][-1])):
            said = _contradiction(evaluated, epoch, configuration.data)
            if said is None:
                rows = [sum(row) for row in evaluated.confusion]
                images_of_classes = images_of_classes or rows
                if rows != images_of_classes:
                    said = "it has other numbers of images of each class than another run"
            if said is not None:
                raise RecordsError(
                    f"{folder / 'runs.jsonl'}: the confusion matrix of {name} at its {which} epoch contradicts the "
                    f"rest of the records: {said}. Copy runs.jsonl and epochs.jsonl from the same place, or make the "
                    "run again"
                )


def _contradiction(evaluated: Evaluated, epoch: Epoch, data: Data) -> str | None:
    """What tells that a confusion matrix is not that of an epoch; None if it is."""
    matrix, classes = evaluated.confusion, len(data.classes)
    if evaluated.epoch != epoch.epoch:
        return f"it is of epoch {evaluated.epoch}, and in epochs.jsonl that is epoch {epoch.epoch}"
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        return f"it is not {classes} by {classes}, one row and one column for each class"
    images, right = sum(map(sum, matrix)), sum(matrix[label][label] for label in range(classes))
    if images != data.test_images:
        return f"it is of {images:,} images, and {data.test_images:,} were tested"
    if round(epoch.accuracy * images) != right:
        return f"it has {right:,} of {images:,} images right, and epochs.jsonl has an accuracy of {epoch.accuracy:g}"
    if abs(epoch.macro_f1 - _macro_f1(matrix)) > 1e-6:
        return f"its macro-F1 is {_macro_f1(matrix):g}, and epochs.jsonl has {epoch.macro_f1:g}"
    return None


def _macro_f1(matrix: ConfusionMatrix) -> float:
    """Mean F1 over the classes; 0 for one that is neither there nor predicted."""
    predicted = [sum(column) for column in zip(*matrix, strict=True)]
    f1 = [2 * row[label] / max(sum(row) + predicted[label], 1) for label, row in enumerate(matrix)]
    return statistics.fmean(f1)
