"""The device loop against a naive loop around ``decide``, bit for bit; on the CPU, where both run eagerly."""

import random
import warnings

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.device import DeviceLoop
from tests.device.helpers import (
    DROPOUT_SEED,
    are_equal,
    make_data,
    make_loop,
    make_model,
    thinned,
    train_naively,
    without_reads,
)

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "warmup_epochs": [1, 2],
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [2, 3, 10, None],
    "epoch_length": [None, 5],
    "samples": [48, 50, 53],
    "budget": [None, 0.15, 1.0],
    "floor": [0.0, 0.5],
    "optimizer": ["adam", "amsgrad", "momentum"],
}
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_losses_thresholds_summaries_and_weights_equal_those_of_a_naive_loop(case):
    number, options = case
    inputs, targets = make_data(options.pop("samples"), number)
    options["k"] = random.Random(number).uniform(0.8, 1.5)
    optimizer, losses = OPTIMIZERS[options.pop("optimizer")], []
    schedule = BatchAttentionSchedule(**options)
    loop = make_loop(inputs, targets, losses=losses, schedule=schedule, optimizer=optimizer)
    torch.manual_seed(DROPOUT_SEED)
    summaries, visits = [], []
    for _ in range(5):
        summaries.append(loop.run_epoch())
        visits.append(loop.visit_counts)
    torch.manual_seed(DROPOUT_SEED)
    naive = BatchAttentionSchedule(**options)
    expected = train_naively(naive, inputs, targets, 5, optimizer=optimizer)
    assert losses == expected.losses
    assert list(map(without_reads, summaries)) == list(map(without_reads, expected.summaries))
    if schedule.options.epoch_length is None:  # otherwise a position is one of the schedule's epoch, not of the data's
        assert visits == expected.visits
    assert schedule.threshold == naive.threshold
    assert loop.updates == len(losses)
    assert are_equal(loop.model, expected.model)


def test_without_a_schedule_it_is_plain_training():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets)
    torch.manual_seed(DROPOUT_SEED)
    summaries = [loop.run_epoch() for _ in range(3)]
    torch.manual_seed(DROPOUT_SEED)
    expected = train_naively(BatchAttentionSchedule(max_visits=1), inputs, targets, 3)
    assert are_equal(loop.model, expected.model)
    assert [summary.mean_loss for summary in summaries] == [summary.mean_loss for summary in expected.summaries]
    assert all(summary.repeats == 0 and summary.threshold is None for summary in summaries)


def test_without_a_generator_orders_are_drawn_from_torchs_default():
    inputs, targets = make_data(50)
    model = make_model()
    loop = DeviceLoop(model, torch.optim.SGD(model.parameters()), torch.nn.functional.cross_entropy, inputs, targets, 8)
    torch.manual_seed(11)
    loop.run_epoch()
    torch.manual_seed(11)
    assert torch.equal(loop.order, torch.randperm(50))


def test_a_run_may_begin_on_the_host_continue_on_the_device_and_end_on_the_host():
    inputs, targets = make_data(48)
    torch.manual_seed(DROPOUT_SEED)
    expected = train_naively(BatchAttentionSchedule(1.0), inputs, targets, 4).summaries

    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(inputs, targets, schedule=schedule)
    torch.manual_seed(DROPOUT_SEED)
    summaries = [loop.run_epoch(), loop.run_epoch()]
    successor = BatchAttentionSchedule(1.0)
    successor.load_state_dict(schedule.state_dict())
    assert successor.threshold == expected[1].mean_loss
    assert [without_reads(summary) for summary in summaries] == [without_reads(summary) for summary in expected[:2]]
    for _ in successor.attend(range(6)):
        successor.decide(0.1)
    assert successor.epoch == 3


def test_no_decision_leaves_a_repeat_for_later():
    """The naive loop's decisions, seen through the schedule that the device loop keeps up to date."""
    inputs, targets = make_data(50)
    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(inputs, targets, schedule=schedule)
    loop.run_epoch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = loop.run_epoch()
    assert schedule.last_summary is summary
    assert schedule.visits == 0
    assert schedule.decide(0.0) is Decision.ADVANCE
