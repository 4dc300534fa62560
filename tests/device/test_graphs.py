"""What the device loop has to know of captured updates, with a stand-in that captures as a CUDA graph does."""

import copy

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import graphs
from batch_sampler_attn.device.graphs import WARM_UP_UPDATES
from batch_sampler_attn.errors import DeviceLoopError
from tests.device.helpers import are_equal, loop_with, make_data, make_loop, without_reads
from tests.device.stand_in import pretend

FULL_AND_TAIL = 2


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def captured(monkeypatch):
    """Makes loops that believe that they capture; the list tells of every capture."""
    captures = []
    return lambda **options: pretend(new_loop(**options), captures, monkeypatch), captures


def new_loop(lr=1e-2):
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    for group in loop.parts.optimizer.param_groups:
        group["lr"] = lr
    return loop


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_learning_rate_schedule_is_followed_by_captured_updates(captured, as_tensor):
    make, captures = captured

    def train(make_one):
        loop = make_one(lr=torch.tensor(1e-2) if as_tensor else 1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(loop.parts.optimizer, 0.5)
        summaries = []
        for _ in range(6):
            summaries.append(without_reads(loop.run_epoch()))
            scheduler.step()
        return loop, summaries

    (ours, summaries), (expected, expected_summaries) = train(make), train(new_loop)
    assert summaries == expected_summaries
    assert are_equal(ours.model, expected.model)
    # A tensor is changed in place, so the graphs stay; a number costs a capture of each kind in every epoch.
    assert len(captures) == FULL_AND_TAIL if as_tensor else len(captures) > 2 * FULL_AND_TAIL


def test_a_number_that_is_one_of_several_is_followed_too(captured):
    make, captures = captured
    loop = make()
    for _ in range(5):
        loop.run_epoch()
    assert len(captures) == FULL_AND_TAIL
    loop.parts.optimizer.param_groups[0]["betas"] = (0.9, 0.5)
    loop.run_epoch()
    assert len(captures) == 2 * FULL_AND_TAIL


def test_a_state_with_other_tensors_has_updates_captured_anew(captured):
    make, captures = captured
    loop = make(lr=torch.tensor(1e-2))
    rates = [group["lr"] for group in loop.parts.optimizer.param_groups]
    at_first = copy.deepcopy(loop.state_dict())
    expected = [without_reads(loop.run_epoch()) for _ in range(6)]
    assert len(captures) == FULL_AND_TAIL
    loop.load_state_dict(at_first)
    assert all(group["lr"] is rate for group, rate in zip(loop.parts.optimizer.param_groups, rates, strict=True))
    assert [without_reads(loop.run_epoch()) for _ in range(6)] == expected
    assert len(captures) == 2 * FULL_AND_TAIL


def test_a_state_from_before_the_first_update_has_the_first_updates_eager_again(captured):
    make, captures = captured
    loop, expected = make(), new_loop()
    at_first = copy.deepcopy(loop.state_dict())
    loop.run_updates(WARM_UP_UPDATES)
    loop.load_state_dict(at_first)
    # A capture now would make the optimizer's state, and every replay would make it again.
    loop.run_updates(WARM_UP_UPDATES)
    assert captures == []
    expected.run_updates(WARM_UP_UPDATES)
    for _ in range(3):
        assert loop.run_epoch() == expected.run_epoch()
    assert are_equal(loop.model, expected.model)


def test_after_an_early_error_that_is_undone_the_first_updates_are_eager_again(monkeypatch):
    calls, captures = [], []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 1 + WARM_UP_UPDATES:  # the first is a look at a few samples
            raise ZeroDivisionError
        return torch.nn.functional.cross_entropy(outputs, targets)

    loop = pretend(loop_with(loss_fn=loss_fn), captures, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        loop.run_epoch()
    loop.run_updates(WARM_UP_UPDATES)
    assert captures == []
    loop.run_updates(1)
    assert len(captures) == 1


def test_a_capture_that_fails_leaves_everything_as_before_the_call(captured, monkeypatch):
    make, captures = captured
    expected = new_loop().run_epoch()
    loop = make()
    before = copy.deepcopy(loop.model)
    working = graphs.capture

    def failing(update, *rest):
        raise DeviceLoopError("the update cannot be captured")

    monkeypatch.setattr(graphs, "capture", failing)
    with pytest.raises(DeviceLoopError, match="cannot be captured"):
        loop.run_epoch()
    assert are_equal(loop.model, before)
    assert loop.updates == 0
    monkeypatch.setattr(graphs, "capture", working)
    assert without_reads(loop.run_epoch()) == without_reads(expected)
    assert len(captures) == 1


def test_after_a_capture_that_failed_the_first_updates_are_eager_again(captured, monkeypatch):
    make, captures = captured
    loop = make()
    finished = new_loop()
    finished.run_epoch()
    # With an optimizer state to begin from, none is replaced when it is put back.
    loop.load_state_dict(finished.state_dict())
    working = graphs.capture

    def failing(update, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(graphs, "capture", failing)
    with pytest.raises(DeviceLoopError, match="smaller batch"):
        loop.run_epoch()
    assert are_equal(loop.model, finished.model)
    monkeypatch.setattr(graphs, "capture", working)
    loop.run_updates(WARM_UP_UPDATES)
    assert captures == []
    loop.run_updates(1)
    assert len(captures) == 1


def test_the_first_updates_of_each_kind_are_eager(captured):
    make, captures = captured
    loop = make()
    loop.run_updates(WARM_UP_UPDATES)
    assert captures == []
    loop.run_updates(1)
    assert [update.__name__ for update in captures] == ["full_batch"]
    # Of the shorter batch there is one an epoch.
    for _ in range(WARM_UP_UPDATES):
        loop.run_epoch()
    assert [update.__name__ for update in captures] == ["full_batch"]
    loop.run_epoch()
    assert [update.__name__ for update in captures] == ["full_batch", "tail_batch"]


def test_a_state_that_the_host_keeps_is_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    adagrad = torch.optim.Adagrad([weight])
    with pytest.raises(DeviceLoopError, match="on the host"):
        graphs.check_optimizer_state(adagrad, torch.device("cuda"), [])
    counting = torch.optim.SGD([weight])
    counting.state[weight]["step"] = 2
    with pytest.raises(DeviceLoopError, match="on the host"):
        graphs.check_optimizer_state(counting, torch.device("cpu"), [1])
    graphs.check_optimizer_state(counting, torch.device("cpu"), [2])


def test_an_update_is_not_captured_before_its_optimizer_state_exists():
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.Adam(weights)
    weights[0].grad = torch.ones(2)
    optimizer.step()
    assert graphs.has_state(optimizer)
    weights[1].grad = torch.ones(2)
    assert not graphs.has_state(optimizer)
    optimizer.step()
    assert graphs.has_state(optimizer)
