"""The data of each setting: which images, under which labels, and of which kinds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cifar.images import ImageSet
from benchmarks.errors import PlanError

SETTINGS = ("balanced", "long_tail", "hidden_kinds", "noisy")
# How many of the images are trained on where classes are balanced.
BALANCED_IMAGES = 10_000
NOISE_SHARE = 0.1
# CIFAR-10's vehicles are one label of two where kinds are hidden, its animals the other.
VEHICLES = ("airplane", "automobile", "ship", "truck")


class Task(NamedTuple):
    """What is trained on and tested with.

    Attributes:
        images: (samples, 3, height, width), float32, normalised.
        labels: (samples,), int64.
        counts: (kinds,), how many images of each kind there are to train on.
        test_images: (test samples, 3, height, width).
        test_labels: (test samples,).
        test_kinds: (test samples,): what each image shows, which is its label but where kinds are hidden.
        labels_in_use: How many labels there are.
    """

    images: Tensor
    labels: Tensor
    counts: tuple[int, ...]
    test_images: Tensor
    test_labels: Tensor
    test_kinds: Tensor
    labels_in_use: int


def make_task(data: ImageSet, setting: str, seed: int, imbalance: float, images: int | None = None) -> Task:
    """The task of a setting. Every seed draws other images, and other rare kinds; all arms of a seed have the same.

    Args:
        data: CIFAR-10, or another set of images with ten classes.
        setting: One of ``SETTINGS``.
        seed: Of the drawing.
        imbalance: Images of the most frequent kind over those of the rarest, where there is a long tail.
        images: To train on at most, for trials; None for all that the setting has.

    Raises:
        PlanError: If the setting is none, the data has no vehicles to tell from animals, or a kind is left without
            images.
    """
    if setting not in SETTINGS:
        raise PlanError(f"setting is {setting!r}; it must be of {', '.join(SETTINGS)}")
    rng = np.random.default_rng([seed, SETTINGS.index(setting)])
    kinds = np.asarray(data.train.labels, dtype=np.int64)
    number = len(data.classes)
    most = int(np.bincount(kinds, minlength=number).min())
    if setting in ("long_tail", "hidden_kinds"):
        ranks = rng.permutation(number)
        wanted = [int(most * imbalance ** (-ranks[kind] / (number - 1))) for kind in range(number)]
    else:
        wanted = [min(most, BALANCED_IMAGES // number)] * number
    if images is not None:
        wanted = [max(1, count * images // sum(wanted)) for count in wanted]
    if min(wanted) < 1:
        raise PlanError(
            f"an imbalance of {imbalance:g} leaves the rarest kind without an image: the most frequent has {most}; "
            "give --imbalance less"
        )
    chosen = np.concatenate([rng.permutation(np.flatnonzero(kinds == kind))[: wanted[kind]] for kind in range(number)])
    chosen = rng.permutation(chosen)
    test_kinds = np.asarray(data.test.labels, dtype=np.int64)
    label_of = np.arange(number)
    if setting == "hidden_kinds":
        if not set(VEHICLES) < set(data.classes):
            raise PlanError(
                f"hidden_kinds takes CIFAR-10's classes, and this data has {', '.join(data.classes[:4])}, ..."
            )
        label_of = np.array([int(name in VEHICLES) for name in data.classes])
    labels = label_of[kinds[chosen]]
    if setting == "noisy":
        redrawn = rng.random(len(labels)) < NOISE_SHARE
        labels = np.where(redrawn, rng.integers(0, number, len(labels)), labels)
    train = _as_tensor(data.train.images[chosen])
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
    return Task(
        (train - mean) / deviation,
        torch.from_numpy(labels),
        tuple(int(count) for count in np.bincount(kinds[chosen], minlength=number)),
        (_as_tensor(data.test.images) - mean) / deviation,
        torch.from_numpy(label_of[test_kinds]),
        torch.from_numpy(test_kinds),
        len(set(label_of.tolist())),
    )


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
