"""The data of each setting: what is trained on, validated on and tested on. Every seed draws other data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.errors import PlanError
from benchmarks.images import ImageSet, Split

IMAGE_SETTINGS = ("balanced", "long_tail", "hidden_kinds", "noisy")
# How many of the images are trained on where classes are balanced.
BALANCED_IMAGES = 10_000
NOISE_SHARE = 0.1
_PATCHES, _LEAST_RESPONSE = 64, 0.5
TABLE_LABELS, TABLE_GROUPS = 4, 5
_FEATURES = {"n_features": 20, "n_informative": 8, "n_redundant": 4}
TABLE = {**_FEATURES, "n_clusters_per_class": 1, "class_sep": 1.5, "flip_y": 0}
# The classes of each label: CIFAR-10's animals and vehicles; CIFAR-100's superclasses (Krizhevsky, 2009).
CLASSES_OF_LABELS = {
    "hidden_kinds": ["bird cat deer dog frog horse", "airplane automobile ship truck"],
    "hidden_fine": Path(__file__).with_name("superclasses.txt").read_text(encoding="utf-8").splitlines(),
}
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
    epochs: int  # of plain training; every arm makes as many updates
    learning_rate: float  # the base rate: the peak of a one-cycle schedule


KINDS = {
    "hidden_fine": Sizes(120, 25.0, 20, 50, 64, 12, 0.002),
    "noisy": Sizes(400, 1.0, 200, 500, 64, 12, 0.002),
    "table": Sizes(500, 25.0, 100, 500, 64, 12, 0.03),
}
# By these, settings draw different data with the same seed. The finished kind "text" had 1.
_STREAMS = {"hidden_fine": 0, "noisy": 2, "table": 3}


class Part(NamedTuple):
    """Samples to train on or to evaluate with."""

    inputs: Tensor  # (samples, ...)
    targets: Tensor  # (samples,) labels
    groups: Tensor  # (samples,): the class, or the hidden kind of each


class Task(NamedTuple):
    """The data of a run."""

    train: Part
    validation: Part | None  # to choose the learning rate by; None in ``images``
    test: Part
    counts: list[int]  # training samples of each group
    outputs: int  # how many labels there are


def make_task(source: ImageSet | None, name: str, seed: int, sizes: Sizes | ImageSizes) -> Task:
    """The data of a run in a setting; a ``PlanError`` if it has other classes, or a group has too few samples."""
    if isinstance(sizes, ImageSizes):
        assert isinstance(source, ImageSet)
        return _image_task(source, name, np.random.default_rng([seed, IMAGE_SETTINGS.index(name)]), sizes)
    rng = np.random.default_rng([seed, _STREAMS[name], 25])
    if isinstance(source, ImageSet):
        return _feature_task(source, name, rng, sizes)
    return _table_task(seed, rng, sizes)


def _image_task(data: ImageSet, setting: str, rng: np.random.Generator, sizes: ImageSizes) -> Task:
    there, number = np.bincount(data.train.labels), len(data.classes)
    wanted = np.full(number, min(*there, BALANCED_IMAGES // number))
    if setting in ("long_tail", "hidden_kinds"):
        wanted = (min(there) * sizes.imbalance ** (-rng.permutation(number) / (number - 1))).astype(np.int64)
    if sizes.images is not None:
        wanted = np.minimum(there, np.maximum(1, wanted * sizes.images // wanted.sum()))
    label_of = _labels_of(data.classes, setting)
    (chosen,) = _pick(rng, data.train.labels, wanted.tolist())
    groups = torch.from_numpy(data.train.labels[chosen]), torch.from_numpy(data.test.labels)
    labels, test_labels = (label_of[of_split] for of_split in groups)
    if setting == "noisy":
        is_drawn = torch.from_numpy(rng.random(len(chosen)) < NOISE_SHARE)
        labels = torch.where(is_drawn, torch.from_numpy(rng.integers(0, number, len(chosen))), labels)
    train, test = (
        torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
        for images in (data.train.images[chosen], data.test.images)
    )
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    of_train = Part((train - mean) / deviation, labels, groups[0])
    of_test = Part((test - mean) / deviation, test_labels, groups[1])
    return Task(of_train, None, of_test, wanted.tolist(), len(label_of.unique()))


def _labels_of(classes: list[str], setting: str) -> Tensor:
    """The label of each class: its own number, or that of the label that the setting hides it under."""
    if setting not in CLASSES_OF_LABELS:
        return torch.arange(len(classes))
    label_of = {name: label for label, names in enumerate(CLASSES_OF_LABELS[setting]) for name in names.split()}
    if {*classes} != {*label_of}:
        raise PlanError(f"{setting} takes the classes of CIFAR-{len(label_of)}, not {', '.join(classes[:4])}, ...")
    return torch.tensor([label_of[name] for name in classes])


def _tail(rng: np.random.Generator, label_of: Tensor, sizes: Sizes) -> list[int]:
    """How many samples of each group: a long tail over the groups of each label, in random order."""
    wanted = np.empty(len(label_of), dtype=np.int64)
    for label in np.unique(label_of):
        groups = rng.permutation(np.flatnonzero(label_of == label))
        steps = np.arange(len(groups)) / max(1, len(groups) - 1)
        wanted[groups] = (sizes.most * sizes.imbalance**-steps).astype(np.int64)
    return wanted.tolist()


def _pick(rng: np.random.Generator, groups: Array, *wanted: list[int]) -> list[Array]:
    """Indices of so many samples of each group, once for each list, in random order; no sample is picked twice."""
    parts: list[list[Array]] = [[] for _ in wanted]
    for group, counts in enumerate(zip(*wanted, strict=True)):
        places = rng.permutation(np.flatnonzero(groups == group))
        if not 0 < sum(counts) <= len(places):
            raise PlanError(
                f"group {group} has {len(places)} samples, not {sum(counts)}; give another --imbalance or --data"
            )
        for part, cut in zip(parts, np.split(places, np.cumsum(counts)), strict=False):
            part.append(cut)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def _feature_task(data: ImageSet, name: str, rng: np.random.Generator, sizes: Sizes) -> Task:
    label_of = _labels_of(data.classes, name)
    wanted, number = _tail(rng, label_of, sizes), len(label_of)
    train, validation = _pick(rng, data.train.labels, wanted, [sizes.validation] * number)
    (test,) = _pick(rng, data.test.labels, [sizes.test] * number)
    filters = _filters(rng, data.train.images[train])
    scale = _features(data.train.images[train[:2000]], filters)

    def make_part(split: Split, chosen: Array, *, mirrored: bool = False) -> Part:
        images, groups = split.images[chosen], torch.from_numpy(split.labels[chosen])
        # An update takes an image or its mirror image.
        forms = [images, images[..., ::-1].copy()] if mirrored else [images]
        inputs = [(_features(form, filters) - scale.mean(0)) / (scale.std(0) + 1e-6) for form in forms]
        return Part(torch.stack(inputs, 1) if mirrored else inputs[0], label_of[groups], groups)

    of_train, outputs = make_part(data.train, train, mirrored=True), int(label_of.max()) + 1
    if name == "noisy":
        drawn = torch.from_numpy(rng.integers(0, outputs, len(train)))
        is_drawn = torch.from_numpy(rng.random(len(train)) < NOISE_SHARE)
        of_train = of_train._replace(targets=torch.where(is_drawn, drawn, of_train.targets))
    return Task(of_train, make_part(data.train, validation), make_part(data.test, test), wanted, outputs)


def _filters(rng: np.random.Generator, images: NDArray[np.uint8]) -> Tensor:
    """Random patches of images, whitened (Coates and Ng, 2012)."""
    patches = _patches(torch.from_numpy(images[:2000])).flatten(0, 1)
    patches = patches[torch.from_numpy(rng.permutation(len(patches))[:20_000])]
    values, vectors = torch.linalg.eigh(patches.T.cov())
    whitening = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    filters: Tensor = nn.functional.normalize(patches[:_PATCHES] @ whitening) @ whitening
    return filters


def _features(images: NDArray[np.uint8], filters: Tensor) -> Tensor:
    """(samples, 8 times the filters): of each quarter of each image, on which networks train faster than on images."""
    quarters = []
    for some in torch.from_numpy(images).split(500):
        found = _patches(some) @ filters.T
        found = torch.cat([found, -found], 2).sub_(_LEAST_RESPONSE).relu_()
        side = round(found.shape[1] ** 0.5)
        maps = found.transpose(1, 2).unflatten(2, (side, side))
        quarters.append(nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1))
    return torch.cat(quarters)


def _patches(images: Tensor) -> Tensor:
    """(samples, patches, 3 * 6 * 6): every second patch of 6 by 6 pixels, each normalised."""
    patches = nn.functional.unfold(images.float().div(255), 6, stride=2).transpose(1, 2)
    patches = patches - patches.mean(2, keepdim=True)
    return patches / (patches.var(2, keepdim=True) + 0.01).sqrt()


def _table_task(seed: int, rng: np.random.Generator, sizes: Sizes) -> Task:
    from sklearn.datasets import make_classification  # takes a second

    number = TABLE_LABELS * TABLE_GROUPS
    rows, groups = make_classification(
        2 * (sizes.most + sizes.validation + sizes.test) * number, n_classes=number, random_state=seed, **TABLE
    )
    label_of = torch.from_numpy(rng.permutation(np.arange(number) % TABLE_LABELS))
    wanted = _tail(rng, label_of, sizes)
    picks = _pick(rng, groups, wanted, [sizes.validation] * number, [sizes.test] * number)
    normal = torch.from_numpy((rows - rows[picks[0]].mean(0)) / rows[picks[0]].std(0)).float()
    parts = [Part(normal[pick], label_of[groups[pick]], torch.from_numpy(groups[pick])) for pick in picks]
    return Task(parts[0], parts[1], parts[2], wanted, TABLE_LABELS)
