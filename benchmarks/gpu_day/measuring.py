"""Measurements, each recorded as it is there: python -m benchmarks.gpu_day.measuring --record FILE [--dry-run].

In a process of its own, so that one that breaks the device, or takes too long, takes nothing else with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.environment import describe_environment
from benchmarks.gpu_day.plan import DRY, FULL, Item
from benchmarks.studies.device_loop import check_equality, measure_rows, measure_together


def read_rows(record: Path) -> list[dict[str, Any]]:
    """What was recorded; a line that a process was stopped in is none."""
    rows = []
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def missing(items: Iterable[Item], rows: list[dict[str, Any]]) -> list[Item]:
    """The measurements that are neither made nor failed."""
    there = {row["item"] for row in rows}
    return [item for item in items if item.key not in there]


def measure_item(item: Item, device: torch.device) -> list[dict[str, Any]]:
    """The rows of one measurement."""
    if item.kind == "update":
        assert item.setting is not None
        return list(measure_rows(item.model, device, item.batches, item.rounds, item.setting))
    if item.kind == "together":
        return [measure_together(item.model, device, item.batches, item.runs)]
    return [check_equality(item.model, device, item.batches)]


def append_rows(record: Path, item: Item, rows: list[dict[str, Any]], environment: dict[str, Any]) -> None:
    """Record all rows of a measurement, in one piece."""
    text = "".join(json.dumps({"item": item.key, **row, "environment": environment}) + "\n" for row in rows)
    # A line that a process was stopped in would take the next along.
    is_cut = record.exists() and record.read_bytes()[-1:] not in (b"", b"\n")
    with record.open("a", encoding="utf-8") as file:
        file.write("\n" * is_cut + text)


def measure(record: Path, *, dry_run: bool = False) -> None:
    """Make the measurements that ``record`` has not.

    Args:
        record: Gets JSON lines.
        dry_run: On the CPU, at tiny size.
    """
    # Only cuBLAS reads this, and only when it is set up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    plan = DRY if dry_run else FULL
    device = torch.device(plan.device)
    environment = describe_environment(plan.device)
    for item in missing(plan.items(), read_rows(record)):
        print(item.key, flush=True)
        append_rows(record, item, measure_item(item, device), environment)


if __name__ == "__main__":
    tyro.cli(measure, description=__doc__)
