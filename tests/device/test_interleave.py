"""Loops that take turns have the results that each has alone, or are refused."""

import gc
import weakref

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import ResidentData, run_interleaved, take_turns
from batch_sampler_attn.errors import OptionError
from tests.device.helpers import (
    CLASSES,
    are_equal,
    loop_with,
    make_data,
    make_loop,
    make_model,
    make_optimizer,
    without_reads,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("turns", [2, 3])
def test_loops_that_take_turns_have_the_results_that_each_has_alone(turns):
    def new_loop(index):
        inputs, targets = make_data(50, index)
        return make_loop(inputs, targets, schedule=BatchAttentionSchedule(1.0), order_seed=index)

    alone = [new_loop(index) for index in range(turns)]
    expected = [[loop.run_epoch() for _ in range(3)] for loop in alone]
    together = [new_loop(index) for index in range(turns)]
    summaries = run_interleaved(together, 3)
    assert [list(map(without_reads, done)) for done in summaries] == [
        list(map(without_reads, done)) for done in expected
    ]
    for ours, theirs in zip(together, alone, strict=True):
        assert are_equal(ours.model, theirs.model)


def test_loops_that_come_and_go_between_epochs_have_the_results_that_each_has_alone():
    inputs, targets = make_data(50)

    def make(seed):
        return make_loop(inputs, targets, order_seed=seed, schedule=BatchAttentionSchedule(1.0))

    alone = [make(seed) for seed in range(3)]
    expected = [[loop.run_epoch() for _ in range(seed + 1)] for seed, loop in enumerate(alone)]
    waiting = [make(seed) for seed in range(3)]
    names = {loop: seed for seed, loop in enumerate(waiting)}
    running, summaries = [waiting.pop(0), waiting.pop(0)], {seed: [] for seed in range(3)}
    for loop, summary in take_turns(running):
        seed = names[loop]
        summaries[seed].append(summary)
        if len(summaries[seed]) == seed + 1:
            running.remove(loop)
            running.extend(waiting[:1])
            del waiting[:1]
    assert list(summaries.values()) == expected
    assert all(are_equal(loop.model, alone[seed].model) for loop, seed in names.items())


def loops_of(samples, *, loss_fns=(None, None)):
    made = []
    for index, loss_fn in enumerate(loss_fns):
        model = make_model(index)
        data = ResidentData(*make_data(samples, index), 8, generator=torch.Generator().manual_seed(index))
        parts = {"model": model, "optimizer": make_optimizer(model), "data": data}
        made.append(loop_with(**parts, **({} if loss_fn is None else {"loss_fn": loss_fn})))
    return made


def test_loops_whose_turns_are_left_early_have_nothing_in_flight():
    # So many batches that the second loop is in the middle of its epoch as the first one's ends.
    def make():
        return loops_of(48)[0], loops_of(8 * 100)[1]

    short, long = make()
    for loop, _ in take_turns([short, long]):
        assert loop is short
        break
    assert [loop.state_dict()["is_in_epoch"] for loop in (short, long)] == [False, True]
    short_alone, long_alone = make()
    short_alone.run_epoch()
    for loop, alone in ((short, short_alone), (long, long_alone)):
        assert without_reads(loop.run_epoch()) == without_reads(alone.run_epoch())
        assert are_equal(loop.model, alone.model)


def test_loops_beside_one_that_fails_have_nothing_in_flight():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 70:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(outputs, targets)

    loops = loops_of(8 * 100, loss_fns=[None, loss_fn])
    with pytest.raises(ZeroDivisionError):
        run_interleaved(loops, 1)
    # The one that fails is as before its first call.
    assert [loop.state_dict()["updates"] for loop in loops] == [100, 0]
    assert [loop.run_epoch().batches for loop in loops] == [100, 100]


def test_loops_that_share_a_model_are_refused():
    loop = make_loop(*make_data(48))
    with pytest.raises(OptionError, match="share one model"):
        run_interleaved([loop, loop], 1)


def parts_for_two():
    inputs, targets = make_data(48)
    datas = [ResidentData(inputs, targets, 8, generator=torch.Generator().manual_seed(index)) for index in range(2)]
    models = [nn.Sequential(nn.Linear(6, CLASSES)) for _ in range(2)]
    return inputs, targets, datas, models


def test_loops_that_share_data_or_a_generator_are_refused():
    inputs, targets, datas, models = parts_for_two()

    def loops(first, second):
        return [
            loop_with(model=m, optimizer=make_optimizer(m), data=d)
            for m, d in zip(models, (first, second), strict=True)
        ]

    with pytest.raises(OptionError, match=r"share one data object.*with its own generator"):
        run_interleaved(loops(datas[0], datas[0]), 1)
    again = ResidentData(inputs, targets, 8, generator=datas[0].generator)
    with pytest.raises(OptionError, match="share one generator"):
        run_interleaved(loops(datas[0], again), 1)
    assert len(run_interleaved(loops(*datas), 1)) == 2


def test_loops_that_share_an_optimizer_are_refused():
    _, _, datas, _ = parts_for_two()
    weights = nn.Linear(6, CLASSES)
    models = [nn.Sequential(weights), nn.Sequential(weights)]
    optimizer = make_optimizer(weights)
    loops = [loop_with(model=model, optimizer=optimizer, data=data) for model, data in zip(models, datas, strict=True)]
    with pytest.raises(OptionError, match="share one optimizer"):
        run_interleaved(loops, 1)


def test_a_loop_that_shares_a_part_is_refused_when_it_comes_in():
    inputs, targets = make_data(50)
    first = make_loop(inputs, targets)
    running = [first]
    turns = take_turns(running)
    next(turns)
    running.append(first)
    with pytest.raises(OptionError, match="share one"):
        next(turns)


def test_a_loop_that_is_done_is_let_go_of_at_once():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    counters = weakref.ref(loop.parts.counters)
    gc.disable()
    try:
        del loop
        assert counters() is None
    finally:
        gc.enable()
