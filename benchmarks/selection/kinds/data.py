"""The data of each kind: what is trained on, validated on and tested on. Every seed draws other data."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from torch import Tensor, nn

from benchmarks.cifar.images import ImageSet
from benchmarks.errors import DataError, PlanError

NOISE_SHARE = 0.1
_PATCHES, _LEAST_RESPONSE = 64, 0.5
WINDOW = 64
# The sorts of text, by the suffix of their files in the standard library and among the installed packages.
SORTS = (".py", ".pyi", ".h", ".c", ".js", ".json", ".md", ".html", ".css", ".csv", ".svg", ".txt")
_FILES_OF_A_SORT, _BYTES_OF_A_FILE, _LEAST_BYTES = 150, 16_384, 2_048
# Shares of the files of a sort: validated on, and tested on.
_HELD_OUT = 0.2
TABLE_LABELS, TABLE_GROUPS = 4, 5
# CIFAR-100's superclasses (Krizhevsky, 2009), five fine kinds each.
SUPERCLASSES = (
    "beaver dolphin otter seal whale",
    "aquarium_fish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweet_pepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "bicycle bus motorcycle pickup_truck train",
    "lawn_mower rocket streetcar tank tractor",
)


class Setting(NamedTuple):
    """One kind of data, and how a network is trained on it.

    Attributes:
        most: Training samples of the most frequent group.
        imbalance: Those over the samples of the rarest group.
        validation: Samples of each group to choose the learning rate by.
        test: Samples of each group to test on.
        batch_size: Samples in a batch.
        epochs: Of plain training; every arm but the short ones makes as many updates.
        learning_rate: The base rate, the peak of a one-cycle schedule.
    """

    most: int
    imbalance: float
    validation: int
    test: int
    batch_size: int
    epochs: int
    learning_rate: float


SETTINGS = {
    "hidden_fine": Setting(120, 25.0, 20, 50, 64, 12, 0.002),
    "text": Setting(400, 60.0, 40, 100, 16, 6, 0.03),
    "noisy": Setting(400, 1.0, 200, 500, 64, 12, 0.002),
    "table": Setting(500, 25.0, 100, 500, 64, 12, 0.03),
}


class Part(NamedTuple):
    """Samples to train on or to evaluate with.

    Attributes:
        inputs: (samples, ...).
        targets: (samples,) labels, or (samples, window) bytes.
        groups: (samples,): the group of each, which no label tells.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor


class Task(NamedTuple):
    """The data of a run."""

    train: Part
    validation: Part
    test: Part
    counts: list[int]
    outputs: int


def make_task(sources: Mapping[str, object], name: str, seed: int, setting: Setting) -> Task:
    """The task of a kind of data; all arms of a seed have the same.

    Args:
        sources: ``cifar100`` and ``cifar10``, each an ``ImageSet``, and ``text``, as ``collect_text`` returns it; only
            what the kind needs.
        name: One of ``SETTINGS``.
        seed: Of the drawing.
        setting: Its sizes.

    Raises:
        PlanError: If a group has too few samples.
    """
    rng = np.random.default_rng([seed, list(SETTINGS).index(name), 25])
    if name == "text":
        return _text_task(sources["text"], rng, setting)  # type: ignore[arg-type]
    if name == "table":
        return _table_task(seed, rng, setting)
    return _image_task(sources["cifar100" if name == "hidden_fine" else "cifar10"], name, rng, setting)  # type: ignore[arg-type]


def _tail(rng: np.random.Generator, label_of: NDArray[np.int64], setting: Setting) -> list[int]:
    """How many samples of each group: a long tail over the groups of each label, in an order drawn by chance."""
    wanted = np.empty(len(label_of), dtype=np.int64)
    for label in np.unique(label_of):
        groups = rng.permutation(np.flatnonzero(label_of == label))
        steps = np.arange(len(groups)) / max(1, len(groups) - 1)
        wanted[groups] = (setting.most * setting.imbalance**-steps).astype(np.int64)
    return wanted.tolist()


