"""Label noise as in section 4.5 of the paper: of every 32 training images, so many get a label drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32


def redraw_labels(labels: NDArray[np.int64], classes: int, per_group: int, seed: int) -> NDArray[np.int64]:
    """Labels with ``per_group`` of every 32 drawn again, in the order in which the images are stored.

    A label is drawn from all classes, so with ten of them a tenth of those drawn is the true one again. With the same
    seed, more noise draws the same labels again and further ones. 1, 3 and 6 of 32 are the paper's 3, 10 and 20 %.
    """
    images, drawing = len(labels), np.random.default_rng(seed)
    groups = -(-images // GROUP_SIZE)
    ranks = drawing.random((groups, GROUP_SIZE))
    drawn = drawing.integers(0, classes, images)
    # The last group may be smaller, and then proportionally many are drawn again.
    last_size = images - (groups - 1) * GROUP_SIZE
    ranks[-1, last_size:] = np.inf
    wanted = np.full((groups, 1), per_group)
    wanted[-1] = per_group * last_size // GROUP_SIZE
    is_chosen = ranks.argsort(axis=1).argsort(axis=1) < wanted
    return np.where(is_chosen.reshape(-1)[:images], drawn, labels)
