"""CIFAR through torchvision, or any folder of images, as arrays; decoded once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from benchmarks import schema
from benchmarks.cifar.decoded import cache_path, read_cache, write_cache
from benchmarks.cifar.folders import Listing, Say, list_splits
from benchmarks.cifar.pixels import Decoded, decode
from benchmarks.cifar.recognition import recognize
from benchmarks.errors import DataError

_CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
_SPLITS = ("train", "test")


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
    train, test = listings = list_splits(folder, _SPLITS, say)
    classes = train.classes
    if len(classes) < 2:
        raise DataError(f"{folder} has one class, {classes[0]!r}; there is nothing to tell apart. It takes at least 2")
    cache = cache_path(folder, data_dir, listings)
    decoded = read_cache(cache, _SPLITS)
    if decoded is None:
        decoded = _decode_all(listings)
        # Not if a file was replaced in the meantime.
        if cache_path(folder, data_dir, listings) == cache:
            write_cache(cache, _SPLITS, decoded)
    for word in (word for of_split in decoded for word in of_split.words):
        say(word)
    splits = Split(decoded[0].images, train.labels), Split(decoded[1].images, test.labels)
    height, width = splits[0].images.shape[2:]
    if (height, width) != (32, 32):
        say(f"{folder}: images are {height}x{width} and stay so; CIFAR's, which the paper used, are 32x32")
    return ImageSet(recognize(classes, splits) or folder.resolve().name, classes, *splits)


def _decode_all(listings: list[Listing]) -> list[Decoded]:
    decoded: list[Decoded] = []
    size: tuple[int, int] | None = None
    for listing in listings:
        decoded.append(decode(listing, size))
        height, width = decoded[-1].images.shape[2:]
        size = height, width
    return decoded
