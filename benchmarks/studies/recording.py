"""What the studies share: sides that take turns, and a record of raw numbers with where they were measured."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment


def keep(record: Path, lines: Iterable[dict[str, Any]], device: str | None = "cpu") -> None:
    """Append each line to a file of JSON lines as it comes, with the environment, and print it with medians."""
    record.parent.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(device)
    with record.open("a", encoding="utf-8") as file:
        for line in lines:
            print(_shorten(line))
            file.write(json.dumps({**line, "environment": environment}) + "\n")
            file.flush()


def _shorten(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shorten(each) for name, each in value.items()}
    return round(statistics.median(value), 3) if isinstance(value, list) else value


def alternate(rounds: int, **sides: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides take turns, after one round to warm up.

    The times of a shared machine wander, and the ratio of two sides does not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds
