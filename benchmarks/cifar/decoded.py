"""Decoded images, kept so that the next command need not decode them again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import __version__ as pillow_version

from benchmarks.cifar.folders import DECODER_VERSION, Listing
from benchmarks.errors import DataError

Arrays = dict[str, NDArray[Any]]


def cache_path(folder: Path, data_dir: Path, listings: Sequence[Listing]) -> Path:
    """Named by what is in the files, where they are in the folder, and what decodes them.

    Raises:
        DataError: If a file cannot be read.
    """
    digest = hashlib.sha256(f"{DECODER_VERSION}\0{pillow_version}\n".encode())
    with ThreadPoolExecutor() as pool:
        for listing in listings:
            for path, content in zip(listing.files, pool.map(_digest, listing.files), strict=True):
                digest.update(f"{path.relative_to(folder)}\0".encode(errors="surrogateescape") + content)
    return data_dir / "decoded" / f"{folder.resolve().name}-{digest.hexdigest()[:16]}.npz"


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError as error:
        raise DataError(f"{path} is a link to a file that is not there. Delete the link") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def read_cache(path: Path, names: Sequence[str]) -> Arrays | None:
    """The arrays of these names; None if they are not there, or damaged."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception:  # cut off or damaged: decode again
        return None


def write_cache(path: Path, arrays: Arrays) -> None:
    """Keep arrays; where they cannot be written, only the next start is slower for it."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    kept: dict[str, Any] = {**arrays}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **kept)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
