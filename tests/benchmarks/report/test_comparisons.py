"""What two runs with the same seed are compared by."""

import numpy as np
import pytest

from benchmarks.report.comparisons import (
    accuracy_at_same_cost,
    accuracy_at_same_loss,
    overhead_before_convergence,
)
from benchmarks.schema import Epoch


def make_epochs(accuracies, losses=None, repeats=None, seconds=None):
    return [
        Epoch.model_construct(
            epoch=number + 1,
            accuracy=accuracy,
            train_loss=None if losses is None else losses[number],
            repeats=0 if repeats is None else repeats[number],
            batches=10,
            updates=10 + (0 if repeats is None else repeats[number]),
            seconds=1.0 if seconds is None else seconds[number],
        )
        for number, accuracy in enumerate(accuracies)
    ]


def test_accuracy_at_the_same_cost_takes_attentions_last_epoch_within_the_baselines_time():
    baseline = make_epochs([0.1, 0.2, 0.3, 0.4])
    attention = make_epochs([0.1, 0.3, 0.45, 0.6], repeats=[0, 5, 5, 5], seconds=[1, 1, 1, 1.5])
    # Updates: 10, 25, 40 of the baseline's 40; seconds: 3 of 4.
    assert accuracy_at_same_cost(baseline, attention, in_seconds=False) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, attention, in_seconds=True) == pytest.approx(5)
    assert accuracy_at_same_cost(baseline, baseline, in_seconds=True) == 0
    late = make_epochs([0.9], seconds=[9.0])
    assert np.isnan(accuracy_at_same_cost(baseline, late, in_seconds=True))


def test_accuracy_at_the_same_loss_compares_where_both_arms_have_been():
    baseline = make_epochs([0.1, 0.2, 0.3], losses=[3.0, 2.0, 1.0])
    attention = make_epochs([0.2, 0.4], losses=[2.0, 0.0])
    # At losses 2 to 1 the baseline has 0.2 to 0.3, and so has attention.
    assert accuracy_at_same_loss(baseline, attention) == pytest.approx(0)
    better = make_epochs([0.25, 0.35], losses=[2.0, 1.0])
    assert accuracy_at_same_loss(baseline, better) == pytest.approx(5)
    apart = make_epochs([0.5], losses=[0.5])
    assert np.isnan(accuracy_at_same_loss(baseline, apart))


def test_repeats_count_before_the_baseline_first_has_nearly_its_best_accuracy():
    baseline = make_epochs([0.5, 0.7, 0.96, 1.0])
    attention = make_epochs([0.5, 0.7, 0.9, 0.9], repeats=[0, 1, 9, 9])
    # Epoch 2 only: nothing can repeat in epoch 1, and epoch 3 has 96 % of the best.
    assert overhead_before_convergence(baseline, attention) == pytest.approx(10)
    assert np.isnan(overhead_before_convergence(make_epochs([1.0, 1.0]), make_epochs([1.0, 1.0], repeats=[0, 9])))
