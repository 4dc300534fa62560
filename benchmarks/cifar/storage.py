"""Where runs are kept: each in a folder of its own while it is made, and all together as records.

    OUT/configuration.json, runs.jsonl, epochs.jsonl    the records (see ``benchmarks.schema``)
    OUT/work/<run>/record.json                          a run's part of them, and its visits
    OUT/work/<run>/state.pt                             what it goes on from

Every file is written whole beside the old one and put in its place, so a command that is killed leaves the old or
the new one. The state holds the record too: it is what counts, and the record is a copy that is quick to read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from benchmarks.errors import RecordsError, StorageError
from benchmarks.schema import Configuration, Epoch, Run, RunName, read_configuration, read_lines


class Storage:
    """The folder of one configuration.

    Args:
        folder: May exist or not.
        configuration: Of all runs in it.

    Raises:
        RecordsError: If the folder is of another configuration.
        StorageError: If it cannot be written.
    """

    def __init__(self, folder: Path, configuration: Configuration) -> None:
        self.folder = folder
        self._digest = configuration.digest()
        self._work = folder / "work"
        if (folder / "configuration.json").exists():
            _check_same(folder, read_configuration(folder), configuration)
        else:
            text = configuration.model_dump_json(indent=1) + "\n"
            _write_whole(folder / "configuration.json", lambda file: file.write(text.encode()))

    @contextmanager
    def locked(self, *, wait_seconds: float = 5) -> Iterator[None]:
        """Keep other commands out of the folder. The processes of one that was killed may need a moment to end.

        Raises:
            StorageError: If one is in it.
        """
        lock = FileLock(self._work / "lock")
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait_seconds)
        except Timeout as error:
            raise StorageError(
                f"another command is at work in {self.folder}; wait for it, or give this one another --out"
            ) from error
        except OSError as error:
            raise StorageError(f"{self._work} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    # One run -------------------------------------------------------------------------------------------

    def save(self, run: RunName, state: dict[str, Any]) -> None:
        """Keep what a run goes on from. ``state["record"]`` is its record up to now, as JSON types."""
        folder = self._work / str(run)
        _write_whole(folder / "state.pt", lambda file: torch.save(state, file))
        self.write_record(run, state["record"])

    def write_record(self, run: RunName, record: dict[str, Any]) -> None:
        """Write a run's record up to now, as JSON types."""
        text = json.dumps(record, separators=(",", ":"))
        _write_whole(self._work / str(run) / "record.json", lambda file: file.write(text.encode()))

    def load(self, run: RunName) -> dict[str, Any] | None:
        """What ``save`` kept last, or None.

        Raises:
            RecordsError: If it is of another configuration, or cannot be read.
        """
        path = self._work / str(run) / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            configuration = state["record"]["run"]["configuration"]
        except Exception as error:  # torch.load raises many kinds
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RecordsError(f"{path} cannot be read: {reason} Delete it, and the run begins anew") from error
        if configuration != self._digest:
            raise RecordsError(
                f"{path} is of configuration {configuration}, and this is {self._digest}; delete it, or give the "
                "command that made it"
            )
        return state

    def forget_state(self, run: RunName) -> None:
        """The run is finished and nothing goes on from it any more; its record stays."""
        (self._work / str(run) / "state.pt").unlink(missing_ok=True)

    def read_visits(self, run: RunName) -> list[list[int]]:
        """The visits to each batch of each epoch of a finished run.

        Raises:
            RecordsError: If they are gone, as where only the records of a run were kept.
        """
        path = self._work / str(run) / "record.json"
        if not path.exists():
            raise RecordsError(
                f"{path} is gone, and with it the visits of {run}, which its controls need; give "
                "another --out, and all of its runs are made there"
            )
        visits: list[list[int]] = _parse_record(path)["visits"]
        return visits

    # All runs ------------------------------------------------------------------------------------------

    def finished(self) -> set[RunName]:
        """The runs that need not be made."""
        return {run.run for run, _ in self._collect().values() if run.is_finished}

    def check_place(self, device: torch.device, threads: int) -> None:
        """Refuse to add runs that could not agree bit for bit with those that are there.

        Raises:
            RecordsError: If these were made on another kind of device, or with another number of CPU threads.
        """
        for run, _ in self._collect().values():
            for place in run.surroundings:
                kind = torch.device(place.device).type
                if kind != device.type or (kind == "cpu" and place.threads != threads):
                    raise RecordsError(
                        f"{run.run} in {self.folder} was made on {kind} with {place.threads} CPU threads, and this "
                        f"command is for {device.type} with {threads}: arms would not begin alike. Give --device "
                        f"{kind} --threads {place.threads}, or another --out"
                    )

    def write_records(self) -> None:
        """Put the runs together as ``runs.jsonl`` and ``epochs.jsonl``. Runs recorded before stay recorded."""
        records = [record for _, record in sorted(self._collect().items(), key=lambda item: _sort_key(item[0]))]
        runs = "".join(run.model_dump_json() + "\n" for run, _ in records)
        epochs = "".join(epoch.model_dump_json() + "\n" for _, epochs in records for epoch in epochs)
        _write_whole(self.folder / "runs.jsonl", lambda file: file.write(runs.encode()))
        _write_whole(self.folder / "epochs.jsonl", lambda file: file.write(epochs.encode()))

    def _collect(self) -> dict[RunName, tuple[Run, list[Epoch]]]:
        collected: dict[RunName, tuple[Run, list[Epoch]]] = {}
        if (self.folder / "runs.jsonl").exists():
            epochs = read_lines(self.folder / "epochs.jsonl", Epoch)
            for run in read_lines(self.folder / "runs.jsonl", Run):
                collected[run.run] = run, [epoch for epoch in epochs if epoch.run == run.run]
        for path in sorted(self._work.glob("*/record.json")):
            record = _parse_record(path)
            run = Run.model_validate_json(json.dumps(record["run"]))
            if run.configuration != self._digest:
                raise RecordsError(
                    f"{path} is of configuration {run.configuration}, and the folder of {self._digest}; delete "
                    f"{path.parent}, or move it to where it belongs"
                )
            collected[run.run] = run, [Epoch.model_validate_json(json.dumps(epoch)) for epoch in record["epochs"]]
        return collected


def _parse_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordsError(f"{path} cannot be read: {error}. Delete {path.parent}, and the run begins anew") from error
    return record


def _sort_key(run: RunName) -> tuple[Any, ...]:
    return run.label_noise, run.seed, run.arm, run.epoch_loss or ""


def _check_same(folder: Path, there: Configuration, ours: Configuration) -> None:
    old, new = there.model_dump(), ours.model_dump()
    apart = [f"{name} ({old[name]!r:.60} there, {new[name]!r:.60} now)" for name in new if old[name] != new[name]]
    if apart:
        raise RecordsError(
            f"{folder} has records of another configuration: {', '.join(apart)}. Give another --out, or the options "
            "that it was made with"
        )


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of a full disk
        temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageError(
            f"{path} cannot be written: {reason}. The epochs before are safe; make room or choose a folder that can be "
            "written, and give the same command again to go on"
        ) from error
