"""A call that fails leaves everything as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.errors import DeviceLoopError, ProtocolError
from tests.device.helpers import are_equal, loop_with, make_data, make_loop, make_model, make_optimizer, same

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_schedule_in_mid_epoch_is_refused():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    with pytest.raises(ProtocolError, match="middle of an epoch"):
        loop.run_epoch()


CHANGES_OF_THE_SCHEDULE = {
    "abandoned": lambda schedule: schedule.abandon_epoch(),
    "loaded": lambda schedule: schedule.load_state_dict(schedule.state_dict()),
    "in another loop": lambda schedule: next(iter(schedule.attend([1]))),
}


@pytest.mark.parametrize("change", CHANGES_OF_THE_SCHEDULE.values(), ids=CHANGES_OF_THE_SCHEDULE)
def test_a_schedule_that_is_changed_while_updates_are_in_flight_is_told_of(change):
    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    loop.run_updates(2)
    loop.enqueue(2)
    change(schedule)
    with pytest.raises(DeviceLoopError, match=r"schedule was changed in mid-epoch.*Leave it alone"):
        loop.settle(now=True)


def test_running_out_of_memory_is_said_and_leaves_the_weights_as_they_were():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return nn.functional.cross_entropy(outputs, targets)

    model = make_model()
    before = copy.deepcopy(model)
    loop = loop_with(model=model, optimizer=make_optimizer(model), loss_fn=loss_fn)
    with pytest.raises(DeviceLoopError, match="smaller batch"):
        loop.run_epoch()
    assert are_equal(model, before)
    assert loop.run_epoch().batches == 6


def test_a_loader_that_yields_less_than_it_says_is_refused():
    class Short(DataLoader):
        def __iter__(self):
            return iter(list(super().__iter__())[:-1])

    inputs, targets = make_data(48)
    loop = loop_with(data=StagedData(Short(TensorDataset(inputs, targets), 8), 8, "cpu"))
    with pytest.raises(DeviceLoopError, match="ended after 5 batches"):
        loop.run_epoch()


def test_any_early_error_leaves_everything_as_before_the_call():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(outputs, targets)

    loop = loop_with(loss_fn=loss_fn)
    with torch.no_grad():
        next(loop.model.parameters()).add_(1.0)  # between construction and the call: this is to be kept
    before = loop.state_dict()
    with pytest.raises(ZeroDivisionError):
        loop.run_epoch()
    assert same(loop.state_dict(), before)
    assert loop.run_epoch().batches == 6


def test_an_interrupt_in_an_update_leaves_a_loop_that_can_go_on():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)

    loop = loop_with(loss_fn=loss_fn, schedule=BatchAttentionSchedule())
    with pytest.raises(KeyboardInterrupt):
        loop.run_epoch()
    summary = loop.run_epoch()
    assert (summary.batches, summary.visits) == (6, 6)


def test_a_state_is_refused_while_updates_are_in_flight():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    loop.enqueue(3)
    with pytest.raises(ProtocolError, match=r"settle\(now=True\)"):
        loop.state_dict()
    assert loop.settle(now=True) is None
    assert loop.state_dict()["updates"] == loop.updates == 7 + 3


class FailingSGD(torch.optim.SGD):
    """A step that raises the errors of a list, one in each step, as long as there are any but None."""

    errors: tuple = ()

    def step(self, closure=None):
        self.errors, error = self.errors[1:], self.errors[0] if self.errors else None
        if error is not None:
            raise error
        return super().step(closure)


def scaled_loop(*, fused, errors=()):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
    optimizer = FailingSGD(model.parameters(), lr=0.01, fused=fused)
    optimizer.errors = errors
    data = ResidentData(make_data(32)[0], torch.ones(32, 1), 8, generator=torch.Generator())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    options = {"autocast": torch.bfloat16, "scaler": scaler, "graph": None if fused else False}
    return DeviceLoop(model, optimizer, nn.functional.mse_loss, data, schedule=BatchAttentionSchedule(1.0), **options)


@pytest.mark.parametrize("after_epochs", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_scaled_step_that_fails_leaves_no_scale_for_the_next_one(fused, error, after_epochs):
    """Undone in the first call, or not undone later, or interrupted, which is never undone."""
    loop, expected = scaled_loop(fused=fused), scaled_loop(fused=fused)
    for _ in range(after_epochs):
        assert loop.run_epoch() == expected.run_epoch()
    loop.parts.optimizer.errors = (None, None, error)
    with pytest.raises(type(error)):
        loop.run_epoch()
    assert not {"grad_scale", "found_inf"} & vars(loop.parts.optimizer).keys()
    for _ in range(3):
        assert loop.run_epoch().mean_loss == expected.run_epoch().mean_loss
    assert are_equal(loop.model, expected.model)


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaled_step_that_fails_once_it_is_made_does_not_stand_in_the_way_of_the_next_one(fused, monkeypatch):
    loop = scaled_loop(fused=fused)
    scaler = loop.parts.recipe.scaler

    def update():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scaler, "update", update)
        with pytest.raises(KeyboardInterrupt):
            loop.run_epoch()
    assert loop.run_epoch().batches == 4
