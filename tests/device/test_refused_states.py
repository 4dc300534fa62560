"""What each kind of wrong state is told; nothing of it is loaded."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import StateError
from tests.device.helpers import (
    BATCHES,
    OPTIMIZERS,
    are_equal,
    loop_with,
    make_data,
    make_loop,
    make_scaled,
    make_small_loop,
    refused,
    same,
    saved_in_mid_epoch,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What is loaded may well be trained with to no good end.
    pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning"),
]


@functools.cache
def cached_state(optimizer):
    return saved_in_mid_epoch(optimizer=optimizer)


# Every pair of optimizers, with each of them in both ways; in both ways each pair in the full matrix.
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("here", OPTIMIZERS)
@pytest.mark.parametrize("half", ["thinned", pytest.param("rest", marks=pytest.mark.slow)])
def test_a_state_loads_into_the_optimizer_that_it_is_of_and_into_no_other(here, trained, half):
    names = list(OPTIMIZERS)
    for number, there in enumerate(names, names.index(here)):
        if {here, there} == {"adam", "rate as a tensor"}:
            continue  # the same optimizer
        if (number % 2 == trained) is (half == "rest"):
            continue
        saved = copy.deepcopy(cached_state(there))
        loop = make_small_loop(optimizer=here)
        if trained:
            loop.run_updates(1)
        if here == there:
            loop.load_state_dict(saved)
            assert same(loop.state_dict(), saved)
            loop.run_epoch()
        else:
            assert "optimizer" in refused(loop, saved)


def test_a_state_of_another_kind_is_refused_and_nothing_is_loaded():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    saved = loop.state_dict()
    for wrong in (
        {},
        {**saved, "version": 0},
        {**saved, "schedule": BatchAttentionSchedule(1.3).state_dict()},
        {**saved, "model": nn.Linear(1, 1).state_dict()},
        {**saved, "scaler": {}},
        {**saved, "cursor": -1},
    ):
        other = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
        weights = copy.deepcopy(other.model)
        with pytest.raises(StateError):
            other.load_state_dict(wrong)
        assert are_equal(other.model, weights)


def test_a_state_with_anything_wrong_is_refused_and_nothing_is_loaded():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    generators = saved["randomness"]["loop"]
    wrong_optimizer = copy.deepcopy(saved["optimizer"])
    wrong_optimizer["state"][0]["exp_avg"] = torch.zeros(1)
    for wrong, message in (
        ({"updates": -1}, "updates"),
        ({"host_reads": "3"}, "host_reads"),
        ({"is_in_epoch": 1}, "True or False"),
        ({"cursor": 9, "staged": 9}, "batch 9"),
        ({"epoch_randomness": None}, "randomness"),
        ({"randomness": {"loop": generators}}, "randomness"),
        ({"randomness": {**saved["randomness"], "data": None}}, "generator in the data"),
        ({"randomness": {**saved["randomness"], "data": torch.zeros(3, dtype=torch.uint8)}}, "the data's generator"),
        ({"randomness": {**saved["randomness"], "loop": {**generators, "cuda": None}}}, "saved on a CUDA device"),
        ({"randomness": {**saved["randomness"], "loop": {**generators, "fresh": None}}}, "fresh"),
        ({"optimizer": wrong_optimizer}, "shape"),
    ):
        for other in (loop, make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))):
            if other is not loop and "optimizer" in wrong:
                continue
            before = other.state_dict()
            with pytest.raises(StateError, match=message):
                other.load_state_dict({**saved, **wrong})
            after = other.state_dict()
            assert same(after, before)


def test_moments_of_another_shape_or_type_are_refused_by_name():
    saved = saved_in_mid_epoch()
    for trained in (False, True):
        for wrong, message in (
            (torch.zeros(1), r"shape (1,)"),
            (torch.zeros(3, 3, dtype=torch.int64), "torch.int64"),
            ("moments", "str"),
            (torch.zeros(3, 3, device="meta"), "with data"),
        ):
            loop = make_small_loop()
            if trained:
                loop.run_updates(1)
            state = copy.deepcopy(saved)
            state["optimizer"]["state"][0]["exp_avg"] = wrong
            said = refused(loop, state)
            assert message in said
            assert "exp_avg for parameter 0" in said
        state = copy.deepcopy(saved)
        state["optimizer"]["state"][0]["step"] = torch.tensor(-1.0)
        assert "counts steps" in refused(make_small_loop(), state)


def test_fewer_batches_at_hand_than_are_done_with_are_refused():
    loop = loop_with()
    loop.run_updates(2)
    for staged in (0, 1):
        with pytest.raises(StateError, match=f"staged is {staged} .* at least 2"):
            loop.load_state_dict({**loop.state_dict(), "staged": staged})
    loop.load_state_dict({**loop.state_dict(), "staged": 2})


def test_a_loop_that_is_elsewhere_than_its_schedule_is_refused():
    saved = saved_in_mid_epoch()
    at_end = make_small_loop()
    at_end.run_epoch()
    at_end = at_end.state_dict()
    assert "does not go with is_in_epoch" in refused(make_small_loop(), {**saved, "cursor": BATCHES, "staged": BATCHES})
    assert "does not go with is_in_epoch" in refused(make_small_loop(), {**at_end, "cursor": 2})
    assert "its schedule at batch" in refused(make_small_loop(), {**saved, "cursor": saved["cursor"] + 1})
    assert "its schedule at batch" in refused(make_small_loop(), {**at_end, "schedule": saved["schedule"]})
    assert "its schedule at batch" in refused(make_small_loop(), {**saved, "schedule": at_end["schedule"]})


@pytest.mark.parametrize("number", [2**62, 2**63, 10**400])
def test_numbers_that_a_device_cannot_count_to_are_refused(number):
    saved = saved_in_mid_epoch()
    for name in ("updates", "host_reads", "cursor", "staged"):
        refused(make_small_loop(), {**saved, name: number})
    refused(make_small_loop(), {**saved, "visit_counts": [number] * BATCHES})
    for name in ("batches", "visits", "repeats", "most_visits", "loss_count", "nonfinite_losses"):
        schedule = saved["schedule"]
        refused(make_small_loop(), {**saved, "schedule": {**schedule, "state": {**schedule["state"], name: number}}})


def test_an_epoch_or_a_visit_that_was_not_dealt_is_refused():
    loop = make_small_loop(control=True)
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    for name, number in (("epoch", 3), ("epoch", 1000), ("visits", 3)):
        schedule = saved["schedule"]
        refused(
            make_small_loop(control=True),
            {**saved, "schedule": {**schedule, "state": {**schedule["state"], name: number}}},
        )
    make_small_loop(control=True).load_state_dict(saved)


def test_an_option_that_may_be_none_is_a_number_or_none():
    saved = saved_in_mid_epoch(optimizer="adafactor")
    for eps, is_right in (((None, 1e-3), True), ((1e-8, 1e-3), True), (((1,), 1e-3), False), ((True, 1e-3), False)):
        state = copy.deepcopy(saved)
        state["optimizer"]["param_groups"][0]["eps"] = eps
        if is_right:
            make_small_loop("adafactor").load_state_dict(state)
        else:
            assert "eps of Adafactor" in refused(make_small_loop("adafactor"), state)


def test_a_scaler_that_was_changed_is_refused():
    loop = make_scaled(lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True))
    loop.run_epoch()
    saved = loop.state_dict()
    for name, wrong in (
        ("scale", 0.0),
        ("scale", math.nan),
        ("scale", "16"),
        ("growth_factor", 1.0),
        ("backoff_factor", 1.5),
        ("growth_interval", 2**31),
        ("_growth_tracker", -1),
        ("_growth_tracker", 0.5),
    ):
        assert name in refused(loop, {**saved, "scaler": {**saved["scaler"], name: wrong}})
    loop.load_state_dict(saved)
