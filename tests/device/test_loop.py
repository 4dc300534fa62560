"""The device loop against a naive loop around ``decide``, bit for bit; on the CPU, where both run eagerly."""

import random
import warnings

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from tests.device.helpers import are_equal, make_data, make_loop, thinned, train_naively, without_reads

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "warmup_epochs": [1, 2],
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [2, 3, 10, None],
    "window": [None, 5],
    "staged": [False, True],
    "drop_last": [False, True],
    "samples": [48, 50, 53],
    "budget": [None, 0.15, 1.0],
    "floor": [0.0, 0.5],
}


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_losses_thresholds_summaries_and_weights_equal_those_of_a_naive_loop(case):
    number, options = case
    data_options = {name: options.pop(name) for name in ("staged", "drop_last")}
    inputs, targets = make_data(options.pop("samples"), number)
    options["k"] = random.Random(number).uniform(0.8, 1.5)
    losses = []
    schedule = BatchAttentionSchedule(**options)
    loop = make_loop(inputs, targets, losses=losses, schedule=schedule, **data_options)
    summaries = [loop.run_epoch() for _ in range(5)]
    naive = BatchAttentionSchedule(**options)
    expected = train_naively(naive, inputs, targets, 5, **data_options)
    assert losses == expected.losses
    assert list(map(without_reads, summaries)) == list(map(without_reads, expected.summaries))
    assert schedule.threshold == naive.threshold
    assert are_equal(loop.model, expected.model)


def test_without_a_schedule_it_is_plain_training():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets)
    summaries = [loop.run_epoch() for _ in range(3)]
    expected = train_naively(BatchAttentionSchedule(max_visits=1), inputs, targets, 3)
    assert are_equal(loop.model, expected.model)
    assert [summary.mean_loss for summary in summaries] == [summary.mean_loss for summary in expected.summaries]
    assert all(summary.repeats == 0 and summary.threshold is None for summary in summaries)


def test_a_run_may_begin_on_the_host_go_on_on_the_device_and_end_on_the_host():
    inputs, targets = make_data(48)
    whole = BatchAttentionSchedule(1.0)
    expected = train_naively(whole, inputs, targets, 4).summaries

    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(inputs, targets, schedule=schedule)
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


def test_training_leaves_the_users_random_numbers_alone():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    before = torch.get_rng_state()
    loop.run_epoch()
    assert torch.equal(torch.get_rng_state(), before)
