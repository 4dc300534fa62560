"""The newest records of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "records"


def find_newest(name: str) -> Path:
    """The newest ``benchmarks/records/<date>-<name>/``."""
    folders = sorted(RECORDS.glob(f"????-??-??-{name}"))
    if not folders:
        raise SystemExit(f"no records of {name!r} in {RECORDS}; the module's docstring says how to make them")
    return folders[-1]


def read_newest(name: str) -> list[dict[str, Any]]:
    """Its JSON lines."""
    paths = sorted(find_newest(name).glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
