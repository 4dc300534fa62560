"""What is done to model and optimizer after a capture is followed as in eager training; a stand-in captures."""

import copy

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, graphs
from batch_sampler_attn.device.graphs import WARM_UP_UPDATES
from batch_sampler_attn.errors import DeviceLoopError
from tests.device.helpers import CLASSES, add_noise, are_equal, loop_with, make_data, make_loop, same, without_reads
from tests.device.stand_in import pretend

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS = 5


def conv_loop(make_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (
            nn.Unflatten(1, (2, 1, 3)),
            nn.Conv2d(2, 4, (1, 2)),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )
        model = nn.Sequential(*layers)
    return loop_with(model=model, optimizer=make_optimizer(model.parameters()), schedule=BatchAttentionSchedule(1.0))


def freeze(loop):
    loop.model[1].weight.requires_grad_(False)


def lay_out_otherwise(loop):
    loop.model.to(memory_format=torch.channels_last)


def turn_round(loop):
    """At the same address."""
    weight = loop.model[1].weight
    weight.data = weight.data.transpose(1, 3)


def put_elsewhere(loop):
    loop.model[4].weight.data = loop.model[4].weight.data * 0.5


def put_a_frozen_one_elsewhere(loop):
    loop.model[1].bias.data = loop.model[1].bias.data + 1.0


def replace_a_buffer(loop):
    loop.model[2].running_mean = torch.zeros(4)


def load_the_optimizer(loop):
    loop.parts.optimizer.load_state_dict(copy.deepcopy(loop.parts.optimizer.state_dict()))


def forget_moments(loop):
    loop.parts.optimizer.state.pop(loop.model[4].bias)


CHANGES = [
    freeze,
    lay_out_otherwise,
    turn_round,
    put_elsewhere,
    put_a_frozen_one_elsewhere,
    replace_a_buffer,
    load_the_optimizer,
    forget_moments,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_after_a_capture_has_the_update_captured_anew_after_eager_ones(change, monkeypatch):
    captures = []
    captured, eager = pretend(conv_loop(), captures, monkeypatch), conv_loop()
    for loop in (captured, eager):
        loop.model[1].bias.requires_grad_(False)
        loop.run_epoch()
    assert len(captures) == 1
    for loop in (captured, eager):
        change(loop)
        loop.run_updates(WARM_UP_UPDATES)
    assert len(captures) == 1
    for _ in range(EPOCHS):
        assert captured.run_epoch() == eager.run_epoch()
    assert len(captures) == 2
    assert are_equal(captured.model, eager.model)


def test_nothing_is_captured_anew_where_nothing_has_changed(monkeypatch):
    captures = []
    loop = pretend(conv_loop(), captures, monkeypatch)
    for _ in range(EPOCHS):
        loop.run_epoch()
        loop.model.eval()
        loop.load_state_dict(loop.state_dict())
    assert len(captures) == 1


def test_parameters_that_are_thawed_are_trained(monkeypatch):
    captures = []
    captured, eager = pretend(conv_loop(), captures, monkeypatch), conv_loop()
    for loop in (captured, eager):
        loop.model[4].requires_grad_(False)
        loop.run_epoch()
        frozen = loop.model[4].weight.clone()
        loop.model[4].requires_grad_(True)
        loop.run_epoch()
        assert not torch.equal(loop.model[4].weight, frozen)
    assert are_equal(captured.model, eager.model)


def test_an_optimizer_that_replaces_its_state_in_every_step_is_refused_and_the_weights_stay(monkeypatch):
    class Replacing(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    state = self.state[parameter]
                    state["mean"] = state.get("mean", 0) * 0.9 + parameter.grad
            return super().step(closure)

    loop = conv_loop(lambda parameters: Replacing(parameters, lr=0.1))

    def capture(update, stream, pool, generators):
        update()  # what Python does of it is done in a capture too

    pretend(loop, [], monkeypatch)
    monkeypatch.setattr(graphs, "capture", capture)
    before = copy.deepcopy(loop.model)
    with pytest.raises(DeviceLoopError, match="change them in place, or pass graph=False"):
        loop.run_epoch()
    assert are_equal(loop.model, before)


def test_an_update_is_not_captured_while_its_optimizer_lacks_a_state(monkeypatch):
    captures = []
    loop = pretend(conv_loop(), captures, monkeypatch)
    loop.run_updates(WARM_UP_UPDATES)
    made = []

    def full_batch():
        made.append(len(captures))

    stepped = loop.model[4].bias
    stepped.grad = torch.zeros_like(stepped)
    kept = loop.parts.optimizer.state.pop(stepped)
    for _ in range(2):
        loop.parts.graphs.run(full_batch)
    assert (len(made), captures) == (2, [])
    loop.parts.optimizer.state[stepped] = kept
    loop.parts.graphs.run(full_batch)
    assert captures == [full_batch]


@pytest.mark.parametrize("change", [freeze, lambda loop: loop.parts.optimizer.param_groups[0].update(lr=0.5)])
def test_gradients_go_with_the_graphs_whose_memory_they_lie_in(change, monkeypatch):
    loop = pretend(conv_loop(), [], monkeypatch)
    loop.run_epoch()
    assert loop.model[4].weight.grad is not None
    change(loop)
    loop.parts.graphs.follow_changes()
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_graphs_share_a_pool_and_those_that_come_after_them_have_another(monkeypatch):
    loop, pools = pretend(make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0)), [], monkeypatch), []
    working = graphs.capture

    def capture(update, stream, pool, generators):
        pools.append(pool)
        return working(update, stream, pool, generators)

    monkeypatch.setattr(graphs, "capture", capture)
    for lr in (0.1, 0.05):
        loop.parts.optimizer.param_groups[0]["lr"] = lr
        for _ in range(EPOCHS):
            loop.run_epoch()
    of_first, *others = pools
    assert [pool is of_first for pool in others] == [True, False, False]
    assert pools[2] is pools[3]


# Captures that fail --------------------------------------------------------------------------------------------


def fail_in(kind, loop, monkeypatch):
    """Have the capture of one kind of update fail, as long as the list that is returned has something in it."""
    working, failures = graphs.capture, [kind]

    def capture(update, *rest):
        if update.__name__ in failures:
            torch.rand(3, generator=loop.parts.randomness.fresh)
            raise DeviceLoopError("the update cannot be captured")
        return working(update, *rest)

    monkeypatch.setattr(graphs, "capture", capture)
    return failures


@pytest.mark.parametrize("kind", ["full_batch", "tail_batch"])
def test_a_capture_that_fails_is_undone_whichever_kind_it_is_of_and_can_be_tried_again(kind, monkeypatch):
    def new_loop():
        return make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))

    loop, expected = pretend(new_loop(), [], monkeypatch), new_loop()
    failures = fail_in(kind, loop, monkeypatch)
    summaries, failed = [], 0
    while len(summaries) < 2 * EPOCHS:
        before = copy.deepcopy(loop.state_dict())
        try:
            summaries.append(without_reads(loop.run_epoch()))
        except DeviceLoopError:
            failed += 1
            assert same(loop.state_dict(), before)
            failures.clear()
    assert failed == 1
    assert summaries == [without_reads(expected.run_epoch()) for _ in range(2 * EPOCHS)]
    assert are_equal(loop.model, expected.model)


