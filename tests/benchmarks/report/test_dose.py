"""A verdict takes repeats, runs, and more than the test set leaves open."""

import pytest

from benchmarks.report.claims import judge_claims
from benchmarks.report.results import read_experiments
from benchmarks.report.statistics import (
    Verdict,
)
from tests.benchmarks.report.pages import PLAIN
from tests.benchmarks.report_records import write_records

OF_OVERHEAD = "Training takes 15 to 20 % longer (section 4.2 and conclusion)"
WITH_NOISE = "It is ahead with label noise too (section 4.5, figure 8)"


def verdicts(folder, setting):
    """By claim; each is judged once with one reading and two levels of noise."""
    found = judge_claims(read_experiments([write_records(folder, setting)]))
    assert len({finding.claim for finding in found}) == len(found)
    return {finding.claim: finding.verdict for finding in found}


def test_the_same_three_images_in_every_seed_do_not_hold_on_2000_and_do_on_2_million(tmp_path):
    # With 3 of 32 labels redrawn, half of the gain is left.
    three = PLAIN._replace(gain=0.003, seeds=tuple(range(12)))
    few = verdicts(tmp_path / "few", three._replace(images=(640, 2000)))
    many = verdicts(tmp_path / "many", three._replace(images=(640, 2_000_000)))
    assert few[WITH_NOISE] is Verdict.CANNOT_BE_TOLD
    assert many[WITH_NOISE] is Verdict.HOLDS


@pytest.mark.parametrize(
    ("repeated", "more_each_seed", "said"),
    [(3, 0, True), (4, 0, False), (3, 40, True), (0, 0, True), (4, 40, False)],
)
def test_below_one_repeat_in_a_hundred_batches_in_any_run_nothing_is_judged_but_the_time(
    tmp_path, repeated, more_each_seed, said
):
    # 4 of 400 batches are 1 %.
    setting = PLAIN._replace(repeated_once=repeated, more_each_seed=more_each_seed, gain=0.05)
    found = verdicts(tmp_path / "records", setting)
    assert found.pop(OF_OVERHEAD) is not Verdict.HARDLY_ANY_REPEATS
    assert len(found) >= 9
    assert {verdict is Verdict.HARDLY_ANY_REPEATS for verdict in found.values()} == {said}


def test_with_two_seeds_there_are_not_enough_runs_whatever_is_repeated(tmp_path):
    found = verdicts(tmp_path / "records", PLAIN._replace(seeds=(0, 1), repeated_once=0))
    assert set(found.values()) == {Verdict.NOT_ENOUGH_RUNS}


def test_the_dose_that_counts_is_that_of_the_runs_that_are_compared(tmp_path):
    """A seed without a baseline repeats nothing: only what is not compared with baselines is touched by it."""
    setting = PLAIN._replace(seeds=(0, 1, 2, 3), repeated_once=90, more_each_seed=-30, noises=(0,), gain=0.05)
    found = verdicts(tmp_path / "records", setting._replace(unfinished=(("baseline", None, 0, 3),)))
    little = {claim for claim, verdict in found.items() if verdict is Verdict.HARDLY_ANY_REPEATS}
    assert little == {claim for claim in found if claim.startswith("Not in the paper")}
