"""What an update does to inputs and modules."""

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule
from tests.device.helpers import are_equal, make_data, make_loop, make_model, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_prepare_receives_the_epochs_number_as_a_tensor_that_changes_in_place():
    class Watching:
        def set_epoch(self, epoch):
            self.epoch, self.seen = epoch, []

        def __call__(self, inputs):
            self.seen.append(self.epoch.item())
            return inputs

    prepare = Watching()
    loop = make_loop(*make_data(16), prepare=prepare)
    for _ in range(3):
        loop.run_epoch()
    assert prepare.seen == [0, 0, 1, 1, 2, 2]


def test_modules_that_were_in_evaluation_mode_stay_frozen():
    model = make_model()
    model[1].eval()
    loop = make_loop(*make_data(48), model=model)
    statistics = model[1].running_mean.clone()
    loop.run_epoch()
    model.eval()
    loop.run_epoch()
    model.train()
    loop.run_epoch()
    assert torch.equal(model[1].running_mean, statistics)
    assert model[3].training


def test_a_model_that_is_in_evaluation_mode_throughout_is_trained_throughout():
    """As one is that was evaluated just before."""
    evaluated = make_model()
    evaluated.eval()
    loop, expected = make_loop(*make_data(50), model=evaluated), make_loop(*make_data(50))
    assert train(loop, 1) == train(expected, 1)
    assert all(module.training for module in evaluated.modules())
    assert are_equal(evaluated, expected.model)


def test_in_an_autocast_of_the_callers_no_weights_are_stale():
    """Its cache outlives an update, and has weights as they were cast first."""

    loop, expected = (
        make_loop(*make_data(50), autocast=torch.bfloat16, schedule=BatchAttentionSchedule(1.0)) for _ in range(2)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = train(loop, 3)
    assert trained == train(expected, 3)
    assert are_equal(loop.model, expected.model)
