"""Finished runs, one line each, and what they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.claiming import refuse_foreign
from benchmarks.errors import PlanError, RecordsError, StorageError
from benchmarks.reading import check_line

SCHEMA_VERSION = 1


class Plan(BaseModel):
    """What all runs of a folder have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    data: str
    data_sha256: str
    updates: int
    batch_size: int
    imbalance: float
    images: int | None


class KindsPlan(BaseModel):
    """What all runs of a folder of benchmarks.selection.kinds have in common: the sizes of each kind of data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    settings: dict[str, dict[str, float]]


class Run(BaseModel):
    """One finished run; the numbers are those of ``training.Outcome``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    setting: str
    arm: str
    seed: int
    accuracy: float
    macro_f1: float
    recalls: list[float]
    counts: list[int]
    train_loss: float
    updates: int
    forward_samples: int
    extra_updates: int
    left_out: int
    seconds: float
    environment: dict[str, Any]
    # Of benchmarks.selection.kinds alone; ``score`` is accuracy, or of text minus the mean loss over sorts.
    rate: float | None = None
    learning_rate: float | None = None
    score: float | None = None
    validation: float | None = None
    group_losses: list[float] | None = None
    doses: dict[str, Any] | None = None
    data_sha256: str | None = None

    @property
    def name(self) -> tuple[str | int | float, ...]:
        """Which run it is."""
        name = self.setting, self.seed, self.arm
        return name if self.rate is None else (*name, self.rate)

    @property
    def rarest_third(self) -> float:
        """Mean recall, in per cent, of the rarest third of the kinds; of all of them where they are balanced."""
        by_count = sorted(zip(self.counts, self.recalls, strict=True))
        rare = by_count if self.counts.count(self.counts[0]) == len(self.counts) else by_count[: len(by_count) // 3]
        return sum(recall for _, recall in rare) / len(rare)


class Folder:
    """A folder of records, which several processes may add to.

    Args:
        path: The folder; made if it is not there.
        plan: The kind of plan that it has.
    """

    def __init__(self, path: Path, plan: type[Plan] | type[KindsPlan] = Plan) -> None:
        self.path = path
        self._plan = plan
        self._runs = path / "runs.jsonl"
        self._lock = FileLock(path / ".lock")

    def open(self, plan: Plan | KindsPlan) -> None:
        """Begin records, or go on with those of the same plan.

        Raises:
            PlanError: If what is there was made with another.
            RecordsError: If what is there is damaged.
            StorageError: If the folder cannot be made or written to, or has runs of another program.
        """
        file = self.path / "plan.json"
        refuse_foreign(self.path, (self._runs.name,), file.name, "--out")
        if file.exists():
            self.read_plan()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock:
                if not file.exists():
                    file.write_text(plan.model_dump_json(indent=1) + "\n", encoding="utf-8")
                before = self.read_plan()
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written to ({error}); give another --out") from error
        if before != plan:
            differing = [name for name in self._plan.model_fields if getattr(before, name) != getattr(plan, name)]
            raise PlanError(f"{self.path} was begun with other {', '.join(differing)}; give the same, or another --out")

    def read_plan(self) -> Plan | KindsPlan:
        """What the runs were made with.

        Raises:
            RecordsError: If that is missing or damaged.
        """
        file = self.path / "plan.json"
        try:
            return self._plan.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise RecordsError(f"{file} is no plan of benchmarks.selection: {error}") from error

    def read_runs(self) -> list[Run]:
        """The finished runs, in the order of their names.

        Raises:
            RecordsError: If a line is none, a run is there twice, or the file cannot be read.
        """
        try:
            lines = self._runs.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise RecordsError(f"{self._runs} cannot be read: {error}") from error
        runs: dict[tuple[str | int | float, ...], Run] = {}
        for number, line in enumerate(lines, start=1):
            check_line(f"{self._runs}, line {number}", line)
            try:
                run = Run.model_validate_json(line)
            except ValidationError as error:
                raise RecordsError(f"{self._runs}, line {number} is not a finished run; take the line out") from error
            if run.name in runs:
                raise RecordsError(f"{self._runs}, line {number} is a run that is there already: {run.name}")
            runs[run.name] = run
        return [runs[name] for name in sorted(runs)]

    def add(self, run: Run) -> None:
        """Keep a finished run, unless another process has kept it meanwhile.

        Raises:
            RecordsError: If what is there is damaged.
            StorageError: If it cannot be written.
        """
        line = json.dumps(run.model_dump(exclude_defaults=True), separators=(",", ":")) + "\n"
        try:
            with self._lock:
                if run.name in {kept.name for kept in self.read_runs()}:
                    return
                with self._runs.open("a", encoding="utf-8") as file:
                    file.write(line)
        except OSError as error:
            raise StorageError(f"{self._runs} cannot be written to ({error}); the run is lost") from error
