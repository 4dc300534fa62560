"""When updates are captured, and what is said where they cannot be; on a stand-in for CUDA."""

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device.loop import DeviceLoop
from batch_sampler_attn.errors import DeviceLoopError, OptionError
from tests.device.helpers import same
from tests.device.replay.modes import switched_on
from tests.device.replay.scenarios import Asking, make_loop, run, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")

EAGER_UPDATES = 3


@pytest.fixture
def captures(monkeypatch):
    """Whether each captured update is one of full batches."""
    made, capture = [], DeviceLoop._capture

    def noting(loop, is_full):
        made.append(is_full)
        return capture(loop, is_full)

    monkeypatch.setattr(DeviceLoop, "_capture", noting)
    return made


def test_the_first_updates_of_each_kind_are_eager_also_after_a_state_was_loaded(captures):
    with switched_on():
        loop, _ = make_loop(schedule=BatchAttentionSchedule(max_visits=1))
        for _ in range(2):
            captures.clear()
            loop.run_updates(EAGER_UPDATES)
            assert captures == []
            # There are three full batches in an epoch, and a shorter one.
            run(loop, 1)
            loop.run_updates(1)
            assert captures == [True]
            run(loop, 3)
            assert captures == [True, False]
            loop.load_state_dict(loop.state_dict())
        run(make_loop(graph=False)[0], 4)
        assert captures == [True, False]


def test_only_a_number_of_the_optimizer_that_changes_takes_new_captures(captures):
    with switched_on():
        rate = torch.tensor(0.05, device="cuda")
        loop, optimizer = make_loop(
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate, capturable=True),
            schedule=BatchAttentionSchedule(max_visits=1),
        )
        for _ in range(5):
            run(loop, 1)
            rate.mul_(0.9)
            loop.model.eval()
            loop.state_dict()
        assert captures == [True, False]
        optimizer.param_groups[0]["betas"] = (0.9, 0.5)
        run(loop, 4)
        assert sorted(captures) == [False, False, True, True]


def test_gradients_are_dropped_with_the_graphs_whose_memory_they_are_in():
    with switched_on():
        loop, optimizer = make_loop()
        run(loop, 5)
        optimizer.param_groups[0]["lr"] = 0.5
        loop.enqueue(0)
        assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_a_value_that_is_read_on_the_host_is_named_and_all_stays_as_trained():
    with switched_on():
        asking = Asking()
        asking.most = 0
        loop, _ = make_loop(prepare=asking)
        said = r"CUDA graph: operation not permitted when stream is capturing.*\.item\(\).*pass graph=False"
        with pytest.raises(DeviceLoopError, match=said):
            run(loop, 2)
        before = weights_of(loop)
        assert loop.synchronize() is None
        assert loop.updates == loop.schedule.summary.visits + 4
        assert same(weights_of(loop), before)


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_other_errors_of_an_update_are_raised_as_they_are(error):
    def loss_fn(outputs, targets):
        if torch.cuda.is_current_stream_capturing():
            raise error
        return nn.functional.cross_entropy(outputs, targets)

    with switched_on():
        loop, _ = make_loop(loss_fn=loss_fn)
        with pytest.raises(type(error)) as raised:
            run(loop, 2)
        assert raised.value is error


CHANGES_ON_THE_HOST = {
    "a tensor of its own": lambda optimizer, *_: optimizer.state.update(mean=torch.zeros(1, device="cuda")),
    "a tensor on the host": lambda optimizer, *_: optimizer.state.update(drawn=torch.rand(())),
    "a setting": lambda optimizer, *_: optimizer.param_groups[0].update(drawn=torch.rand(()).item()),
}


@pytest.mark.parametrize("change", CHANGES_ON_THE_HOST.values(), ids=CHANGES_ON_THE_HOST)
def test_an_optimizer_whose_steps_change_what_a_replay_does_not_is_refused(change):
    with switched_on():
        loop, optimizer = make_loop()
        optimizer.register_step_post_hook(change)
        with pytest.raises(DeviceLoopError, match="each step of SGD changes its state on the host"):
            run(loop, 2)


def test_an_optimizer_that_is_not_capturable_is_refused_at_construction_unless_updates_are_eager():
    with switched_on():

        def adam(parameters):
            return torch.optim.Adam(parameters, lr=0.1, capturable=False)

        with pytest.raises(OptionError, match=r"capturable=False; construct it with True, or pass graph=False"):
            make_loop(optimizer=adam)
        make_loop(optimizer=adam, graph=False)


def test_a_loop_leaves_the_callers_random_numbers_alone():
    with switched_on() as machine:
        loop, _ = make_loop()
        before = machine.default_generator.get_state()
        run(loop, 5)
        assert torch.equal(machine.default_generator.get_state(), before)
