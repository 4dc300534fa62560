"""CIFAR through torchvision, or any folder of images, as arrays; decoded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from benchmarks import schema
from benchmarks.errors import DataError

Say = Callable[[str], None]

_CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
_SPLITS = ("train", "test")
# Class names that are in CIFAR-10 and CIFAR-100; with their number they tell a folder of CIFAR from others.
_TELLTALE_CLASSES = {("cifar10", 10): {"airplane", "frog"}, ("cifar100", 100): {"aquarium_fish", "worm"}}


class Split(NamedTuple):
    """One half of a data set.

    Attributes:
        images: uint8, (images, 3, height, width).
        labels: int64, (images,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class ImageSet(NamedTuple):
    """A data set in memory.

    Attributes:
        name: As in ``schema.Data``.
        classes: Their names, in the order of the labels.
        train: To train on.
        test: To evaluate on.
    """

    name: str
    classes: list[str]
    train: Split
    test: Split

    def sample(self, train_images: int | None, test_images: int | None) -> ImageSet:
        """So many images of each split, always the same ones; all of them for None, and for 0 to test on.

        Raises:
            DataError: If there are not as many.
        """
        train, test = self.train, self.test
        if train_images is not None:
            train = _sample("train", train, train_images)
        if test_images is not None and test_images != 0:
            test = _sample("test", test, test_images)
        return self._replace(train=train, test=test)

    def describe(self) -> schema.Data:
        """What the records say of it."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return schema.Data(
            name=self.name,
            train_images=len(self.train.images),
            test_images=len(self.test.images),
            classes=self.classes,
            height=self.train.images.shape[2],
            width=self.train.images.shape[3],
            sha256=digest.hexdigest(),
        )


def _sample(name: str, split: Split, images: int) -> Split:
    if not 1 <= images <= len(split.images):
        raise DataError(f"{images} images were asked for, and {name} has {len(split.images)}; ask for 1 to as many")
    chosen = np.sort(np.random.default_rng(0).permutation(len(split.images))[:images])
    return Split(split.images[chosen], split.labels[chosen])


def load_images(data: str, data_dir: Path, say: Say = print) -> ImageSet:
    """Load a data set.

    Args:
        data: ``cifar10`` or ``cifar100``, which torchvision downloads into ``data_dir`` unless they are there, or a
            folder with ``train/<class>/*.png`` and ``test/<class>/*.png``, which is decoded once and kept decoded
            in ``data_dir``. Other file types that torchvision's ImageFolder knows are taken too.
        data_dir: Where data is kept.
        say: Told of what is converted.

    Raises:
        DataError: If the data is missing, damaged, or nothing that can be trained on.
    """
    if data in _CIFAR:
        return _load_cifar(data, data_dir)
    folder = Path(data)
    if not folder.is_dir():
        raise DataError(
            f"data is {data!r}; it must be cifar10, cifar100, or a folder with train/<class>/*.png and "
            "test/<class>/*.png, and there is no such folder"
        )
    return _load_folder(folder, data_dir, say)


def _load_cifar(name: str, data_dir: Path) -> ImageSet:
    splits: list[Split] = []
    for is_train in (True, False):
        try:
            dataset = _CIFAR[name](str(data_dir), train=is_train, download=True)
        except Exception as error:  # the download may fail in many ways
            raise DataError(
                f"{name} can neither be read from {data_dir} nor downloaded into it: {error}. If a file there was cut "
                "off, delete it; without a connection, unpack a copy to a folder with train/<class>/*.png and "
                "test/<class>/*.png and give that as --data"
            ) from error
        images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
        splits.append(Split(images, np.asarray(dataset.targets, dtype=np.int64)))
    return ImageSet(name, list(dataset.classes), *splits)


def _load_folder(folder: Path, data_dir: Path, say: Say) -> ImageSet:
    listings = [_list_images(folder / split) for split in _SPLITS]
    classes, test_classes = listings[0].classes, listings[1].classes
    if classes != test_classes:
        apart = sorted(set(classes) ^ set(test_classes))
        raise DataError(
            f"{folder}: train and test have different classes; only one of them has {', '.join(apart[:5])}. Give both "
            "the same sub-folders"
        )
    if len(classes) < 2:
        raise DataError(f"{folder} has one class, {classes[0]!r}; there is nothing to tell apart. It takes at least 2")
    name = _recognize(classes) or folder.resolve().name
    cached = _read_cache(cache := _cache_path(folder, data_dir, listings))
    if cached is None:
        expected_size: tuple[int, int] | None = None
        parts: list[NDArray[np.uint8]] = []
        for listing in listings:
            images, modes = _decode(listing, expected_size)
            expected_size = images.shape[2], images.shape[3]
            parts.append(images)
            for mode in sorted(modes - {"RGB"}):
                say(f"{listing.folder}: images of mode {mode} are converted to RGB, three channels")
        cached = Split(parts[0], listings[0].labels), Split(parts[1], listings[1].labels)
        _write_cache(cache, cached)
    train, test = cached
    height, width = train.images.shape[2:]
    if (height, width) != (32, 32):
        say(f"{folder}: images are {height}x{width} and stay so; CIFAR's, which the paper used, are 32x32")
    return ImageSet(name, classes, train, test)


class _Listing(NamedTuple):
    folder: Path
    classes: list[str]
    files: list[Path]
    labels: NDArray[np.int64]


def _list_images(folder: Path) -> _Listing:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; an image folder has train/<class>/*.png and test/<class>/*.png")
    try:
        dataset = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: {str(error).splitlines()[0]} Each class is a sub-folder with images in it"
        ) from error
    files = [Path(path) for path, _ in dataset.samples]
    return _Listing(folder, dataset.classes, files, np.asarray(dataset.targets, dtype=np.int64))


def _decode(listing: _Listing, expected_size: tuple[int, int] | None) -> tuple[NDArray[np.uint8], set[str]]:
    """All images as (images, 3, height, width), and the modes that they were stored in."""
    modes: set[str] = set()

    def decode(path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} cannot be decoded: {error}. Replace the file, or delete it") from error

    with ThreadPoolExecutor() as pool:
        images = list(pool.map(decode, listing.files))
    height, width = expected_size or images[0].shape[:2]
    for path, image in zip(listing.files, images, strict=True):
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path} is {image.shape[0]}x{image.shape[1]} pixels, and the images before it are {height}x{width}; "
                "resize them all to one size first"
            )
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), modes


def _recognize(classes: list[str]) -> str | None:
    for (name, count), telltale in _TELLTALE_CLASSES.items():
        if len(classes) == count and telltale <= set(classes):
            return name
    return None


def _cache_path(folder: Path, data_dir: Path, listings: list[_Listing]) -> Path:
    """Named by all that can be known of the files without reading them: their names, sizes and times of change."""
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for listing in listings:
        for path in listing.files:
            status = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return data_dir / "decoded" / f"{folder.resolve().name}-{digest.hexdigest()[:16]}.npz"


def _read_cache(path: Path) -> tuple[Split, Split] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return tuple(Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in _SPLITS)  # type: ignore[return-value]
    except Exception:  # cut off or damaged: decode again
        return None


def _write_cache(path: Path, splits: tuple[Split, Split]) -> None:
    arrays: dict[str, Any] = {}
    for name, split in zip(_SPLITS, splits, strict=True):
        arrays |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **arrays)
        temporary.replace(path)
    except OSError:  # only the next start is slower for it
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
