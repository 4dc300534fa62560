"""What two runs are compared by, and what a verdict on a claim takes, on both sides of every limit."""

import math

import pytest

from benchmarks.report.claims import judge_claims
from benchmarks.report.results import (
    gain_at_same_cost,
    gain_at_same_loss,
    read_folders,
    repeats_before_convergence,
    tabulate,
)
from benchmarks.report.statistics import Verdict
from benchmarks.schema import Epoch
from tests.benchmarks.report_records import EXACT, write_records

HOLDS, FAILS, NEITHER = Verdict.HOLDS, Verdict.DOES_NOT_HOLD, Verdict.NO_DIFFERENCE
INCONCLUSIVE, HARDLY, FEW = Verdict.INCONCLUSIVE, Verdict.HARDLY_ANY_REPEATS, Verdict.NOT_ENOUGH_RUNS


def make_epochs(accuracies, losses=None, repeats=None, seconds=None):
    count = len(accuracies)
    columns = zip(accuracies, losses or [None] * count, repeats or [0] * count, seconds or [1.0] * count, strict=True)
    return [
        Epoch.model_construct(
            accuracy=accuracy, train_loss=loss, repeats=repeated, batches=10, updates=10 + repeated, seconds=time
        )
        for accuracy, loss, repeated, time in columns
    ]


def test_accuracy_at_the_same_cost_takes_attentions_last_epoch_within_the_baselines_cost():
    baseline = make_epochs([0.1, 0.2, 0.3, 0.4])
    attention = make_epochs([0.1, 0.3, 0.45, 0.6], repeats=[0, 5, 5, 5], seconds=[1, 1, 2, 1.5])
    # Updates: 10, 25, 40 of the baseline's 40; seconds: 1, 2, 4 of 4.
    assert gain_at_same_cost(attention, baseline, "updates") == pytest.approx(5)
    assert gain_at_same_cost(attention, baseline, "seconds") == pytest.approx(5)
    assert gain_at_same_cost(baseline, baseline, "seconds") == 0
    assert math.isnan(gain_at_same_cost(make_epochs([0.9], seconds=[9.0]), baseline, "seconds"))


def test_accuracy_at_the_same_loss_compares_where_both_arms_have_been():
    baseline = make_epochs([0.1, 0.2, 0.3], losses=[3.0, 2.0, 1.0])
    # At losses 2 to 1 the baseline has 0.2 to 0.3, and so has attention.
    assert gain_at_same_loss(make_epochs([0.2, 0.4], losses=[2.0, 0.0]), baseline) == pytest.approx(0)
    assert gain_at_same_loss(make_epochs([0.25, 0.35], losses=[2.0, 1.0]), baseline) == pytest.approx(5)
    assert math.isnan(gain_at_same_loss(make_epochs([0.5], losses=[0.5]), baseline))
    assert math.isnan(gain_at_same_loss(make_epochs([0.5], losses=[None]), baseline))


def test_repeats_count_before_the_baseline_first_has_nearly_its_best_accuracy():
    baseline = make_epochs([0.5, 0.7, 0.96, 1.0])
    attention = make_epochs([0.5, 0.7, 0.9, 0.9], repeats=[0, 1, 9, 9])
    # Epoch 2 only: nothing can repeat in epoch 1, and epoch 3 has 96 % of the best.
    assert repeats_before_convergence(attention, baseline) == pytest.approx(10)
    assert math.isnan(repeats_before_convergence(make_epochs([1.0, 1.0], repeats=[0, 9]), make_epochs([1.0, 1.0])))


