"""Reading the raw records of the CIFAR benchmarks, with every check that they have to pass."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from benchmarks.errors import RecordsError
from benchmarks.schema import SCHEMA_VERSION, Checked, Configuration, Epoch, OfRun, Run, RunName


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
            than the folder, or a run's epochs do not follow each other.
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
    return [
        parse_record(path, number, line, kind) for number, line in enumerate(_read_text(path).splitlines(), start=1)
    ]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordsError(
            f"{path} cannot be read ({reason}); records are made by python -m benchmarks.cifar --out FOLDER"
        ) from error


def parse_record(path: Path, number: int, text: str | bytes, kind: type[Record]) -> Record:
    """A record from its JSON.

    Raises:
        RecordsError: If it is not what the schema says.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole line"
        raise RecordsError(
            f"{path}, line {number} does not fit schema version {SCHEMA_VERSION}: {where}: {first['msg']}. Make the "
            "records with this version of the benchmark, or read them with the one that made them"
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