def _pick(rng: np.random.Generator, groups: NDArray[np.int64], *wanted: list[int]) -> list[NDArray[np.int64]]:
    """Indices of so many samples of each group, once for each list, in random order; no sample is picked twice.

    Raises:
        PlanError: If a group has fewer.
    """
    parts: list[list[NDArray[np.int64]]] = [[] for _ in wanted]
    for group, counts in enumerate(zip(*wanted, strict=True)):
        places = rng.permutation(np.flatnonzero(groups == group))
        if len(places) < sum(counts):
            raise PlanError(f"group {group} has {len(places)} samples, and {sum(counts)} are needed; give other data")
        cuts = np.split(places, np.cumsum(counts))
        for part, cut in zip(parts, cuts[:-1], strict=True):
            part.append(cut)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _image_task(data: ImageSet, name: str, rng: np.random.Generator, setting: Setting) -> Task:
    number = len(data.classes)
    label_of = np.arange(number)
    if name == "hidden_fine":
        superclass = {fine: label for label, names in enumerate(SUPERCLASSES) for fine in names.split()}
        if set(data.classes) != set(superclass):
            raise PlanError(f"hidden_fine takes CIFAR-100's classes, not {', '.join(data.classes[:4])}, ...")
        label_of = np.array([superclass[fine] for fine in data.classes])
    wanted = _tail(rng, label_of, setting)
    train, validation = _pick(rng, np.asarray(data.train.labels), wanted, [setting.validation] * number)
    (test,) = _pick(rng, np.asarray(data.test.labels), [setting.test] * number)
    features = Features(rng, data.train.images[train])

    def part(split: str, chosen: NDArray[np.int64]) -> Part:
        images, groups = getattr(data, split).images[chosen], np.asarray(getattr(data, split).labels)[chosen]
        return Part(features.of(images), torch.from_numpy(label_of[groups]), torch.from_numpy(groups))

    parts = [part("train", train), part("train", validation), part("test", test)]
    # An update takes an image or its mirror image.
    mirrored = features.of(data.train.images[train][..., ::-1].copy())
    parts[0] = parts[0]._replace(inputs=torch.stack([parts[0].inputs, mirrored], 1))
    labels = int(label_of.max()) + 1
    if name == "noisy":
        drawn = torch.from_numpy(rng.integers(0, labels, len(train)))
        is_drawn = torch.from_numpy(rng.random(len(train)) < NOISE_SHARE)
        parts[0] = parts[0]._replace(targets=torch.where(is_drawn, drawn, parts[0].targets))
    return Task(parts[0], parts[1], parts[2], wanted, labels)


class Features:
    """Fixed features of images: how much they have of random patches, whitened (Coates and Ng, 2012).

    A network on such features trains in a fraction of the time of a convolutional one.

    Args:
        rng: Draws the patches.
        images: (samples, 3, height, width), uint8, of which they are patches.
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


def _table_task(seed: int, rng: np.random.Generator, setting: Setting) -> Task:
    number = TABLE_LABELS * TABLE_GROUPS
    each = setting.most + setting.validation + setting.test
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
    wanted = _tail(rng, label_of, setting)
    held = [[setting.validation] * number, [setting.test] * number]
    picks = _pick(rng, groups, wanted, *held)
    normal = (rows - rows[picks[0]].mean(0)) / rows[picks[0]].std(0)
    inputs, targets, of_group = (torch.from_numpy(each) for each in (normal, label_of[groups], groups))
    parts = [Part(inputs[pick].float(), targets[pick], of_group[pick]) for pick in picks]
    return Task(parts[0], parts[1], parts[2], wanted, TABLE_LABELS)


def collect_text(folders: list[Path] | None = None) -> dict[str, list[bytes]]:
    """The beginnings of files of each sort, the same for the same files.

    Args:
        folders: Where to look; None for the standard library and the installed packages.

    Raises:
        DataError: If a sort has fewer than 10 files.
    """
    paths = sysconfig.get_paths()
    names: dict[str, set[str]] = {sort: set() for sort in SORTS}
    for folder in folders or [Path(paths["stdlib"]), Path(paths["purelib"])]:
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


def _text_task(corpus: dict[str, list[bytes]], rng: np.random.Generator, setting: Setting) -> Task:
    number = len(corpus)
    tail = _tail(rng, np.zeros(number, dtype=np.int64), setting)
    wanted = [tail, [setting.validation] * number, [setting.test] * number]
    windows: list[list[NDArray[np.uint8]]] = [[], [], []]
    for texts in corpus.values():
        order = rng.permutation(len(texts))
        held = int(len(texts) * _HELD_OUT)
        for found, files in zip(windows, (order[2 * held :], order[:held], order[held : 2 * held]), strict=True):
            cut = [np.frombuffer(texts[file], np.uint8) for file in files]
            found.append(np.concatenate([text[: len(text) // WINDOW * WINDOW].reshape(-1, WINDOW) for text in cut]))
    parts = []
    for found, counts in zip(windows, wanted, strict=True):
        groups = np.repeat(np.arange(number), [len(each) for each in found])
        (pick,) = _pick(rng, groups, counts)
        text = torch.from_numpy(np.concatenate(found)[pick]).long()
        # Each byte is predicted from those before it in its window, the first from none.
        parts.append(Part(torch.nn.functional.pad(text[:, :-1], (1, 0)), text, torch.from_numpy(groups[pick])))
    return Task(parts[0], parts[1], parts[2], tail, 256)
