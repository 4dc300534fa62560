"""The data of each setting: what is trained on, validated on and tested on. Every seed draws other data."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from torch import Tensor, nn

from benchmarks.errors import DataError, PlanError
from benchmarks.images import ImageSet

IMAGE_SETTINGS = ("balanced", "long_tail", "hidden_kinds", "noisy")
# How many of the images are trained on where classes are balanced.
BALANCED_IMAGES = 10_000
NOISE_SHARE = 0.1
# With hidden kinds, CIFAR-10's vehicles are one label of two, its animals the other.
VEHICLES = ("airplane", "automobile", "ship", "truck")
_PATCHES, _LEAST_RESPONSE = 64, 0.5
WINDOW = 64
# The sorts of text, by the suffix of their files in the standard library and among the installed packages.
SORTS = (".py", ".pyi", ".h", ".c", ".js", ".json", ".md", ".html", ".css", ".csv", ".svg", ".txt")
_FILES_OF_A_SORT, _BYTES_OF_A_FILE, _LEAST_BYTES = 150, 16_384, 2_048
# Share of the files of a sort that is validated on, and as much that is tested on.
_HELD_OUT = 0.2
TABLE_LABELS, TABLE_GROUPS = 4, 5
# CIFAR-100's superclasses (Krizhevsky, 2009), five fine kinds each.
SUPERCLASSES = Path(__file__).with_name("superclasses.txt").read_text(encoding="utf-8").splitlines()
Array = NDArray[np.int64]


class ImageSizes(NamedTuple):
    """A setting of the images, and how a network is trained on it."""

    updates: int  # of every arm, but for plain training at another arm's cost
    batch_size: int
    imbalance: float  # images of the most frequent group over those of the rarest, where there is a long tail
    images: int | None  # to train on at most, for trials; None for all that the setting has


class Sizes(NamedTuple):
    """A kind of data, and how a network is trained on it."""

    most: int  # training samples of the most frequent group
    imbalance: float  # those over the samples of the rarest group
    validation: int  # samples of each group
    test: int  # samples of each group
    batch_size: int
    epochs: int  # of plain training; every arm but the short ones makes as many updates
    learning_rate: float  # the base rate: the peak of a one-cycle schedule


KINDS = {
    "hidden_fine": Sizes(120, 25.0, 20, 50, 64, 12, 0.002),
    "text": Sizes(400, 60.0, 40, 100, 16, 6, 0.03),
    "noisy": Sizes(400, 1.0, 200, 500, 64, 12, 0.002),
    "table": Sizes(500, 25.0, 100, 500, 64, 12, 0.03),
}


class Part(NamedTuple):
    """Samples to train on or to evaluate with."""

    inputs: Tensor  # (samples, ...)
    targets: Tensor  # (samples,) labels, or (samples, window) bytes
    groups: Tensor  # (samples,): the class, the sort of text, or the hidden kind of each


class Task(NamedTuple):
    """The data of a run."""

    train: Part
    validation: Part | None  # to choose the learning rate by; None in ``images``
    test: Part
    counts: list[int]  # training samples of each group
    outputs: int  # how many labels there are


# Images, for ``images`` of ten classes; what ``collect_text`` returns; None for a table.
Source: TypeAlias = ImageSet | Mapping[str, list[bytes]] | None


def make_task(source: Source, name: str, seed: int, sizes: Sizes | ImageSizes) -> Task:
    """The data of a run in a setting; every seed draws other samples and other rare groups.

    Raises:
        PlanError: If the classes are not those of the setting, or a group has too few samples.
    """
    if isinstance(sizes, ImageSizes):
        assert isinstance(source, ImageSet)
        return image_task(source, name, seed, sizes.imbalance, sizes.images)
    rng = np.random.default_rng([seed, list(KINDS).index(name), 25])
    if isinstance(source, ImageSet):
        return _feature_task(source, name, rng, sizes)
    return _table_task(seed, rng, sizes) if source is None else _text_task(source, rng, sizes)


def image_task(data: ImageSet, setting: str, seed: int, imbalance: float, images: int | None = None) -> Task:
    """One of ``IMAGE_SETTINGS``; the arguments are as in ``make_task`` and ``ImageSizes``."""
    rng = np.random.default_rng([seed, IMAGE_SETTINGS.index(setting)])
    groups, test_groups = (np.asarray(split.labels, dtype=np.int64) for split in (data.train, data.test))
    number = len(data.classes)
    there = np.bincount(groups, minlength=number).tolist()
    most = min(there)
    if setting in ("long_tail", "hidden_kinds"):
        ranks = rng.permutation(number)
        wanted = [int(most * imbalance ** (-ranks[group] / (number - 1))) for group in range(number)]
    else:
        wanted = [min(most, BALANCED_IMAGES // number)] * number
    if images is not None:
        wanted = [
            min(most_of, max(1, count * images // sum(wanted))) for count, most_of in zip(wanted, there, strict=True)
        ]
    if min(wanted) < 1:
        raise PlanError(
            f"an imbalance of {imbalance:g} leaves the rarest kind without an image: the most frequent has {most}; "
            "give a smaller --imbalance"
        )
    chosen = _pick(rng, groups, wanted)[0]
    label_of = np.arange(number)
    if setting == "hidden_kinds":
        if not set(VEHICLES) < set(data.classes):
            raise PlanError(f"hidden_kinds takes CIFAR-10's classes, not {', '.join(data.classes[:4])}, ...")
        label_of = np.array([int(name in VEHICLES) for name in data.classes])
    labels = label_of[groups[chosen]]
    if setting == "noisy":
        redrawn = rng.random(len(labels)) < NOISE_SHARE
        labels = np.where(redrawn, rng.integers(0, number, len(labels)), labels)
    train, test = (
        torch.from_numpy(np.ascontiguousarray(split)).float().div_(255)
        for split in (data.train.images[chosen], data.test.images)
    )
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    of_train = Part((train - mean) / deviation, torch.from_numpy(labels), torch.from_numpy(groups[chosen]))
    of_test = Part((test - mean) / deviation, torch.from_numpy(label_of[test_groups]), torch.from_numpy(test_groups))
    return Task(of_train, None, of_test, wanted, len(set(label_of.tolist())))


def _tail(rng: np.random.Generator, label_of: Array, sizes: Sizes) -> list[int]:
    """How many samples of each group: a long tail over the groups of each label, in random order."""
    wanted = np.empty(len(label_of), dtype=np.int64)
    for label in np.unique(label_of):
        groups = rng.permutation(np.flatnonzero(label_of == label))
        steps = np.arange(len(groups)) / max(1, len(groups) - 1)
        wanted[groups] = (sizes.most * sizes.imbalance**-steps).astype(np.int64)
    return wanted.tolist()


def _pick(rng: np.random.Generator, groups: Array, *wanted: list[int]) -> list[Array]:
    """Indices of so many samples of each group, once for each list, in random order; no sample is picked twice.

    Raises:
        PlanError: If a group has fewer.
    """
    parts: list[list[Array]] = [[] for _ in wanted]
    for group, counts in enumerate(zip(*wanted, strict=True)):
        places = rng.permutation(np.flatnonzero(groups == group))
        if len(places) < sum(counts):
            raise PlanError(f"group {group} has {len(places)} samples, and {sum(counts)} are needed; give other data")
        cuts = np.split(places, np.cumsum(counts))
        for part, cut in zip(parts, cuts[:-1], strict=True):
            part.append(cut)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _feature_task(data: ImageSet, name: str, rng: np.random.Generator, sizes: Sizes) -> Task:
    number = len(data.classes)
    label_of = np.arange(number)
    if name == "hidden_fine":
        superclass = {fine: label for label, names in enumerate(SUPERCLASSES) for fine in names.split()}
        if set(data.classes) != set(superclass):
            raise PlanError(f"hidden_fine takes CIFAR-100's classes, not {', '.join(data.classes[:4])}, ...")
        label_of = np.array([superclass[fine] for fine in data.classes])
    wanted = _tail(rng, label_of, sizes)
    train, validation = _pick(rng, np.asarray(data.train.labels), wanted, [sizes.validation] * number)
    (test,) = _pick(rng, np.asarray(data.test.labels), [sizes.test] * number)
    features = Features(rng, data.train.images[train])
    parts = []
    for split, chosen in ((data.train, train), (data.train, validation), (data.test, test)):
        groups = np.asarray(split.labels)[chosen]
        labels = torch.from_numpy(label_of[groups])
        parts.append(Part(features.of(split.images[chosen]), labels, torch.from_numpy(groups)))
    # An update takes an image or its mirror image.
    mirrored = features.of(data.train.images[train][..., ::-1].copy())
    parts[0] = parts[0]._replace(inputs=torch.stack([parts[0].inputs, mirrored], 1))
    outputs = int(label_of.max()) + 1
    if name == "noisy":
        drawn = torch.from_numpy(rng.integers(0, outputs, len(train)))
        is_drawn = torch.from_numpy(rng.random(len(train)) < NOISE_SHARE)
        parts[0] = parts[0]._replace(targets=torch.where(is_drawn, drawn, parts[0].targets))
    return Task(parts[0], parts[1], parts[2], wanted, outputs)


class Features:
    """How much images have of random patches of the training images, whitened (Coates and Ng, 2012).

    A network on such features trains in a fraction of the time of a convolutional one.
    """

    def __init__(self, rng: np.random.Generator, images: NDArray[np.uint8]) -> None:
        patches = _patches(torch.from_numpy(images[:2000])).flatten(0, 1)
        patches = patches[torch.from_numpy(rng.permutation(len(patches))[:20_000])]
        values, vectors = torch.linalg.eigh(patches.T.cov())
        whitening = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
        self._filters = nn.functional.normalize(patches[:_PATCHES] @ whitening) @ whitening
        self._mean, self._deviation = torch.zeros(1), torch.ones(1)
        found = self.of(images[:2000])
        self._mean, self._deviation = found.mean(0), found.std(0) + 1e-6

    def of(self, images: NDArray[np.uint8]) -> Tensor:
        """(samples, 8 times the patches): of each quarter of each image, normalised."""
        quarters = []
        for some in torch.from_numpy(images).split(500):
            found = _patches(some) @ self._filters.T
            found = torch.cat([found, -found], 2).sub_(_LEAST_RESPONSE).relu_()
            side = round(found.shape[1] ** 0.5)
            maps = found.transpose(1, 2).unflatten(2, (side, side))
            quarters.append(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1))
        return (torch.cat(quarters) - self._mean) / self._deviation


def _patches(images: Tensor) -> Tensor:
    """(samples, patches, 3 * 6 * 6): every second patch of 6 by 6 pixels, each normalised."""
    patches = nn.functional.unfold(images.float().div(255), 6, stride=2).transpose(1, 2)
    patches = patches - patches.mean(2, keepdim=True)
    return patches / (patches.var(2, keepdim=True) + 0.01).sqrt()


def _table_task(seed: int, rng: np.random.Generator, sizes: Sizes) -> Task:
    number = TABLE_LABELS * TABLE_GROUPS
    each = sizes.most + sizes.validation + sizes.test
    rows, groups = make_classification(
        2 * each * number,
        n_features=20,
        n_informative=8,
        n_redundant=4,
        n_classes=number,
        n_clusters_per_class=1,
        class_sep=1.5,
        flip_y=0.0,
        random_state=seed,
    )
    label_of = rng.permutation(np.arange(number) % TABLE_LABELS)
    wanted = _tail(rng, label_of, sizes)
    picks = _pick(rng, groups, wanted, [sizes.validation] * number, [sizes.test] * number)
    normal = (rows - rows[picks[0]].mean(0)) / rows[picks[0]].std(0)
    inputs, targets, of_group = (torch.from_numpy(array) for array in (normal, label_of[groups], groups))
    parts = [Part(inputs[pick].float(), targets[pick], of_group[pick]) for pick in picks]
    return Task(parts[0], parts[1], parts[2], wanted, TABLE_LABELS)


def collect_text(folders: Sequence[Path] = ()) -> dict[str, list[bytes]]:
    """The beginnings of files of each sort, from these folders or from those of installed packages.

    Raises:
        DataError: If a sort has fewer than 10 files.
    """
    paths = sysconfig.get_paths()
    names: dict[str, set[str]] = {sort: set() for sort in SORTS}
    for folder in folders or (paths["stdlib"], paths["purelib"]):
        for at, _, files in os.walk(folder):
            for name in files:
                names.get(Path(name).suffix, set()).add(str(Path(at, name)))
    corpus = {}
    for sort, found in names.items():
        texts: dict[bytes, None] = {}
        for path in np.random.default_rng(0).permutation(np.array(sorted(found), dtype=object)):
            with Path(path).open("rb") as file:
                text = file.read(_BYTES_OF_A_FILE)
            if len(text) >= _LEAST_BYTES and len(texts) < _FILES_OF_A_SORT:
                texts[text] = None
        if len(texts) < 10:
            raise DataError(f"{len(texts)} files end in {sort}, and 10 are needed; install more packages")
        corpus[sort] = list(texts)
    return corpus


def _text_task(corpus: Mapping[str, list[bytes]], rng: np.random.Generator, sizes: Sizes) -> Task:
    number = len(corpus)
    tail = _tail(rng, np.zeros(number, dtype=np.int64), sizes)
    windows: list[list[NDArray[np.uint8]]] = [[], [], []]
    for texts in corpus.values():
        order = rng.permutation(len(texts))
        held = int(len(texts) * _HELD_OUT)
        for found, files in zip(windows, (order[2 * held :], order[:held], order[held : 2 * held]), strict=True):
            cut = [np.frombuffer(texts[file], np.uint8) for file in files]
            found.append(np.concatenate([text[: len(text) // WINDOW * WINDOW].reshape(-1, WINDOW) for text in cut]))
    parts = []
    for found, counts in zip(windows, (tail, [sizes.validation] * number, [sizes.test] * number), strict=True):
        groups = np.repeat(np.arange(number), [len(each) for each in found])
        (pick,) = _pick(rng, groups, counts)
        text = torch.from_numpy(np.concatenate(found)[pick]).long()
        # Each byte is predicted from those before it in its window, the first from none.
        parts.append(Part(nn.functional.pad(text[:, :-1], (1, 0)), text, torch.from_numpy(groups[pick])))
    return Task(parts[0], parts[1], parts[2], tail, 256)
