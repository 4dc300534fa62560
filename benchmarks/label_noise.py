"""Label noise as in section 4.5 of the paper: of every 32 training images, so many get a label drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32


def redraw_labels(labels: NDArray[np.int64], classes: int, per_group: int, seed: int) -> NDArray[np.int64]:
    """Redraw ``per_group`` labels of every 32, in the order in which the images are stored.

    A label is drawn from all classes, so with ten of them a tenth of the redrawn labels is the true one again. With
    the same seed, more noise redraws the same labels and further ones.

    Args:
        labels: (images,).
        classes: How many there are.
        per_group: 1, 3 and 6 are the paper's 3, 10 and 20 %.
        seed: Fixes which labels are redrawn, and to what.

    Returns:
        The labels, (images,).
    """
    drawing = np.random.default_rng(seed)
    _draw_ranks(len(labels), drawing)
    drawn = drawing.integers(0, classes, len(labels))
    return np.where(choose_images(len(labels), per_group, seed), drawn, labels)


def choose_images(images: int, per_group: int, seed: int) -> NDArray[np.bool_]:
    """Which images get another label: exactly ``per_group`` of every 32.

    Where fewer than 32 are left at the end, proportionally many of them, rounded down.

    Args:
        images: How many there are.
        per_group: 0 to 32.
        seed: Fixes which.

    Returns:
        (images,).
    """
    ranks = _draw_ranks(images, np.random.default_rng(seed))
    groups = len(ranks)
    last_size = images - (groups - 1) * GROUP_SIZE
    ranks[-1, last_size:] = np.inf
    places = ranks.argsort(axis=1).argsort(axis=1)
    wanted = np.full((groups, 1), per_group)
    wanted[-1] = per_group * last_size // GROUP_SIZE
    chosen: NDArray[np.bool_] = (places < wanted).reshape(-1)[:images]
    return chosen


def _draw_ranks(images: int, drawing: np.random.Generator) -> NDArray[np.float64]:
    """A number for each place in each group; the least are chosen, so that levels of noise are nested."""
    return drawing.random((-(-images // GROUP_SIZE), GROUP_SIZE))
