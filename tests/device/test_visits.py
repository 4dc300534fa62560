"""Visits that are drawn, and those that the device counts."""

import copy

import pytest
import torch
from torch import nn

from batch_sampler_attn import EqualComputeControl
from batch_sampler_attn.errors import ProtocolError
from tests.device.helpers import are_equal, make_data, make_loop

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_control_repeats_a_batch_whose_loss_is_not_finite_as_often_as_planned():
    model = nn.Linear(1, 1)

    def loss_fn(outputs, targets):
        return outputs.detach().abs().sum() + 0 * model.weight.sum()

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0)

    inputs = torch.tensor([[1.0], [float("nan")], [2.0]])
    options = {"model": model, "optimizer": optimizer, "loss_fn": loss_fn}
    loop = make_loop(inputs, torch.zeros(3), 1, schedule=EqualComputeControl([[2, 2, 2]]), **options)
    summary = loop.run_epoch()
    assert loop.visit_counts == [2, 2, 2]
    assert (summary.visits, summary.nonfinite_losses) == (6, 2)
    assert summary.mean_loss == pytest.approx(model(inputs[[0, 2]]).abs().mean().item())


def test_random_repeats_leave_no_threshold_behind():
    """Neither on the device nor on a host that continues with the schedule."""
    schedule = EqualComputeControl([[2, 3, 2, 2, 2, 2, 4]] * 3)
    loop = make_loop(*make_data(50), schedule=schedule)
    loop.run_updates(4)
    assert (schedule.summary.repeats > 0, schedule.threshold, schedule.summary.threshold) == (True, None, None)
    assert (loop.run_epoch().threshold, schedule.threshold) == (None, None)
    for _ in schedule.attend(range(7)):
        schedule.decide(1.0)
        assert schedule.threshold is None
    assert schedule.last_summary.threshold is None


def test_a_control_of_other_data_or_of_fewer_epochs_is_refused_before_anything_is_trained():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets, schedule=EqualComputeControl([[1] * 6]))
    before = copy.deepcopy(loop.model)
    with pytest.raises(ProtocolError, match=r"visit_counts has 6 batches in epoch 0; give it 7"):
        loop.run_epoch()
    assert are_equal(loop.model, before)
    loop = make_loop(inputs, targets, schedule=EqualComputeControl([[1] * 7]))
    loop.run_epoch()
    before = copy.deepcopy(loop.model)
    with pytest.raises(ProtocolError, match="epoch 1 began"):
        loop.run_epoch()
    assert are_equal(loop.model, before)


def test_visits_in_mid_epoch_are_those_up_to_there():
    loop = make_loop(*make_data(50), schedule=EqualComputeControl([[2] * 7]))
    loop.run_updates(5)
    assert loop.visit_counts == [2, 2, 1, 0, 0, 0, 0]
    assert (loop.schedule.summary.batches, loop.schedule.summary.visits) == (2, 5)
