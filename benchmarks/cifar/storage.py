"""Where runs are kept: each in a folder of its own while it is made, and all together as records.

    OUT/configuration.json, runs.jsonl, epochs.jsonl    the records (see ``benchmarks.schema``)
    OUT/visits.jsonl                                    attention's visits to each batch, for controls made later
    OUT/work/<run>/record.json                          a run's part of them, and its visits
    OUT/work/<run>/state.pt                             what it goes on from

Every file is written whole beside the old one and put in its place, so a command that is killed leaves the old or
the new one. The state holds the record too: it is what counts, and the record is a copy that is quick to read.

Nothing is deleted or replaced in a folder that is not known to be one of these: that of others may be called ``work``
too. What is deleted has a name that only this module writes, and is not behind a link.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from benchmarks.cifar.collecting import VISITS, collect, load_state
from benchmarks.cifar.stopping import term_waits
from benchmarks.claiming import refuse_foreign
from benchmarks.errors import RecordsError, StorageError
from benchmarks.reading import read_configuration
from benchmarks.schema import ARMS, Checked, Configuration, OfRun, OfVisits, RunFile, RunName

_CONFIGURATION, _EPOCHS, _RUNS, _WORK = "configuration.json", "epochs.jsonl", "runs.jsonl", "work"
_RECORD, _STATE = "record.json", "state.pt"
# The folder of a run, and what is left of one of its files by a command that was killed while it wrote it.
_RUN_FOLDER = re.compile(rf"({'|'.join(ARMS)})(-(first|last|all))?-noise\d+-seed-?\d+")
_HALF_WRITTEN = re.compile(rf"\.({re.escape(_RECORD)}|{re.escape(_STATE)})\.\d+")


class Storage:
    """The folder of one configuration.

    Args:
        folder: May exist or not.
        configuration: Of all runs in it.
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        self.folder = folder
        self._configuration = configuration
        self._digest = configuration.digest()
        self._work = folder / _WORK

    @contextmanager
    def opened(self, *, wait_seconds: float = 5) -> Iterator[None]:
        """Keep other commands out of the folder. The processes of one that was killed may need a moment to end.

        Raises:
            RecordsError: If the folder has records of another configuration.
            StorageError: If it has files of others under the names of ours, another command is in it, or it cannot
                be written.
        """
        self._check_is_ours()
        lock = FileLock(self._work / "lock")
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_seconds)
        except Timeout as error:
            raise StorageError(
                f"another command is at work in {self.folder}; wait for it, or give this one another --out"
            ) from error
        except OSError as error:
            raise StorageError(f"{self._work} cannot be written: {error.strerror}; give another --out") from error
        try:
            self._claim()
            self._clear_half_written()
            yield
        finally:
            lock.release()

    def _check_is_ours(self) -> None:
        """Refuse a folder of others, before anything is written there; mark a new one as ours."""
        refuse_foreign(self.folder, (_WORK, _RUNS, _EPOCHS, VISITS, _CONFIGURATION), _CONFIGURATION, "--out")
        if not (self.folder / _CONFIGURATION).exists():
            # Before ``work`` is made: a command that is killed here leaves a folder that the next one knows.
            self._write_configuration()
        try:
            read_configuration(self.folder)
        except RecordsError as error:
            raise RecordsError(f"{self.folder} is not a folder of records: {error}. Or give another --out") from error

    def _claim(self) -> None:
        has_records = (self.folder / _RUNS).exists() or any(self._work.glob("*/*.*"))
        if has_records:
            _check_same(self.folder, read_configuration(self.folder), self._configuration)
        else:
            self._write_configuration()

    def _write_configuration(self) -> None:
        text = self._configuration.model_dump_json(indent=1) + "\n"
        write_whole(self.folder / _CONFIGURATION, lambda file: file.write(text.encode()))

    def _clear_half_written(self) -> None:
        for folder in self._work.iterdir():
            if not _RUN_FOLDER.fullmatch(folder.name) or not folder.is_dir():
                continue
            for path in folder.iterdir():
                if _HALF_WRITTEN.fullmatch(path.name):
                    self._delete(path)

    def _delete(self, path: Path) -> None:
        """Delete a file of a run's folder, unless it is behind a link, or is one."""
        if not any(each.is_symlink() for each in (self._work, path.parent, path)):
            path.unlink(missing_ok=True)

    # One run -------------------------------------------------------------------------------------------

    def save(self, record: RunFile, loop_state: dict[str, Any]) -> None:
        """Keep what a run goes on from.

        Raises:
            StorageError: If it cannot be written.
        """
        path = self._path(record.run.run, _STATE)
        state = {"record": record.model_dump_json(), "loop": loop_state}
        write_whole(path, lambda file: torch.save(state, file))
        self.write_record(record)

    def write_record(self, record: RunFile) -> None:
        """Keep a run's record up to now.

        Raises:
            StorageError: If it cannot be written.
        """
        text = record.model_dump_json()
        write_whole(self._path(record.run.run, _RECORD), lambda file: file.write(text.encode()))

    def load(self, run: RunName) -> tuple[RunFile, dict[str, Any]] | None:
        """What ``save`` kept last, or None.

        Raises:
            RecordsError: If it is of another configuration, or cannot be read.
        """
        path = self._path(run, _STATE)
        return load_state(path, self._digest) if path.exists() else None

    def forget_state(self, run: RunName) -> None:
        """Nothing goes on from this run any more; its record stays."""
        self._delete(self._path(run, _STATE))

    def read_visits(self, run: RunName) -> list[list[int]]:
        """The visits to each batch of each epoch of a finished run.

        Raises:
            RecordsError: If they are gone, as where only the records of a run were kept.
        """
        path = self._path(run, _RECORD)
        record = self._collect().get(run)
        if record is None or not record.visits:
            raise RecordsError(
                f"neither {path} nor {self.folder / VISITS} has the visits of {run}, which its controls need; give "
                "another --out, and all of its runs are made there"
            )
        if [(len(visits), sum(visits)) for visits in record.visits] != [(e.batches, e.updates) for e in record.epochs]:
            raise RecordsError(
                f"{self.folder}: the visits of {run} in {VISITS} are not those that epochs.jsonl tells of; copy all "
                "files from the same place"
            )
        return record.visits

    # All runs ------------------------------------------------------------------------------------------

    def finished(self) -> set[RunName]:
        """The runs that need not be made."""
        return {name for name, record in self._collect().items() if record.run.is_finished}

    def check_place(self, device: torch.device, threads: int) -> None:
        """Refuse to add runs that could not agree bit for bit with those that are there.

        Raises:
            RecordsError: If these were made on another kind of device, or with another number of CPU threads.
        """
        for name, record in self._collect().items():
            for place in record.run.surroundings:
                kind = torch.device(place.device).type
                if kind != device.type or (kind == "cpu" and place.threads != threads):
                    raise RecordsError(
                        f"{name} in {self.folder} was made on {kind} with {place.threads} CPU threads, and this "
                        f"command is for {device.type} with {threads}: arms would not begin alike. Give --device "
                        f"{kind} --threads {place.threads}, or another --out"
                    )

    def write_records(self) -> None:
        """Put the runs together as records. Runs recorded before stay recorded. TERM has to wait for as long.

        Raises:
            StorageError: If they cannot be written.
        """
        with term_waits():
            records = [record for _, record in sorted(self._collect().items(), key=lambda item: _sort_key(item[0]))]
            # In this order: epochs without their run are made good by the next command, a run without epochs is not.
            self._write_lines(VISITS, map(_visits_of, filter(_is_attention, records)))
            self._write_lines(_EPOCHS, (epoch for record in records for epoch in record.epochs))
            self._write_lines(_RUNS, (record.run for record in records))

    def _write_lines(self, name: str, lines: Iterable[Checked]) -> None:
        text = "".join(line.model_dump_json() + "\n" for line in lines)
        write_whole(self.folder / name, lambda file: file.write(text.encode()))

    def _collect(self) -> dict[RunName, RunFile]:
        return collect(self.folder, self._work, self._digest)

    def _path(self, run: RunName, name: str) -> Path:
        return self._work / str(run) / name