def test_a_capture_that_fails_after_others_worked_leaves_a_loop_that_can_go_on(monkeypatch):
    loop, expected = pretend(conv_loop(), [], monkeypatch), conv_loop()
    for _ in range(2):
        assert without_reads(loop.run_epoch()) == without_reads(expected.run_epoch())
    for each in (loop, expected):
        each.parts.optimizer.param_groups[0]["lr"] = 0.005
    renewed = []
    monkeypatch.setattr(loop.parts.randomness, "renew", renewed.append)
    failures = fail_in("full_batch", loop, monkeypatch)
    before = loop.parts.randomness.state_dict()
    with pytest.raises(DeviceLoopError):
        loop.run_epoch()
    # On a device, generators that a failed capture drew from are replaced by others in the state before it.
    assert same([state["loop"]["fresh"] for state in renewed], [before["loop"]["fresh"]])
    failures.clear()
    for _ in range(EPOCHS):
        assert without_reads(loop.run_epoch()) == without_reads(expected.run_epoch())
    assert are_equal(loop.model, expected.model)


def test_a_capture_that_fails_takes_the_others_with_it_since_they_draw_from_the_same_generators(monkeypatch):
    captures = []
    loop = pretend(make_loop(*make_data(50)), captures, monkeypatch)
    for _ in range(EPOCHS):
        loop.run_epoch()
    loop.parts.optimizer.param_groups[0]["lr"] = 0.005
    failures = fail_in("tail_batch", loop, monkeypatch)
    captures.clear()
    with pytest.raises(DeviceLoopError):
        loop.run_epoch()
    failures.clear()
    for _ in range(2):
        loop.run_epoch()
    assert [update.__name__ for update in captures] == ["full_batch", "full_batch"]


def test_an_interrupt_in_a_capture_leaves_a_loop_that_can_go_on(monkeypatch):
    loop, expected = pretend(conv_loop(), [], monkeypatch), conv_loop()
    working, interrupts, renewed = graphs.capture, [KeyboardInterrupt()], []
    monkeypatch.setattr(loop.parts.randomness, "renew", renewed.append)

    def capture(update, *rest):
        if interrupts:
            raise interrupts.pop()
        return working(update, *rest)

    monkeypatch.setattr(graphs, "capture", capture)
    with pytest.raises(KeyboardInterrupt):
        loop.run_epoch()
    assert len(renewed) == 1
    for _ in range(EPOCHS):
        assert without_reads(loop.run_epoch()) == without_reads(expected.run_epoch())
    assert are_equal(loop.model, expected.model)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_generator_is_told_of_only_where_updates_draw_from_it(fresh, monkeypatch):
    captures = []
    loop = loop_with(augmentation=Augmentation(add_noise, draws=6, fresh=fresh))
    pretend(loop, captures, monkeypatch).run_epoch()
    assert len(captures) == 1
