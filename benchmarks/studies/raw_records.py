"""The raw records of a study: a JSON line each, with where it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def keep(
    record: Path, lines: Iterable[dict[str, Any]], environment: dict[str, Any], *, is_appended: bool = False
) -> None:
    """Write each line as it is there.

    Args:
        record: The file; its folder is made.
        lines: As they come.
        environment: Of all of them.
        is_appended: Whether what the file holds already stays.
    """
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a" if is_appended else "w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps({**line, "environment": environment}) + "\n")
            file.flush()