def _is_attention(record: RunFile) -> bool:
    return record.run.arm == "attention" and bool(record.visits)


def _visits_of(record: RunFile) -> OfVisits:
    return OfVisits(**record.run.model_dump(include=set(OfRun.model_fields)), visits=record.visits)


def _sort_key(run: RunName) -> tuple[Any, ...]:
    return run.label_noise, run.seed, run.arm, run.epoch_loss or ""


def _check_same(folder: Path, there: Configuration, ours: Configuration) -> None:
    old, new = there.model_dump(), ours.model_dump()
    # Field by field, or what differs in the data could be past what is shown.
    old, new = ({**fields.pop("data"), **fields} for fields in (old, new))
    apart = [f"{name} ({old[name]!r:.60} there, {new[name]!r:.60} now)" for name in new if old[name] != new[name]]
    if apart:
        raise RecordsError(
            f"{folder} has records of another configuration: {', '.join(apart)}. Give another --out, or the options "
            "that it was made with"
        )


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside the one that is there, and put it in its place.

    Raises:
        StorageError: If it cannot be written; then the old one stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of a full disk
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if isinstance(error, RuntimeError):
            # What torch says of a full disk is where it was in its file.
            reason = f"{shutil.disk_usage(path.parent).free:,} bytes are free there ({reason})"
        raise StorageError(
            f"{path} cannot be written: {reason}. The epochs before are safe; make room or choose a folder that can be "
            "written, and give the same command again to go on"
        ) from error
