"""Intervals, sampling errors, and what they say about a claim."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.report import paper
from benchmarks.report.results import variance
from benchmarks.report.statistics import (
    Verdict,
    accuracy_error,
    judge_above,
    judge_at_most,
    judge_gain,
    judge_range,
    sample,
    variance_error,
)

# Of points, not so small that their squares are 0.
NUMBERS = st.lists(st.floats(-1e3, 1e3).map(lambda number: round(number, 12)), min_size=2, max_size=8)


@given(NUMBERS)
def test_the_interval_is_that_of_scipys_paired_t_test(values):
    differences = sample(values)
    low, high = differences.interval
    if differences.deviation < 1e-9:
        assert (low, high) == (pytest.approx(values[0], abs=1e-6), pytest.approx(values[0], abs=1e-6))
        return
    expected = stats.ttest_rel(values, [0.0] * len(values)).confidence_interval(0.95)
    assert (low, high) == (
        pytest.approx(expected.low, rel=1e-6, abs=1e-9),
        pytest.approx(expected.high, rel=1e-6, abs=1e-9),
    )


def test_the_papers_own_variances_come_from_its_counts():
    assert [variance(row.wrong_predictions) for row in paper.TABLE_2] == pytest.approx([11144.36, 9163.96], abs=1e-9)
    assert [row.variance for row in paper.TABLE_2] == [11144.36, 9163.96]


@pytest.mark.parametrize(
    ("values", "above", "gain"),
    [
        ([2.0, 2.5, 3.0], "holds", "holds"),
        ([0.9, 1.0, 1.1], "holds", "does not hold"),
        ([-0.1, 0.0, 0.1], "does not hold", "does not hold"),
        ([-3.0, -2.0, -1.0], "does not hold", "does not hold"),
        ([-2.0, 1.0, 4.0], "cannot be told", "cannot be told"),
        ([2.5, 2.6], "not enough runs", "not enough runs"),
        ([], "not enough runs", "not enough runs"),
    ],
)
def test_a_claim_of_a_gain_is_judged_by_its_interval(values, above, gain):
    assert judge_above(sample(values), least_gain=0.5) is Verdict(above)
    assert judge_gain(sample(values), claimed=2.0) is Verdict(gain)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([17.0, 18.0, 19.0], "holds"),
        ([12.0, 13.0, 14.0], "holds"),
        ([11.0, 11.1, 11.2], "does not hold"),
        ([30.0, 31.0, 32.0], "does not hold"),
        ([5.0, 17.0, 30.0], "cannot be told"),
        ([17.0], "not enough runs"),
    ],
)
def test_a_claim_of_a_range_is_judged_by_its_interval(values, said):
    assert judge_range(sample(values), least=15, most=20, widest=10) is Verdict(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([3.0, 3.5, 4.0], "holds"),
        ([0.0, 0.0, 0.0], "holds"),
        ([6.9, 8.9, 10.9], "cannot be told"),
        ([20.0, 21.0, 22.0], "does not hold"),
        ([1.0, 1.0], "not enough runs"),
    ],
)
def test_a_claim_of_at_most_so_much_is_judged_by_its_interval(values, said):
    assert judge_at_most(sample(values), most=5) is Verdict(said)


@pytest.mark.parametrize(
    ("values", "error", "above", "gain"),
    [
        ([2.0, 2.5, 3.0], 2.6, "cannot be told", "cannot be told"),
        ([2.0, 2.5, 3.0], 2.4, "holds", "holds"),
        ([1.5, 1.5, 1.5], 0.49, "holds", "does not hold"),
        ([1.5, 1.5, 1.5], 0.51, "holds", "holds"),
        ([0.0, 0.0, 0.0], 0.49, "does not hold", "does not hold"),
        ([0.0, 0.0, 0.0], 0.51, "cannot be told", "does not hold"),
        ([2.0, 2.5], 0.0, "not enough runs", "not enough runs"),
    ],
)
def test_the_interval_that_is_judged_reaches_at_least_as_far_as_the_sampling_error(values, error, above, gain):
    assert judge_above(sample(values), least_gain=0.5, sampling_error=error) is Verdict(above)
    assert judge_gain(sample(values), claimed=2.0, sampling_error=error) is Verdict(gain)


def test_an_interval_that_is_wider_than_the_sampling_error_is_judged_as_it_is():
    values = sample([-2.0, 1.0, 4.0])
    assert values.reach(1.0) == pytest.approx(stats.t.ppf(0.975, 2) * 3 / math.sqrt(3))
    assert values.reach(9.0) == 9.0


@given(st.integers(20, 1977), st.integers(3, 50))
def test_three_of_2000_test_images_more_never_hold_however_many_seeds_agree(right, seeds):
    accuracies = [right / 20, (right + 3) / 20]
    error = accuracy_error(accuracies, 2000)
    difference = sample([accuracies[1] - accuracies[0]] * seeds)
    assert judge_above(difference, least_gain=0.5, sampling_error=error) is not Verdict.HOLDS
    assert judge_gain(difference, claimed=2.0, sampling_error=error) is not Verdict.HOLDS


def test_the_sampling_error_of_accuracy_is_the_spread_over_test_sets():
    drawn = np.random.default_rng(0).binomial(2000, [0.9, 0.6], (40_000, 2)) / 20
    assert accuracy_error([90.0, 60.0], 2000) == pytest.approx(np.std(drawn[:, 1] - drawn[:, 0]), rel=0.02)


def test_the_sampling_error_of_the_variance_is_the_spread_over_test_sets():
    counts = [300, 500, 400, 900]
    drawn = np.random.default_rng(0).poisson(counts, (40_000, 4)).var(axis=1)
    assert variance_error(counts) == pytest.approx(np.std(drawn), rel=0.02)
