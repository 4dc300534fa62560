"""What pays, what harms, and what remains after the correction."""

import numpy as np
import pytest

from benchmarks.errors import RecordsError
from benchmarks.report.results import read_folders
from benchmarks.report.selection import read_results, report_selection
from benchmarks.report.statistics import Verdict
from tests.benchmarks.report_records import write_selection


def noise(seed, seeds=8, spread=0.1):
    return np.random.default_rng(seed).normal(0, spread, seeds)


def judge(folder, gain, seeds=8, over_control=None, arm="left_out", control="left_out_random", spread=0.1):
    plain = 50 + noise(0, seeds, 2)
    ours = plain + gain + noise(1, seeds, spread)
    scores = {("noisy", "plain"): plain, ("noisy", arm): ours}
    if over_control is not None:
        scores["noisy", control] = ours - over_control + noise(2, seeds, spread)
    (results,) = read_results(read_folders([write_selection(folder / "out", "images", scores)]))
    return {finding.arm: finding for finding in results.findings}, results


@pytest.mark.parametrize(
    ("gain", "over_control", "seeds", "verdict"),
    [
        (2.0, 2.0, 8, Verdict.PAYS),
        (2.0, 0.0, 8, Verdict.NO_DIFFERENCE),
        (2.0, 2.0, 7, Verdict.NOT_ENOUGH_RUNS),
        (2.0, None, 8, Verdict.NOT_ENOUGH_RUNS),
        (0.0, 0.0, 8, Verdict.NO_DIFFERENCE),
        (-2.0, 0.0, 3, Verdict.HARMS),
        (-2.0, 0.0, 2, Verdict.NOT_ENOUGH_RUNS),
    ],
)
def test_an_arm_pays_by_intervals_over_plain_training_and_over_its_control(
    tmp_path, gain, over_control, seeds, verdict
):
    found, _ = judge(tmp_path, gain, seeds, over_control)
    assert found["left_out"].verdict is verdict
    if over_control is not None:
        assert found["left_out_random"].verdict is Verdict.CONTROL
    else:  # which an arm without a control does not need
        assert judge(tmp_path / "alone", gain, arm="repeated")[0]["repeated"].verdict is Verdict.PAYS


def test_gains_are_paired_by_seed_and_all_intervals_are_corrected_together(tmp_path):
    found, results = judge(tmp_path, 0.2, over_control=0.2)
    left_out = found["left_out"]
    assert left_out.gain.values.deviation < 0.5  # plain training varies by 2
    assert results.family == 3
    gains = left_out.gain, left_out.over, found["left_out_random"].gain
    assert min(each.p for each in gains) == pytest.approx(3 * min(each.values.p() for each in gains))


def test_a_verdict_that_does_not_survive_the_correction_says_so(tmp_path):
    found, _ = judge(tmp_path, 0.1, over_control=0.14, spread=0.12)
    assert found["left_out"].verdict is Verdict.PAYS
    assert not found["left_out"].survives
    text = report_selection(read_folders([tmp_path / "out"])).markdown
    assert "✓ **pays**, not after correction" in text
    assert "left_out on 10 % label noise +0." in text.replace("\\_", "_").splitlines()[3]


def test_kinds_are_compared_at_the_rate_that_validation_chose_planned_and_added_seeds_apart(tmp_path):
    plain, scores = -2 + noise(0, 16, 0.01), {}
    for rate in (0.5, 1.0, 2.0):
        scores["text", "plain", rate] = plain
        scores["text", "left_out", rate] = plain + rate / 10 + noise(5, 16, 0.001)
        scores["text", "left_out_random", rate] = plain + noise(6, 16, 0.001)
    folder = write_selection(tmp_path / "out", "kinds", scores, {("text", "left_out", 2.0): 1.0})
    planned, added = read_results(read_folders([folder]))
    assert {*planned.frame["seed"]} == {*range(8)}
    assert {*added.frame["seed"]} == {*range(8, 16)}
    for results in (planned, added):
        found = {finding.arm: finding for finding in results.findings}
        assert found["left_out"].gain.values.mean == pytest.approx(0.2, abs=0.01)
        assert found["left_out"].verdict is Verdict.PAYS
        assert results.family == 1
        assert {*results.frame[results.frame["arm"] == "left_out"]["rate"]} == {2.0}
    text = report_selection(read_folders([folder])).markdown.replace("\\_", "_")
    assert "+0.2000 (" in text
    assert "still: left_out on text, left_out_random on text, plain on text." in text
    assert "Rate: times 0.03." in text


def test_the_rarest_third_is_of_the_groups_with_the_fewest_samples(tmp_path):
    scores = {("long_tail", "plain"): [20.0] * 3, ("long_tail", "left_out"): [30.0] * 3}
    (results,) = read_results(read_folders([write_selection(tmp_path / "out", "images", scores)]))
    # Counts are 30, 20, 10, and the score is the recall of the last.
    assert [*results.frame["rarest_third"]] == [20.0] * 3 + [30.0] * 3
    assert [*results.frame["worst"]] == [20.0] * 3 + [30.0] * 3


def test_folders_with_other_plans_and_without_runs_are_refused(tmp_path):
    one = write_selection(tmp_path / "1", "images", {("noisy", "plain"): [50.0]})
    other = write_selection(tmp_path / "2", "kinds", {("noisy", "plain", 1.0): [50.0]})
    with pytest.raises(RecordsError, match="different plans"):
        read_results(read_folders([one, other]))
    with pytest.raises(RecordsError, match="no finished run"):
        read_results(read_folders([write_selection(tmp_path / "3", "images", {})]))
