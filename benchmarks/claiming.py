"""Whether a folder is one that a command made itself, before the command writes there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from benchmarks.errors import StorageError


def refuse_foreign(folder: Path, names: Iterable[str], mark: str, option: str, *, begin: str = "") -> None:
    """Refuse a folder with files under the names that a command writes, but without the mark of its own folders.

    Args:
        folder: May exist or not.
        names: All that the command writes there.
        mark: The file that is in every folder of the command.
        option: The option that names the folder.
        begin: How the text of the mark begins.

    Raises:
        StorageError: If one of the names is taken, and there is no mark.
    """
    taken = [name for name in names if os.path.lexists(folder / name)]
    # Looked for last: another process of the same command makes it first.
    if taken and not _begins_with(folder / mark, begin):
        raise StorageError(
            f"{folder} has {', '.join(taken)} but no {mark} of this command: another program may own them, and this "
            f"command would write there. Give another {option}, or move them away"
        )


def _begins_with(path: Path, begin: str) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(begin.encode())) == begin.encode()
    except OSError:
        return False
