"""Orders that are computed: permutations, the same with NumPy and without, and even; and losses in two bytes."""

import math
import random
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import OptionError
from batch_sampler_attn.samples import order
from batch_sampler_attn.samples.order import STRETCH, count_below, gathered, stretch
from batch_sampler_attn.samples.rule import codes_of, loss_of_code


@contextmanager
def no_numpy():
    with patch.object(order, "numpy_or_none", lambda: None):
        stretch.cache_clear()
        yield
    stretch.cache_clear()


def whole(size, text):
    stretches = [stretch(size, text, number)[0] for number in range(-(-size // STRETCH))]
    return [element for elements in stretches for element in elements]


@settings(max_examples=25)
@given(some.integers(1, 6000), some.text(max_size=9))
def test_each_order_has_every_element_once_and_is_the_same_without_numpy(size, text):
    assert sorted(whole(size, text)) == [*range(size)]
    last = (size - 1) // STRETCH
    with_numpy = stretch(size, text, last)
    with no_numpy():
        assert stretch(size, text, last) == with_numpy


@pytest.mark.parametrize("size", [20_000_000, 2**33])
def test_an_order_of_many_elements_is_the_same_without_numpy_and_has_none_twice(size):
    numbers = [0, 7, size // STRETCH // 2, (size - 1) // STRETCH]
    found = [stretch(size, "0, pass 3", number) for number in numbers]
    elements = [element for row, _ in found for element in row]
    assert len({*elements}) == len(elements)
    assert 0 <= min(elements) <= max(elements) < size
    with no_numpy():
        assert stretch(size, "0, pass 3", 7) == found[1]


def is_even(counts):
    return stats.chisquare(numpy.asarray(counts).ravel()).pvalue > 1e-4


@pytest.mark.parametrize(("size", "orders"), [(7, 3000), (40, 1000), (1000, 100), (1001, 200), (5000, 50)])
def test_positions_neighbours_and_draws_are_even(size, orders):
    cells = min(size, 20)
    places, neighbours, steps = (numpy.zeros(shape) for shape in ((cells, cells), (cells, cells), size))
    draws = numpy.zeros(16)
    for seed in range(orders):
        elements = numpy.array(whole(size, f"{seed}, pass 1"))
        numpy.add.at(places, (numpy.arange(size) * cells // size, elements * cells // size), 1)
        numpy.add.at(neighbours, (elements[:-1] * cells // size, elements[1:] * cells // size), 1)
        numpy.add.at(steps, (elements[1:] - elements[:-1]) % size, 1)
        numpy.add.at(draws, numpy.array(stretch(size, f"{seed}, pass 1", 0)[1]) >> 28, 1)
    assert is_even(steps[1:])
    assert is_even(draws)
    if cells == size:
        neighbours = neighbours[~numpy.eye(size, dtype=bool)]
    # No element follows itself, which is seen in cells of two.
    assert size == 40 or is_even(neighbours)
    assert is_even(places)


def test_every_order_of_four_elements_comes_as_often():
    found = Counter(tuple(whole(4, f"{seed}, pass 0")) for seed in range(6000))
    assert len(found) == math.factorial(4)
    assert is_even([*found.values()])


def test_two_passes_and_two_seeds_have_orders_that_say_nothing_of_each_other():
    first, second, other = (numpy.array(whole(20_000, text)) for text in ("0, pass 1", "0, pass 2", "1, pass 1"))
    for one, two in ((first, second), (first, other)):
        assert (one == two).sum() < 10
        assert abs(numpy.corrcoef(one, two)[0, 1]) < 0.03


# Losses in two bytes -------------------------------------------------------------------------------------------


def test_codes_are_in_the_order_of_losses_and_near_them():
    rng = random.Random(0)
    losses = [rng.choice([-1, 1]) * rng.lognormvariate(0, 8) for _ in range(5000)] + [0.0, 1e-45, 3e38, -3e38]
    codes = codes_of(losses)
    with no_numpy():
        assert codes_of(losses) == codes
    back = [loss_of_code()[code] for code in codes]
    for loss, code, rounded in zip(losses, codes, back, strict=True):
        assert rounded == pytest.approx(loss, rel=2**-7, abs=1e-38)
        near = torch.tensor(loss).bfloat16()
        assert abs(rounded - near.item()) <= abs(near.item()) * 2**-7
        assert codes_of([rounded]) == [code]
    assert sorted(back) == [loss_of_code()[code] for code in sorted(codes)]
    assert codes_of([-0.0]) == codes_of([0.0])
    assert codes_of([1e300, -1e300]) == codes_of([3.38e38, -3.38e38])
    assert math.isnan(loss_of_code()[0xFFFF])


def test_a_mean_that_moves_in_small_steps_arrives():
    attention = SampleAttention(400, 400, prune_probability=0.0)
    means = []
    for epoch in range(250):
        for indices in attention.attend():
            attention.report([(2.0 if epoch < 20 else 0.1) + index / 1000 for index in indices])
        means = [suspect.mean_loss - suspect.sample / 1000 for suspect in attention.suspects(400)]
    exact = (20 * 2.0 + 230 * 0.1) / 250
    assert sum(means) / len(means) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("has_numpy", [True, False])
def test_numbers_are_gathered_and_counted(has_numpy):
    codes = order.array("H", random.Random(0).choices(range(2**16), k=600_000))
    with patch.object(order, "numpy_or_none", (lambda: numpy) if has_numpy else lambda: None):
        assert gathered(codes, [5, 0, 599_999]) == [codes[5], codes[0], codes[-1]]
        for step in (1, 3):
            assert count_below(30_000, memoryview(codes)[1::step]) == sum(code < 30_000 for code in codes[1::step])


# Suspects ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:a loss of .* is not finite")
def test_suspects_are_those_with_the_highest_mean_loss_with_ties_in_their_order():
    attention = SampleAttention(12, 4, prune_probability=0.0)
    losses = [1.0, 5.0, 2.0, math.nan, 5.0, math.inf, -1.0, 0.0, 2.0, 2.0, 3.0, 5.0]
    assert attention.suspects(3) == []
    for factor in (1, 3):
        for indices in attention.attend():
            attention.report([losses[index] * factor for index in indices])
    found = attention.suspects(5)
    assert [suspect.sample for suspect in found] == [1, 4, 11, 10, 2]
    assert found[0] == (1, 10.0, 2)
    assert [suspect.sample for suspect in attention.suspects(99)] == [1, 4, 11, 10, 2, 8, 9, 0, 7, 6]
    for n in (0, -1, 1.5, "3", True):
        with pytest.raises(OptionError, match="n is"):
            attention.suspects(n)
