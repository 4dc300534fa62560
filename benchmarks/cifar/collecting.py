"""What is known of each run: from the records, and from the runs' own folders."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from benchmarks.errors import RecordsError
from benchmarks.reading import check_configuration, parse_record, read_lines
from benchmarks.schema import Epoch, OfRun, OfVisits, Run, RunFile, RunName

VISITS = "visits.jsonl"

Line = TypeVar("Line", bound=OfRun)


def collect(folder: Path, work: Path, digest: str) -> dict[RunName, RunFile]:
    """All that is known of each run; visits are kept for attention runs alone once ``work`` is gone.

    What can be made good is: a record that cannot be read is taken from its run's state, and records that do not hold
    together from ``work``, if all of their runs are there.

    Args:
        folder: Of the records.
        work: Of the runs.
        digest: Of the folder's configuration.

    Raises:
        RecordsError: If something is of another configuration, or is damaged and nowhere else.
    """
    kept, damaged = _collect_kept(work, digest)
    try:
        recorded = _collect_recorded(folder, digest)
    except RecordsError:
        # Where every run of it is kept, the record is made anew of them.
        if damaged or not _is_record_of(folder, set(kept), digest):
            raise
        recorded = {}
    for path, error in damaged.items():
        if path.parent.name not in map(str, recorded):
            raise RecordsError(f"{error}. Or delete {path.parent}, and this run begins anew") from error
    return {**recorded, **kept}


def _collect_kept(work: Path, digest: str) -> tuple[dict[RunName, RunFile], dict[Path, RecordsError]]:
    """Each run's record in ``work``; and those that cannot be read, where no state has them either."""
    kept: dict[RunName, RunFile] = {}
    damaged: dict[Path, RecordsError] = {}
    for path in sorted(work.glob("*/record.json")):
        state = path.with_name("state.pt")
        try:
            record = parse_record(path, 1, path.read_bytes(), RunFile)
        except RecordsError as error:
            if not state.exists():
                damaged[path] = error
                continue
            record, _ = load_state(state, digest)
        check_configuration(path, record.run, digest)
        kept[record.run.run] = record
    return kept, damaged


def _collect_recorded(folder: Path, digest: str) -> dict[RunName, RunFile]:
    """The runs of runs.jsonl.

    Raises:
        RecordsError: If the records do not hold together.
    """
    if not (folder / "runs.jsonl").exists():
        return {}
    epochs: dict[RunName, list[Epoch]] = defaultdict(list)
    for epoch in _read_lines(folder / "epochs.jsonl", Epoch, digest):
        epochs[epoch.run].append(epoch)
    has_visits = (folder / VISITS).exists()  # records of older versions have none
    visits = {line.run: line.visits for line in _read_lines(folder / VISITS, OfVisits, digest)} if has_visits else {}
    recorded = {}
    for run in _read_lines(folder / "runs.jsonl", Run, digest):
        if run.last.epoch != len(epochs[run.run]):
            raise RecordsError(
                f"{folder}: {run.run} has {len(epochs[run.run])} epochs in epochs.jsonl, and runs.jsonl says "
                f"{run.last.epoch}; take its line out of runs.jsonl and its lines out of epochs.jsonl, and it is "
                "made again"
            )
        recorded[run.run] = RunFile(run=run, epochs=epochs[run.run], visits=visits.get(run.run, []))
    return recorded


def _is_record_of(folder: Path, kept: set[RunName], digest: str) -> bool:
    """Whether runs.jsonl has no other runs than these, as far as its lines can be read."""
    lines = (folder / "runs.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    names = set()
    for line in lines:
        with suppress(ValidationError):
            run = Run.model_validate_json(line)
            if run.configuration != digest:
                return False
            names.add(run.run)
    return names <= kept and len(lines) <= len(kept)


def load_state(path: Path, digest: str) -> tuple[RunFile, dict[str, Any]]:
    """A run's record and its loop's state.

    Raises:
        RecordsError: If it is of another configuration, or cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        text, loop_state = state["record"], state["loop"]
    except Exception as error:  # torch.load raises many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordsError(f"{path} cannot be read: {reason} Delete it, and the run begins anew") from error
    record = parse_record(path, 1, text, RunFile)
    check_configuration(path, record.run, digest)
    return record, loop_state


def _read_lines(path: Path, kind: type[Line], digest: str) -> list[Line]:
    lines = read_lines(path, kind)
    for line in lines:
        check_configuration(path, line, digest)
    return lines
