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
from PIL import __version__ as pillow_version
from PIL import features

from benchmarks.cifar.folders import Listing
from benchmarks.cifar.pixels import DECODER_VERSION, Decoded
from benchmarks.errors import DataError

_LIBRARIES = ("jpg", "libtiff", "webp")


def cache_path(folder: Path, data_dir: Path, listings: Sequence[Listing]) -> Path:
    """Named by what is in the files, where they are in the folder, and what decodes them.

    Raises:
        DataError: If a file cannot be read.
    """
    decoder = [DECODER_VERSION, pillow_version, *map(features.version, _LIBRARIES)]
    digest = hashlib.sha256(repr(decoder).encode())
    with ThreadPoolExecutor() as pool:
        for listing in listings:
            for path, content in zip(listing.files, pool.map(_digest, listing.files), strict=True):
                digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + content)
    return data_dir / "decoded" / f"{folder.resolve().name}-{digest.hexdigest()[:16]}.npz"


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Replace the file, or delete it") from error


def read_cache(path: Path, splits: Sequence[str]) -> list[Decoded] | None:
    """The images of these splits; None if they are not there, or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [Decoded(arrays[split], arrays[_words_of(split)].tolist()) for split in splits]
    except Exception:  # not there, cut off or damaged: decode again
        return None


def write_cache(path: Path, splits: Sequence[str], decoded: Sequence[Decoded]) -> None:
    """Keep images; where they cannot be written, only the next start is slower for it."""
    arrays: dict[str, Any] = {}
    for split, of_split in zip(splits, decoded, strict=True):
        arrays |= {split: of_split.images, _words_of(split): np.array(of_split.words, np.str_)}
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _words_of(split: str) -> str:
    return f"{split}_words"
