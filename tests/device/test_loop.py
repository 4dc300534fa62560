"""The device loop against a naive loop around ``decide``, bit for bit; on the CPU, where both run eagerly."""

import copy
import random

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.device.helpers import are_equal, make_data, make_loop, thinned, train, train_naively

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

    def noting(outputs, targets):
        losses.append(nn.functional.cross_entropy(outputs, targets))
        return losses[-1]

    loop = make_loop(*data, loss_fn=noting, schedule=schedule, optimizer=optimizer, **ours)
    trained, naive = train(loop, 5), BatchAttentionSchedule(**options)
    expected, expected_losses, model = train_naively(naive, *data, 5, optimizer=optimizer, **theirs)
    assert [loss.item() for loss in losses] == expected_losses
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
    loop = make_loop(*make_data(50), generator=None)
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


# What is refused before anything is trained


def test_data_that_does_not_fit_is_refused_with_what_to_do():
    inputs, targets = make_data(48)
    with pytest.raises(OptionError, match=r"48 inputs and 47 targets; give as many targets as inputs"):
        make_loop(inputs, targets[:-1])
    with pytest.raises(OptionError, match=r"batch_size is 49, for 48 inputs"):
        make_loop(inputs, targets, 49)
    with pytest.raises(OptionError, match=r"batch_size is 0"):
        make_loop(inputs, targets, 0)
    for devices in (("meta", "meta"), ("cpu", "meta"), ("meta", "cpu")):
        with pytest.raises(OptionError, match="move all to one device"):
            make_loop(inputs.to(devices[0]), targets.to(devices[1]))


def test_a_schedule_that_a_device_cannot_follow_is_refused():
    belonging = BatchAttentionSchedule()
    BatchAttentionSampler([0, 1], schedule=belonging, batch_size=1)
    of_ranks = BatchAttentionSchedule(ranks=MeanOverRanks())
    for schedule in (BatchAttentionSchedule(nonfinite="raise"), belonging, of_ranks):
        with pytest.raises(OptionError, match="has ranks=, nonfinite='raise' or a BatchAttentionSampler; leave them"):
            make_loop(*make_data(48), schedule=schedule)


def test_a_loop_shows_what_is_documented():
    shown = {name for name in dir(make_loop(*make_data(48))) if not name.startswith("_")}
    methods = {"run_epoch", "run_updates", "enqueue", "synchronize", "state_dict", "load_state_dict"}
    assert shown == methods | {"model", "schedule", "batches", "order", "updates", "visit_counts"}
