"""The made-up records try every verdict, on both sides of every limit."""

import collections

import pytest

from tests.benchmarks.report_numbers.findings import (
    CANNOT_BE_TOLD,
    CLAIMS,
    DOES_NOT_HOLD,
    HARDLY_ANY_REPEATS,
    HOLDS,
    NOT_ENOUGH_RUNS,
    Limits,
    findings,
)
from tests.benchmarks.report_numbers.folders import read_folder
from tests.benchmarks.report_records import CASES, write_case


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """All findings of the made-up records."""
    folder = tmp_path_factory.mktemp("made up")
    folders = [(read_folder(path), CASES[case][1]) for case in CASES for path in write_case(case, folder / case)]
    return [finding for each, asked in folders for finding in findings(each, asked)]


def test_the_made_up_records_reach_every_verdict_of_every_rule(made_up):
    reached = collections.defaultdict(set)
    for finding in made_up:
        reached[finding.rule].add(finding.verdict())
    everything = {HOLDS, DOES_NOT_HOLD, CANNOT_BE_TOLD, HARDLY_ANY_REPEATS, NOT_ENOUGH_RUNS}
    with_repeats = dict.fromkeys(("ahead", "above 0", "up by 2", "at most 5"), everything)
    assert reached == with_repeats | {"15 to 20": everything - {HARDLY_ANY_REPEATS}}
    assert {finding.claim for finding in made_up} == set(CLAIMS)


@pytest.mark.parametrize(
    "limits",
    [
        {"least_runs": 2},
        {"least_runs": 4},
        {"least_dose": 0.7},
        {"least_dose": 1.01},
        {"least_gain": 0.3},
        {"least_gain": 0.7},
        {"least_change": -0.5},
        {"least_change": 0.5},
        {"claimed": 1.7},
        {"claimed": 2.3},
        {"least_overhead": 14},
        {"least_overhead": 16},
        {"most_overhead": 19},
        {"most_overhead": 21},
        {"widest_overhead": 8},
        {"widest_overhead": 12},
        {"few_repeats": 4},
        {"few_repeats": 6},
        {"sampling_errors": 0},
        {"sampling_errors": 0.8},
        {"sampling_errors": 1.25},
    ],
)
def test_the_made_up_records_lie_on_both_sides_of_every_limit(made_up, limits):
    assert [each.verdict() for each in made_up] != [each.verdict(Limits(**limits)) for each in made_up]
