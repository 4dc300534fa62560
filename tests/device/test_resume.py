"""A run that is saved and resumed, and states that are refused."""

import copy
import functools
import io

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import ProtocolError, StateError
from tests.device.helpers import DROPOUT_SEED, make_data, make_loop, same, thinned, train, without_reads

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEDULES = {
    "threshold": lambda: BatchAttentionSchedule(1.0),
    "budget and floor": lambda: BatchAttentionSchedule(1.0, budget=0.5, floor=0.5),
    "fixed length": lambda: BatchAttentionSchedule(1.0, epoch_length=5),
    "random": lambda: EqualComputeControl([[3, 1, 2, 1, 1, 4, 1]] * 9, seed=3),
    "none": lambda: None,
}
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "rate as a tensor": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}
STOPS = {"schedule": list(SCHEDULES), "optimizer": list(OPTIMIZERS), "updates": [1, 3, 5, 7, 10, 13, 20, 31]}


def new_loop(schedule="threshold", optimizer="adam"):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
    made = {"schedule": SCHEDULES[schedule](), "optimizer": OPTIMIZERS[optimizer], "scaler": scaler}
    return make_loop(*make_data(50), **made)


@functools.cache
def uninterrupted(schedule, optimizer):
    loop = new_loop(schedule, optimizer)
    return train(loop, 5), loop.state_dict()


@pytest.mark.parametrize("case", thinned(STOPS))
def test_a_run_saved_in_mid_epoch_resumes_bit_for_bit(case):
    schedule, optimizer, stop_after_updates = case[1].values()
    expected, state = uninterrupted(schedule, optimizer)
    torch.manual_seed(DROPOUT_SEED)
    stopped, epochs = new_loop(schedule, optimizer), []
    while stopped.updates < stop_after_updates:
        summary = stopped.run_updates(stop_after_updates - stopped.updates)
        epochs += [] if summary is None else [(without_reads(summary), stopped.visit_counts)]
    file = io.BytesIO()
    torch.save({"loop": stopped.state_dict(), "random": torch.get_rng_state()}, file)
    stopped.run_epoch()  # what happens after saving does not matter
    file.seek(0)
    saved, resumed = torch.load(file), new_loop(schedule, optimizer)
    resumed.load_state_dict(saved["loop"])
    torch.set_rng_state(saved["random"])
    while len(epochs) < 5:
        epochs.append((without_reads(resumed.run_epoch()), resumed.visit_counts))
    assert epochs == expected
    resumed_state = resumed.state_dict()
    assert all(
        same(resumed_state[name], state[name]) for name in ("model", "optimizer", "scaler", "generator", "updates")
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("is_new", [False, True])
def test_training_changes_nothing_in_the_state_that_was_saved_or_loaded(optimizer, is_new):
    loop = new_loop(optimizer=optimizer)
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    kept = copy.deepcopy(saved)
    if is_new:
        loop = new_loop(optimizer=optimizer)
        loop.load_state_dict(saved)
    for _ in range(2):
        loop.run_epoch()
    assert same(saved, kept)
    loop.load_state_dict(saved)
    assert same(loop.state_dict(), kept)


def test_while_updates_are_in_flight_no_state_is_saved_and_one_that_is_loaded_is_where_it_was_saved():
    loop = new_loop()
    loop.run_epoch()
    between = loop.state_dict()
    loop.enqueue(3)
    with pytest.raises(ProtocolError, match=r"3 updates are in flight; call synchronize\(\)"):
        loop.state_dict()
    assert loop.synchronize() is None
    in_epoch = loop.state_dict()
    assert in_epoch["updates"] == loop.updates == 7 + 3
    for saved in (in_epoch, between):
        loop.enqueue(2)
        loop.load_state_dict(saved)
        assert same(loop.state_dict(), saved)


def refused(loop, state, match):
    before = loop.state_dict()
    with pytest.raises(StateError, match=match):
        loop.load_state_dict(state)
    assert same(loop.state_dict(), before)


def test_a_state_of_other_data_is_refused_in_mid_epoch_and_taken_between_epochs():
    loop = new_loop()
    loop.run_epoch()
    between = loop.state_dict()
    loop.run_updates(2)
    in_epoch = loop.state_dict()
    inputs, targets = make_data(50)
    others = [(inputs, targets.roll(1), 8), (inputs, targets, 9), (inputs[:47], targets[:47], 8)]
    for other in others:
        refused(make_loop(*other, schedule=BatchAttentionSchedule(1.0)), in_epoch, "mid-epoch of other data")
        taken = make_loop(*other, schedule=BatchAttentionSchedule(1.0))
        taken.load_state_dict(between)
        assert taken.run_epoch().epoch == 1


def test_a_state_of_another_schedule_or_version_or_object_is_refused():
    loop = new_loop()
    loop.run_epoch()
    loop.run_updates(2)
    state = loop.state_dict()
    refused(new_loop("budget and floor"), state, "options")
    refused(loop, {**state, "version": "DeviceLoop 1"}, "not the state of a DeviceLoop of this release")
    refused(loop, loop.schedule.state_dict(), "pass what state_dict")
    damaged = copy.deepcopy(state)
    damaged["schedule"]["state"]["repeats"] += 1
    refused(loop, damaged, "changed or damaged")