MANY = {"classes": tuple(map(str, range(100))), "images": (640, 400_000)}
# Of 4 epochs, 3 repeat: 10 of 100 batches are 7.5 %. In every seed as many are right, so intervals have no width.
ON_BOTH_SIDES = [
    ("accuracy", {"gain": 0.0195}, FAILS),
    ("accuracy", {"gain": 0.0205}, HOLDS),
    ("macro_f1", {"gain": 0.0195}, FAILS),
    ("macro_f1", {"gain": 0.0205}, HOLDS),
    ("many", {"gain": 0.004} | MANY, HOLDS),
    ("many", {"gain": -0.004} | MANY, FAILS),
    ("random", {"gain": 0.01}, HOLDS),
    ("longer", {"gain": -0.05}, FAILS),
    ("loss", {"gain": 0.006}, HOLDS),
    ("loss", {"gain": -0.006}, FAILS),
    ("overhead", {"repeated": 19}, FAILS),
    ("overhead", {"repeated": 20}, HOLDS),
    ("overhead", {"repeated": 26}, HOLDS),
    ("overhead", {"repeated": 27}, FAILS),
    ("overhead", {"repeated": 21, "more_each_seed": 2}, HOLDS),
    ("overhead", {"repeated": 20, "more_each_seed": 3}, INCONCLUSIVE),
    ("few", {"repeated": 6, "rise": 0.9}, FAILS),
    ("few", {"repeated": 5, "rise": 0.9}, HOLDS),
    ("noise", {"gain": 0.02, "noises": (0, 3)}, HOLDS),
    ("noise", {"gain": -0.02, "noises": (0, 3)}, FAILS),
    ("noisier", {"gain": 0.02, "noises": (0, 3)}, HOLDS),
    ("noisier", {"gain": -0.02, "noises": (0, 3)}, FAILS),
    ("harm", {"gain": -0.006}, HOLDS),
    ("harm", {"gain": 0.006}, FAILS),
    ("harm", {"gain": -0.006, "top": 0.57}, HOLDS),
    ("harm", {"gain": -0.006, "top": 0.59}, None),
    ("accuracy", {"gain": 0.01, "images": (640, 20_000)}, FAILS),
    ("accuracy", {"gain": 0.01, "images": (640, 2_000)}, NEITHER),
    ("random", {"gain": 0.01, "images": (640, 2_000)}, NEITHER),
    ("random", {"gain": 0.01, "images": (640, 2_000), "seeds": tuple(range(9))}, NEITHER),
    ("random", {"gain": 0.01, "seeds": (0, 1)}, FEW),
    ("random", {"gain": 0.01, "repeated": 2}, HOLDS),
    ("random", {"gain": 0.01, "repeated": 1}, HARDLY),
    ("random", {"gain": 0.01, "repeated": 1, "more_each_seed": 20}, HARDLY),
    ("overhead", {"repeated": 1}, FAILS),
    ("few", {"repeated": 1, "rise": 0.9}, HARDLY),
]


def judge(folder, setting, epoch_loss="first"):
    """What is found of the claims by the records of a setting, by claim."""
    cifar = tabulate(read_folders([write_records(folder / "records", setting)]))
    return {finding.claim: finding for finding in reversed(judge_claims(cifar, epoch_loss))}


@pytest.mark.parametrize(("claim", "changes", "verdict"), ON_BOTH_SIDES)
def test_a_claim_is_judged_on_both_sides_of_its_limit(tmp_path, claim, changes, verdict):
    found = judge(tmp_path, EXACT._replace(**changes))
    assert (found[claim].verdict if claim in found else None) is verdict


def test_time_is_seconds_where_attention_and_baseline_had_a_machine_to_themselves_and_else_updates(tmp_path):
    alone = judge(tmp_path / "alone", EXACT._replace(is_shared=False, slower=1.08))
    assert "; 16.1 % more seconds (16.1 to 16.1)" in alone["overhead"].numbers
    assert alone["overhead"].verdict is HOLDS
    assert alone["overhead"].remark == alone["time"].remark == ""
    shared = judge(tmp_path / "shared", EXACT._replace(slower=1.1))
    assert shared["overhead"].gain.values.mean == pytest.approx(7.5)
    assert "seconds cannot be compared" in shared["overhead"].remark


def test_a_seed_without_a_baseline_is_no_part_of_what_is_compared_with_baselines(tmp_path):
    setting = EXACT._replace(seeds=(0, 1, 2, 3), repeated=30, more_each_seed=-10, gain=0.05)
    found = judge(tmp_path, setting._replace(unfinished=(("baseline", None, 0, 3),)))
    assert {claim for claim, each in found.items() if each.verdict is HARDLY} == {"random", "longer"}


def test_claims_are_judged_by_the_reading_that_is_asked_for(tmp_path):
    found = judge(tmp_path, EXACT._replace(readings=("last", "all")), "all")
    assert found["loss"].remark == "the arms' training losses are not of the same visits"


def test_a_verdict_that_does_not_survive_the_correction_is_overturned(tmp_path):
    """Three gains that vary by a tenth of their mean have p = 0.003, and there are a dozen verdicts."""
    found = judge(tmp_path, EXACT._replace(jitter=0.0007, gain=0.02, images=(640, 400_000), noises=(0, 1, 3)))
    verdicts = [finding for finding in found.values() if finding.verdict in (HOLDS, FAILS)]
    assert {finding.is_overturned for finding in verdicts} == {True, False}
    assert all(finding.is_overturned == (finding.gain.p >= 0.05) for finding in verdicts)
