"""Intervals, corrections, sampling errors, and what they say about a claim."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks.report import statistics
from benchmarks.report.claims import PAPER
from benchmarks.report.statistics import Verdict, holm, judge_at_most, judge_gain, judge_range, sample

NUMBERS = st.lists(st.floats(-1e3, 1e3).map(lambda number: round(number, 12)), min_size=2, max_size=8)
HOLDS, FAILS, FEW = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.NOT_ENOUGH_RUNS
NEITHER, INCONCLUSIVE = Verdict.NO_DIFFERENCE, Verdict.INCONCLUSIVE


@given(NUMBERS, st.floats(-10, 10))
def test_the_interval_and_p_are_those_of_scipys_paired_t_test(values, limit):
    differences = sample(values)
    if differences.deviation < 1e-9:
        assert differences.interval == pytest.approx((values[0], values[0]), abs=1e-6)
        assert sample([2.0, 2.0]).p(2.0) == 1
        assert sample([2.0, 2.0]).p(1.0) == 0
        return
    expected = stats.ttest_rel(values, [limit] * len(values))
    interval = stats.ttest_rel(values, [0.0] * len(values)).confidence_interval(0.95)
    assert differences.interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert differences.p(limit) == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@settings(max_examples=20)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_multiplies_the_least_p_by_how_many_there_are_and_the_next_by_one_less(p_values):
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    expected, before = dict.fromkeys(range(len(p_values)), math.nan), 0.0
    for rank, (p, place) in enumerate(tested):
        expected[place] = before = max(before, min(1.0, p * (len(tested) - rank)))
    assert holm(p_values) == pytest.approx([*expected.values()], nan_ok=True)


@pytest.mark.parametrize(
    ("values", "error", "above", "claimed"),
    [
        ([2.0, 2.5, 3.0], 0.0, HOLDS, HOLDS),
        ([0.9, 1.0, 1.1], 0.0, HOLDS, FAILS),
        ([-0.1, 0.0, 0.1], 0.0, FAILS, FAILS),
        ([-2.0, 1.0, 4.0], 0.0, NEITHER, NEITHER),
        ([], 0.0, FEW, FEW),
        ([2.0, 2.5, 3.0], 2.6, NEITHER, NEITHER),
        ([2.0, 2.5, 3.0], 2.4, HOLDS, HOLDS),
        ([1.5, 1.5, 1.5], 0.49, HOLDS, FAILS),
        ([1.5, 1.5, 1.5], 0.51, HOLDS, HOLDS),
        ([0.0, 0.0, 0.0], 0.51, NEITHER, FAILS),
    ],
)
def test_a_gain_is_judged_by_an_interval_that_reaches_as_far_as_the_sampling_error(values, error, above, claimed):
    assert judge_gain(sample(values), fails_below=0.5, sampling_error=error)[0] is above
    assert judge_gain(sample(values), fails_below=2.0, sampling_error=error, is_claim=True)[0] is claimed


def test_the_p_value_is_of_the_limit_that_the_verdict_rests_on():
    values = sample([0.9, 1.0, 1.1])
    assert judge_gain(values, fails_below=0.5)[1] == values.p(0)
    assert judge_gain(values, fails_below=2.0, is_claim=True)[1] == values.p(2)
    assert judge_range(values, least=15, most=20, widest=10)[1] == values.p(15)
    assert judge_range(values, least=-2, most=-1, widest=10)[1] == values.p(-1)
    assert math.isnan(judge_range(values, least=0, most=5, widest=10)[1])
    assert judge_at_most(values, most=5)[1] == values.p(5)


@pytest.mark.parametrize(
    ("values", "in_range", "at_most"),
    [
        ([17.0, 18.0, 19.0], HOLDS, FAILS),
        ([12.0, 13.0, 14.0], HOLDS, FAILS),
        ([11.0, 11.1, 11.2], FAILS, FAILS),
        ([30.0, 31.0, 32.0], FAILS, FAILS),
        ([5.0, 17.0, 30.0], INCONCLUSIVE, INCONCLUSIVE),
        ([3.0, 3.5, 4.0], FAILS, HOLDS),
        ([6.9, 8.9, 10.9], FAILS, INCONCLUSIVE),
        ([17.0], FEW, FEW),
    ],
)
def test_a_range_and_a_limit_are_judged_by_the_interval(values, in_range, at_most):
    assert judge_range(sample(values), least=15, most=20, widest=10)[0] is in_range
    assert judge_at_most(sample(values), most=5)[0] is at_most


def test_sampling_errors_are_the_spread_over_test_sets():
    rng, counts = np.random.default_rng(0), [300, 500, 400, 900]
    drawn = rng.binomial(2000, [0.9, 0.6], (40_000, 2)) / 20
    errors = [statistics.accuracy_error(accuracy, 2000) for accuracy in (90.0, 60.0)]
    assert errors == pytest.approx(drawn.std(axis=0), rel=0.02)
    assert statistics.variance_error(counts) == pytest.approx(
        np.std(rng.poisson(counts, (40_000, 4)).var(axis=1)), rel=0.02
    )


def test_the_papers_own_variances_come_from_its_counts():
    for of_arm in PAPER["table_2"].values():
        assert f"{np.var(of_arm['wrong']):.2f}" == of_arm["variance"]
