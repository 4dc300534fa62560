"""A day's results: a few files of a size that travels, and a short table."""

from __future__ import annotations

import io
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.claiming import refuse_foreign
from benchmarks.gpu_day.measuring import missing, read_rows
from benchmarks.gpu_day.plan import Plan
from benchmarks.studies.device_loop import show
from benchmarks.text import visible

# What comes back from a machine that is lent.
MOST_FILES = 8
MOST_BYTES = 16 * 2**20
TABLE = "table.txt"
_RECORDS = ("configuration.json", "runs.jsonl", "epochs.jsonl", "visits.jsonl")
# As they are called in the folder that is worked in, and in that of the results. With the table there are eight.
FILES = {
    "tests.txt": "tests.txt",
    "rows.jsonl": "rows.jsonl",
    "records.log": "records.log",
    **{f"records/{name}": name for name in _RECORDS},
}

_TESTS = "GPU tests: "
# What is written over in the folder that is worked in, and the mark of such a folder.
LOGS = ("tests.log", "rows.log", "records.log")
MARK = "gpu_day.mark"


def claim(results: Path, work: Path) -> None:
    """Refuse folders of other programs, and mark the one that is worked in.

    Raises:
        StorageError: If one has files under the names of ours, and is not known to be ours.
    """
    refuse_foreign(results, (*FILES.values(), TABLE), TABLE, "--out", begin=_TESTS)
    refuse_foreign(work, LOGS, MARK, "--work")
    work.mkdir(parents=True, exist_ok=True)
    (work / MARK).touch()


def take_up(results: Path, work: Path) -> None:
    """Put results of an earlier call where they are gone on from, unless there are some."""
    for inside, name in FILES.items():
        source, target = results / name, work / inside
        if source.exists() and not target.exists() and not inside.endswith(".log"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def hand_over(work: Path, results: Path) -> list[str]:
    """Copy the results; return the names of those that are too large to travel."""
    results.mkdir(parents=True, exist_ok=True)
    too_large = []
    for inside, name in FILES.items():
        source = work / inside
        if not source.exists():
            continue
        if source.stat().st_size > MOST_BYTES:
            too_large.append(name)
        else:
            shutil.copyfile(source, results / name)
    return too_large


def write_table(plan: Plan, work: Path, results: Path, too_large: list[str]) -> str:
    """The short table, as text; it is written beside the results too."""
    text = io.StringIO()
    console = Console(file=text, width=120, color_system=None)
    console.print(f"{_TESTS}{_of_tests(work / 'tests.txt')}", highlight=False, markup=False)
    _show_rows(plan, read_rows(work / "rows.jsonl"), console)
    _show_records(work / "records", console)
    if (said := _of_records(work / "records.log")) is not None:
        console.print(f"records of ResNet34: {said}", highlight=False, markup=False)
    for name in too_large:
        console.print(f"{name} is larger than {MOST_BYTES >> 20} MiB, and stays in {work}", markup=False)
    shown = visible(text.getvalue())
    (results / TABLE).write_text(shown, encoding="utf-8")
    return shown


def _of_tests(path: Path) -> str:
    if not path.exists():
        return "have not come to their end yet"
    return ", ".join(line.strip("= ") for line in _lines_of(path)[-2:]) or "left no word"


def _of_records(log: Path) -> str | None:
    """What went wrong, if something did."""
    *_, said, status = ["", "", *(_lines_of(log) if log.exists() else [])]
    return f"{said.strip()}, {status}" if status.startswith("exit status") and status != "exit status 0" else None


def _lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _show_rows(plan: Plan, rows: list[dict[str, Any]], console: Console) -> None:
    show([row for row in rows if row["kind"] != "failed"], console)
    for row in rows:
        if row["kind"] == "failed":
            console.print(f"{row['item']} failed: {row['why']}", markup=False)
    left = missing(plan.items(), rows)
    if left:
        console.print(f"{len(left)} measurements are still to be made; the same command goes on", markup=False)


def _show_records(records: Path, console: Console) -> None:
    table = Table("records", "seed", "epochs", "updates", "seconds", "accuracy", "finished")
    is_finished = {_name(run): run["is_finished"] for run in read_rows(records / "runs.jsonl")}
    epochs: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for epoch in read_rows(records / "epochs.jsonl"):
        epochs[_name(epoch)].append(epoch)
    for name, of_run in sorted(epochs.items(), key=lambda item: (item[0][1], item[0][0])):
        updates, seconds = sum(epoch["updates"] for epoch in of_run), sum(epoch["seconds"] for epoch in of_run)
        accuracy = f"{100 * of_run[-1]['accuracy']:.2f} %"
        finished = "yes" if is_finished.get(name) else "no"
        table.add_row(name[0], str(name[1]), str(len(of_run)), f"{updates:,}", f"{seconds:.0f}", accuracy, finished)
    console.print(table if epochs else "no epoch of ResNet34 is recorded yet")


def _name(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["arm"], line["seed"], line["epoch_loss"], line["label_noise"]
