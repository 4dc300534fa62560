"""CIFAR through torchvision, or a folder of images, as arrays; and label noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import schema
from benchmarks.errors import DataError

CIFAR = ("cifar10", "cifar100")
# Of so many images, label noise draws the same number again.
NOISE_GROUP = 32


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


def full_path(data: str) -> str:
    """The data as workers elsewhere find it."""
    return data if data in CIFAR else str(Path(data).resolve())


def load_images(data: str, data_dir: Path, train_images: int | None = None, test_images: int | None = None) -> ImageSet:
    """Load a data set, or so many of its images, always the same ones; a ``DataError`` if it is unfit for training.

    It is ``cifar10`` or ``cifar100``, which torchvision finds in ``data_dir`` or downloads, or a folder with
    ``train/<class>/`` and ``test/<class>/``, whose images are converted to RGB and have one size.
    """
    from torchvision import datasets  # takes a second

    folder = Path(data).resolve()
    try:
        if data in CIFAR:
            kind = getattr(datasets, data.upper())
            train, test = (kind(str(data_dir), train=is_train, download=True) for is_train in (True, False))
        else:
            train, test = (datasets.ImageFolder(str(folder / split)) for split in ("train", "test"))
    except Exception as error:  # the download may fail in many ways
        raise DataError(
            f"{data} can neither be read nor downloaded into {data_dir}: {error}. Give cifar10, cifar100, or a folder "
            "with train/<class>/*.png and test/<class>/*.png, to which a copy of CIFAR can be unpacked. If a file is "
            "cut off, delete it"
        ) from error
    if train.classes != test.classes or len(train.classes) < 2:
        raise DataError(
            f"{folder} has the classes {train.classes[:5]} in train and {test.classes[:5]} in test (the first 5); give "
            "both the same sub-folders, at least 2"
        )
    splits: list[Split] = []
    for split, dataset, wanted in (("train", train, train_images), ("test", test, test_images)):
        chosen = _choose(split, len(dataset), wanted)
        if data in CIFAR:
            images = dataset.data[chosen].transpose(0, 3, 1, 2)
        else:
            size = splits[0].images.shape[2:] if splits else None
            images = _decode([dataset.samples[number][0] for number in chosen], size)
        # In the order of the axes, which the pixels of a file are not: convolutions round differently.
        splits.append(Split(np.ascontiguousarray(images), np.array(dataset.targets, dtype=np.int64)[chosen]))
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
    return np.stack(images)


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


def redraw_labels(labels: NDArray[np.int64], classes: int, per_group: int, seed: int) -> NDArray[np.int64]:
    """Labels with ``per_group`` of every 32 drawn again, in the order in which images are stored (section 4.5).

    A label is drawn from all classes, so with ten of them a tenth of those drawn is the true one again. With the same
    seed, more noise draws the same labels again and further ones. 1, 3 and 6 of 32 are the paper's 3, 10 and 20 %.
    """
    images, drawing = len(labels), np.random.default_rng(seed)
    groups = -(-images // NOISE_GROUP)
    ranks = drawing.random((groups, NOISE_GROUP))
    drawn = drawing.integers(0, classes, images)
    # The last group may be smaller, and then proportionally many are drawn again.
    last_size = images - (groups - 1) * NOISE_GROUP
    ranks[-1, last_size:] = np.inf
    wanted = np.full((groups, 1), per_group)
    wanted[-1] = per_group * last_size // NOISE_GROUP
    is_chosen = ranks.argsort(axis=1).argsort(axis=1) < wanted
    return np.where(is_chosen.reshape(-1)[:images], drawn, labels)
