"""Label noise as in section 4.5 of the paper: of every 32 training images, so many get a label drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import PlanError

GROUP_SIZE = 32


def redraw_labels(
    labels: NDArray[np.int64], classes: int, per_group: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Redraw ``per_group`` labels of every 32, in the order in which the images are stored.

    A label is drawn from all classes, so with ten of them a tenth of the redrawn labels is the true one again. With
    the same seed, more noise redraws the same labels and further ones. Where fewer than 32 images are left at the
    end, proportionally many of them are redrawn, rounded down.

    Args:
        labels: (images,).
        classes: How many there are.
        per_group: 1, 3 and 6 are the paper's 3, 10 and 20 %.
        seed: Fixes which labels are redrawn, and to what.

    Returns:
        The labels, and which of them were redrawn, each (images,).

    Raises:
        PlanError: If ``per_group`` is not 0 to 32.
    """
    if not 0 <= per_group <= GROUP_SIZE:
        raise PlanError(
            f"label noise is {per_group}; it counts images of every {GROUP_SIZE}, so it is 0 to {GROUP_SIZE}"
        )
    drawing = np.random.default_rng(seed)
    groups = -(-len(labels) // GROUP_SIZE)
    # All of it is drawn whatever per_group is, so that levels of noise are nested.
    ranks = drawing.random((groups, GROUP_SIZE))
    drawn = drawing.integers(0, classes, len(labels))
    last_size = len(labels) - (groups - 1) * GROUP_SIZE
    ranks[-1, last_size:] = np.inf
    places = ranks.argsort(axis=1).argsort(axis=1)
    wanted = np.full((groups, 1), per_group)
    wanted[-1] = per_group * last_size // GROUP_SIZE
    is_redrawn = (places < wanted).reshape(-1)[: len(labels)]
    return np.where(is_redrawn, drawn, labels), is_redrawn
