"""Reading a folder of images: which files are images of which class, and their pixels."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from benchmarks.errors import DataError

Say = Callable[[str], None]

# To be raised whenever files would be decoded to other pixels than before.
DECODER_VERSION = 2
# A 16-bit value is 257 times the 8-bit one that it stands for.
_TO_8_BITS = 257
_GREY_16_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}
_WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating-point numbers"}


class Listing(NamedTuple):
    """The images of a split.

    Attributes:
        folder: Of the split.
        classes: Their names, sorted.
        files: Sorted by class and name.
        labels: int64, (files,).
    """

    folder: Path
    classes: list[str]
    files: list[Path]
    labels: NDArray[np.int64]


def list_images(folder: Path, say: Say) -> Listing:
    """The images in a folder's sub-folders, each of which is a class.

    Names that begin with a dot are left out, and links to folders are not followed within a class.

    Args:
        folder: Of the split.
        say: Told of what is left out.

    Raises:
        DataError: If there is no such folder, no class in it, or a class without images.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; an image folder has train/<class>/*.png and test/<class>/*.png")
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    hidden = [path.name for path in places if path.name.startswith(".")]
    if hidden:
        say(f"{folder}: {', '.join(hidden)} left out, since the name begins with a dot")
    classes = [path for path in places if not path.name.startswith(".")]
    if not classes:
        raise DataError(f"{folder} has no sub-folders. Each class is a sub-folder with images in it")
    files: list[Path] = []
    labels: list[int] = []
    for label, place in enumerate(classes):
        of_class = _find_images(place)
        if not of_class:
            raise DataError(
                f"{folder}: there is no image in the class {place.name!r}. Put some there, or remove the sub-folder; "
                f"images end in {', '.join(IMG_EXTENSIONS)}"
            )
        files += of_class
        labels += [label] * len(of_class)
    return Listing(folder, [place.name for place in classes], files, np.asarray(labels, dtype=np.int64))


def _find_images(place: Path) -> list[Path]:
    found: list[Path] = []
    for folder, inside, names in os.walk(place, followlinks=False):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        found += [
            Path(folder) / name
            for name in sorted(names)
            if not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)
        ]
    return found


def check_same_classes(folder: Path, train: Listing, test: Listing) -> None:
    """Refuse splits of different classes.

    Raises:
        DataError: If they are; names that look alike are told apart.
    """
    apart = sorted(set(train.classes) ^ set(test.classes))
    if not apart:
        return
    normal = {unicodedata.normalize("NFC", name) for name in apart}
    if len(normal) < len(apart):
        spelled = ", ".join(ascii(name) for name in apart[:4])
        raise DataError(
            f"{folder}: train and test have classes whose names look alike and are spelled with other characters: "
            f"{spelled}. Rename them alike"
        )
    raise DataError(
        f"{folder}: train and test have different classes; only one of them has {', '.join(apart[:5])}. Give both "
        "the same sub-folders"
    )


def decode(listing: Listing, expected_size: tuple[int, int] | None, say: Say) -> NDArray[np.uint8]:
    """All images of a split.

    Args:
        listing: Its files.
        expected_size: Height and width that they must have; None for those of the first.
        say: Told of what is converted.

    Returns:
        uint8, (images, 3, height, width).

    Raises:
        DataError: If a file cannot be decoded, its values have no known range, or its size is another.
    """
    modes: set[str] = set()

    def read(path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
                return _as_rgb(path, image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(f"{path} is too large to be decoded: {error} Make it smaller, or delete it") from error
        except FileNotFoundError as error:
            raise DataError(f"{path} is a link to a file that is not there. Delete the link") from error
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be decoded: {error}. Replace the file, or delete it") from error

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(read, listing.files))
    height, width = expected_size or images[0].shape[:2]
    for path, image in zip(listing.files, images, strict=True):
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path} is {image.shape[0]}x{image.shape[1]} pixels, and the images before it are {height}x{width}; "
                "resize them all to one size first"
            )
    for mode in sorted(modes - {"RGB"}):
        scaled = ", 16 bits scaled to 8" if mode in _GREY_16_BITS else ""
        say(f"{listing.folder}: images of mode {mode} are converted to RGB, three channels{scaled}")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _as_rgb(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _WITHOUT_RANGE:
        raise DataError(
            f"{path} holds {_WITHOUT_RANGE[image.mode]} (mode {image.mode}), whose range is not known; convert it to 8 "
            "bits a channel first"
        )
    if image.mode in _GREY_16_BITS:
        grey = (np.asarray(image).astype(np.uint32) + _TO_8_BITS // 2) // _TO_8_BITS
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))
