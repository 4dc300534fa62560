"""CIFAR through torchvision, or a folder of images, as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from benchmarks import schema
from benchmarks.errors import DataError

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class Split(NamedTuple):
    """One half of a data set."""

    images: NDArray[np.uint8]  # (images, 3, height, width)
    labels: NDArray[np.int64]


class ImageSet(NamedTuple):
    """A data set in memory."""

    name: str
    classes: list[str]  # in the order of the labels
    train: Split
    test: Split

    def describe(self) -> schema.Data:
        """Its part of the records."""
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


def load_images(data: str, data_dir: Path, train_images: int | None = None, test_images: int | None = None) -> ImageSet:
    """Load a data set, or so many of its images, always the same ones; a ``DataError`` if it is unfit for training.

    It is ``cifar10`` or ``cifar100``, which torchvision finds in ``data_dir`` or downloads, or a folder with
    ``train/<class>/`` and ``test/<class>/``, whose images are converted to RGB and have one size.
    """
    splits, wanted = [], {"train": train_images, "test": test_images}
    if data in CIFAR:
        for split in wanted:
            try:
                dataset = CIFAR[data](str(data_dir), train=split == "train", download=True)
            except Exception as error:  # the download may fail in many ways
                raise DataError(
                    f"{data} can neither be read from {data_dir} nor downloaded into it: {error}. If a file there is "
                    "cut off, delete it; without a connection, unpack a copy to a folder with train/<class>/*.png and "
                    "test/<class>/*.png and give that as --data"
                ) from error
            chosen = _choose(split, len(dataset.data), wanted[split])
            images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2)[chosen])
            splits.append(Split(images, np.asarray(dataset.targets, dtype=np.int64)[chosen]))
        return ImageSet(data, list(dataset.classes), *splits)

    folder = Path(data).resolve()
    try:
        train, test = (datasets.ImageFolder(str(folder / split)) for split in wanted)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data is {data!r}; it must be cifar10, cifar100, or a folder with train/<class>/*.png and "
            f"test/<class>/*.png ({error})"
        ) from error
    if train.classes != test.classes or len(train.classes) < 2:
        raise DataError(
            f"{folder} has the classes {train.classes[:5]} in train and {test.classes[:5]} in test (the first 5); give "
            "both the same sub-folders, at least 2"
        )
    for split, dataset in (("train", train), ("test", test)):
        samples = [dataset.samples[number] for number in _choose(split, len(dataset), wanted[split])]
        pixels = _decode([path for path, _ in samples], splits[0].images.shape[2:] if splits else None)
        splits.append(Split(pixels, np.array([label for _, label in samples], dtype=np.int64)))
    # The paper's figures and claims go by these names.
    name = folder.name.lower() if folder.name.lower() in CIFAR else folder.name
    return ImageSet(name, train.classes, *splits)


def _decode(files: Sequence[str], size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """uint8, (images, 3, height, width), of this size; None for that of the first."""
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(_read, files))
    height, width = size or images[0].shape[1:]
    for path, pixels in zip(files, images, strict=True):
        if pixels.shape[1:] != (height, width):
            raise DataError(
                f"{path} is {pixels.shape[1]}x{pixels.shape[2]} pixels, and the images before it are "
                f"{height}x{width}; resize them all to one size first"
            )
    # In the order of the axes, which the pixels of a file are not.
    return np.ascontiguousarray(np.stack(images))


def _read(path: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    except Exception as error:  # of damaged files Pillow raises many kinds
        raise DataError(f"{path} cannot be decoded: {error or type(error).__name__}. Replace or delete it") from error


def _choose(split: str, images: int, wanted: int | None) -> NDArray[np.int64]:
    """Indices of so many images, sorted; of all for None."""
    if wanted is None:
        return np.arange(images)
    if not 1 <= wanted <= images:
        raise DataError(f"{wanted} images were asked for, and {split} has {images}; ask for 1 to as many")
    return np.sort(np.random.default_rng(0).permutation(images)[:wanted])
