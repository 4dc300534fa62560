"""Label noise: exactly so many of every 32, whatever the data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cifar.label_noise import choose_images, redraw_labels


@given(
    images=st.integers(1, 300), per_group=st.integers(0, 32), seed=st.integers(0, 2**32), classes=st.integers(2, 100)
)
def test_exactly_so_many_labels_of_every_32_are_redrawn(images, per_group, seed, classes):
    true = np.arange(images, dtype=np.int64) % classes
    labels, is_redrawn = redraw_labels(true, classes, per_group, seed), choose_images(images, per_group, seed)
    for begin in range(0, images, 32):
        group = is_redrawn[begin : begin + 32]
        assert group.sum() == per_group * len(group) // 32
    assert (labels[~is_redrawn] == true[~is_redrawn]).all()
    assert ((labels >= 0) & (labels < classes)).all()
    assert (true == np.arange(images) % classes).all()


@given(seed=st.integers(0, 2**32), less=st.integers(0, 32), more=st.integers(0, 32))
def test_more_noise_redraws_the_same_labels_and_further_ones(seed, less, more):
    less, more = sorted((less, more))
    true = np.zeros(200, dtype=np.int64)
    few, many = (redraw_labels(true, 10, count, seed) for count in (less, more))
    few_redrawn, many_redrawn = (choose_images(200, count, seed) for count in (less, more))
    assert (many_redrawn | ~few_redrawn).all()
    assert (many[few_redrawn] == few[few_redrawn]).all()


def test_the_seed_fixes_it_and_another_seed_changes_it():
    true = np.arange(3200, dtype=np.int64) % 10
    first = redraw_labels(true, 10, 3, seed=1)
    again = redraw_labels(true, 10, 3, seed=1)
    other = redraw_labels(true, 10, 3, seed=2)
    assert (first == again).all()
    assert (first != other).any()


def test_labels_are_drawn_evenly_from_all_classes():
    true = np.zeros(64_000, dtype=np.int64)
    labels, is_redrawn = redraw_labels(true, 10, 6, seed=0), choose_images(len(true), 6, seed=0)
    counts = np.bincount(labels[is_redrawn], minlength=10)
    # 12,000 draws: five standard deviations of a count are 164.
    assert (np.abs(counts - 1200) < 164).all()
