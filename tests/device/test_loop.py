"""The device loop against a naive loop around ``decide``, bit for bit; on the CPU, where both run eagerly."""

import random

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop
from tests.device.helpers import are_equal, make_data, make_loop, make_model, thinned, train, train_naively

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "warmup_epochs": [1, 2],
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [2, None],
    "epoch_length": [None, 5],
    "samples": [48, 50],
    "budget": [None, 0.15, 1.0],
    "floor": [0.0, 0.5],
    "optimizer": ["amsgrad", "momentum"],
    "update": ["plain", "noisy", "bfloat16", "scaled"],
}
UPDATES = {
    "plain": dict,
    "noisy": lambda: {"prepare": lambda inputs: inputs + 0.1 * torch.rand(inputs.shape)},
    "bfloat16": lambda: {"autocast": torch.bfloat16},
    "scaled": lambda: {"scaler": torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)},
}
OPTIMIZERS = {
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_losses_thresholds_summaries_and_weights_equal_those_of_a_naive_loop(case):
    number, options = case
    data, losses = make_data(options.pop("samples"), number), []
    optimizer, make_update = OPTIMIZERS[options.pop("optimizer")], UPDATES[options.pop("update")]
    ours, theirs = make_update(), make_update()
    options["k"] = random.Random(number).uniform(0.8, 1.5)
    schedule = BatchAttentionSchedule(**options)
    loop = make_loop(*data, losses=losses, schedule=schedule, optimizer=optimizer, **ours)
    trained, naive = train(loop, 5), BatchAttentionSchedule(**options)
    expected, expected_losses, model = train_naively(naive, *data, 5, optimizer=optimizer, **theirs)
    assert losses == expected_losses
    if schedule.options.epoch_length is not None:  # then a position is one of the schedule's epoch, not of the data's
        trained, expected = [summary for summary, _ in trained], [summary for summary, _ in expected]
    assert trained == expected
    assert schedule.threshold == naive.threshold
    assert loop.updates == len(losses)
    assert are_equal(loop.model, model)
    if "scaler" in ours:
        assert ours["scaler"].get_scale() == theirs["scaler"].get_scale() > 2.0**4


def test_without_a_schedule_it_is_plain_training():
    loop = make_loop(*make_data(50))
    trained = train(loop, 3)
    expected, _, model = train_naively(BatchAttentionSchedule(max_visits=1, warmup_epochs=9), *make_data(50), 3)
    assert trained == expected
    assert are_equal(loop.model, model)


@pytest.mark.parametrize("seed", range(2))
def test_the_control_trains_on_the_device_as_in_a_naive_loop(seed):
    rng = random.Random(seed)
    planned = [[rng.choice([1, 1, 1, 2, 5]) for _ in range(7)] for _ in range(4)]
    loop = make_loop(*make_data(50), schedule=EqualComputeControl(planned, seed=seed))
    trained = train(loop, 4)
    expected, _, model = train_naively(EqualComputeControl(planned, seed=seed), *make_data(50), 4)
    assert trained == expected
    assert [sorted(visits) for _, visits in trained] == [sorted(visits) for visits in planned]
    assert are_equal(loop.model, model)


def test_without_a_generator_orders_are_drawn_from_torchs_default():
    inputs, targets = make_data(50)
    model = make_model()
    loop = DeviceLoop(model, torch.optim.SGD(model.parameters()), torch.nn.functional.cross_entropy, inputs, targets, 8)
    torch.manual_seed(11)
    loop.run_epoch()
    torch.manual_seed(11)
    assert torch.equal(loop.order, torch.randperm(50))


def test_a_host_continues_with_the_schedule_of_a_loop():
    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    loop.run_epoch()
    summary = loop.run_epoch()
    assert (schedule.last_summary, schedule.visits) == (summary, 0)
    successor = BatchAttentionSchedule(1.0)
    successor.load_state_dict(schedule.state_dict())
    assert successor.threshold == summary.mean_loss
    assert [successor.decide(0.1) for _ in successor.attend(range(6))] == [Decision.ADVANCE] * 6
    assert successor.epoch == 3


def test_the_order_says_which_samples_were_in_which_batch():
    inputs, targets = make_data(50)
    seen, loop = [], make_loop(inputs, targets)
    loop.model.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    loop.run_epoch()
    assert torch.equal(torch.cat(seen), inputs[loop.order])


def test_a_loop_that_repeats_nothing_warns_once():
    loop = make_loop(*make_data(160), schedule=BatchAttentionSchedule(50.0))
    with pytest.warns(UserWarning, match=r"k=50.0 has repeated nothing in 5 epochs.*Use a lower k, or wait") as caught:
        summaries = [loop.run_epoch() for _ in range(8)]
    assert len(caught) == 1
    assert [summary.repeats for summary in summaries] == [0] * 8
