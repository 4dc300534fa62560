"""Where runs are kept: each in a folder of its own while it is made, and all together as records.

    OUT/configuration.json, runs.jsonl, epochs.jsonl    the records (see ``benchmarks.schema``)
    OUT/visits.jsonl                                    attention's visits to each batch, for controls made later
    OUT/work/<run>/record.json                          a run's part of them, and its visits
    OUT/work/<run>/state.pt                             what it resumes from
    OUT/work/<run>/lock                                 held by the process that makes the run
    OUT/work/lock, OUT/work/stop                        held by the command; tells its runs to stop

Every file is written whole beside the old one and put in its place, so a killed command leaves the old or the new one.
The state holds the record too: a run resumes from the state, whatever its record says.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from benchmarks.errors import BenchmarkError, RecordsError, RunIsBeingMade, StorageError
from benchmarks.reading import check_configuration, parse_record, read_configuration, read_lines
from benchmarks.schema import (
    Checked,
    Configuration,
    Epoch,
    OfRun,
    OfVisits,
    Run,
    RunFile,
    RunName,
    SelectionConfiguration,
)


def is_stopped(folder: Path) -> bool:
    """Whether the command told the runs of a folder of records to stop."""
    return (folder / "work" / "stop").exists()


def stop_runs(folder: Path, reason: str) -> None:
    """Tell the runs of a folder of records to stop, on whatever machine they are made."""
    _write_text(folder / "work" / "stop", f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} {reason}\n")


class Storage:
    """The folder of one configuration, which is new where a configuration is given.

    Damaged or foreign records raise ``RecordsError``, a full disk ``StorageError``.
    """

    def __init__(self, folder: Path, configuration: Configuration | SelectionConfiguration | None = None) -> None:
        self.folder = folder
        self.configuration = read_configuration(folder) if configuration is None else configuration
        self._digest = self.configuration.digest()
        self._work = folder / "work"

    @contextmanager
    def opened(self, *, wait_seconds: float = 5) -> Iterator[None]:
        """Keep other commands out of the folder, and take back an earlier command's request to stop."""
        said = f"another command is at work in {self.folder}; wait for it, or give this one another --out"
        with _locked(self._work / "lock", wait_seconds, StorageError(said)):
            self._check_same()
            (self._work / "stop").unlink(missing_ok=True)
            yield

    def locked(self, run: RunName) -> AbstractContextManager[None]:
        """Keep every other process that sees the folder from making a run; ``RunIsBeingMade`` if one is at it."""
        said = f"another process makes {run} in {self.folder}; wait for it to end"
        return _locked(self._path(run, "lock"), 0, RunIsBeingMade(said))

    def _check_same(self) -> None:
        """Refuse a folder of another configuration, or of another program; one that has no runs yet takes this one."""
        if not any(self.folder.glob("*.jsonl")) and not any(self._work.glob("*/*.*")):
            _write_text(self.folder / "configuration.json", self.configuration.model_dump_json(indent=1) + "\n")
        elif (there := read_configuration(self.folder)) != self.configuration:
            old, new = there.model_dump(), self.configuration.model_dump()
            apart = [f"{name} ({old.get(name)!r:.60} there)" for name in new if old.get(name) != new[name]]
            raise RecordsError(
                f"{self.folder} has records of another configuration: {', '.join(apart)}. Give another --out, or the "
                "options that it was made with"
            )

    def save(self, record: RunFile, training_state: dict[str, Any] | None) -> None:
        """Keep a run's record up to now, and what it resumes from."""
        text = record.model_dump_json()
        if training_state is not None:
            state = {"record": text, "training": training_state}
            write_whole(self._path(record.run.run, "state.pt"), lambda file: torch.save(state, file))
        _write_text(self._path(record.run.run, "record.json"), text)

    def load(self, run: RunName) -> tuple[RunFile, dict[str, Any]] | None:
        """What ``save`` kept last, or None."""
        path = self._path(run, "state.pt")
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        record = RunFile.model_validate_json(state["record"])
        check_configuration(path, record.run, self._digest)
        return record, state["training"]

    def forget_state(self, run: RunName) -> None:
        """Delete a run's state, which nothing resumes from any more; its record stays."""
        path = self._path(run, "state.pt")
        path.unlink(missing_ok=True)
        _beside(path).unlink(missing_ok=True)

    def read_run(self, run: RunName) -> RunFile | None:
        """A run's record up to now: from its own folder, else from the records; None if there is none."""
        path = self._path(run, "record.json")
        return self._read_work(path) if path.exists() else self._read_recorded().get(run)

    def read_visits(self, run: RunName) -> list[list[int]]:
        """The visits to each batch of each epoch of a finished run."""
        record = self.read_run(run)
        if record is None or not record.visits:
            raise RecordsError(
                f"{self.folder} has no visits of {run}, which its controls need, neither in visits.jsonl nor in work; "
                "give another --out, and all of its runs are made there"
            )
        return record.visits

    def collect(self) -> dict[RunName, RunFile]:
        """The record of every run: from its own folder, else from the records."""
        records = [self._read_work(path) for path in self._work.glob("*/record.json")]
        return self._read_recorded() | {record.run.run: record for record in records}

    def finished(self) -> set[RunName]:
        """The runs that are finished."""
        return {name for name, record in self.collect().items() if record.run.is_finished}

    def check_place(self, device: str, threads: int) -> None:
        """Refuse to add runs that could not agree bit for bit with those that are there, by the kind of device."""
        wanted = device.partition(":")[0]
        for name, record in self.collect().items():
            for place in record.run.surroundings:
                kind = place.device.partition(":")[0]
                if kind != wanted or (kind == "cpu" and place.threads != threads):
                    raise RecordsError(
                        f"{name} in {self.folder} was made on {kind} with {place.threads} CPU threads, and this "
                        f"command is for {wanted} with {threads}: arms would not start alike. Give --device {kind} "
                        f"--threads {place.threads}, or another --out"
                    )

    def write_records(self) -> None:
        """Put the runs together as records. Runs recorded before stay recorded."""
        records = sorted(self.collect().values(), key=lambda record: _sort_key(record.run.run))
        visits = [
            OfVisits(**record.run.model_dump(include=set(OfRun.model_fields)), visits=record.visits)
            for record in records
            if record.run.arm == "attention" and record.visits
        ]
        # In this order: the next command repairs epochs without their run, but not a run without its epochs.
        files: dict[str, Iterable[Checked]] = {
            "visits": visits,
            "epochs": (epoch for record in records for epoch in record.epochs),
            "runs": (record.run for record in records),
        }
        for name, lines in files.items():
            _write_text(self.folder / f"{name}.jsonl", "".join(line.model_dump_json() + "\n" for line in lines))

    def _read_work(self, path: Path) -> RunFile:
        record = parse_record(path, 1, path.read_text(encoding="utf-8", errors="replace"), RunFile)
        check_configuration(path, record.run, self._digest)
        return record

    def _read_recorded(self) -> dict[RunName, RunFile]:
        if not (self.folder / "runs.jsonl").exists():
            return {}
        epochs: dict[RunName, list[Epoch]] = defaultdict(list)
        for epoch in read_lines(self.folder / "epochs.jsonl", Epoch, self._digest):
            epochs[epoch.run].append(epoch)
        path = self.folder / "visits.jsonl"
        # Records of older versions have no visits.
        visits = {line.run: line.visits for line in read_lines(path, OfVisits, self._digest)} if path.exists() else {}
        runs = read_lines(self.folder / "runs.jsonl", Run, self._digest)
        return {run.run: RunFile(run=run, epochs=epochs[run.run], visits=visits.get(run.run, [])) for run in runs}

    def _path(self, run: RunName, name: str) -> Path:
        return self._work / str(run) / name


def _sort_key(run: RunName) -> tuple[Any, ...]:
    return run.setting or "", run.label_noise, run.seed, run.arm, run.epoch_loss or "", run.rate or 0.0


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside the one that is there, and put it in its place; at a ``StorageError`` the old one stays."""
    new = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of a full disk
        with suppress(OSError):
            new.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageError(
            f"{path} cannot be written: {reason}. What was saved before is intact; make room, or choose a folder that "
            "can be written, and give the same command again to resume"
        ) from error


@contextmanager
def _locked(path: Path, wait_seconds: float, error: BenchmarkError) -> Iterator[None]:
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise error from None
    except OSError as reason:
        raise StorageError(f"{path} cannot be written: {reason.strerror}; give another --out") from reason
    try:
        yield
    finally:
        lock.release()


def _write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")
