"""A loop by hand around accelerate, beside the plain loop: the same visits, losses and weights; and what is refused."""

import itertools
from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from accelerate.utils import DataLoaderConfiguration, DistributedType
from torch.utils.data import DataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.accelerate import attend, remaining
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.trainers.accelerate_runs import (
    MARKS,
    RESUMED,
    Case,
    by_accelerate,
    by_hand,
    in_one_process,
    make_accelerator,
    make_dataset,
    make_loader,
)
from tests.trainers.in_processes import check_ranks, check_tail, load, make

pytestmark = MARKS


@pytest.mark.parametrize(
    "case",
    [
        Case(accumulation, precision, clip)
        for accumulation, precision, clip in itertools.product((1, 2, 3), ("fp32", "bf16", "scaler"), (None, 0.5))
    ],
    ids=str,
)
def test_a_run_is_that_of_the_plain_loop(case):
    run = by_accelerate(case)
    assert run == by_hand(case)
    assert run.repeats > 2


# In processes of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("accelerate_runs", tmp_path_factory.mktemp("runs"))


# Where it goes on: in mid-epoch, at an epoch's begin, and at a window that was being repeated.
@pytest.mark.parametrize(
    ("kill", "where"), [("mid-epoch", (1, 2, 1)), ("last-step", (2, 0, 1)), ("repeats", (2, 0, 3))]
)
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill, where):
    check_tail(load(folder, "whole"), load(folder, kill), where)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, accumulation):
    check_ranks(folder, str(accumulation), in_one_process(accumulation), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("does_dispatch", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_nothing_remains_after_an_epoch_s_last_window(size, does_dispatch):
    accelerator = make_accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=does_dispatch))
    loader = accelerator.prepare(make_loader())
    saved = BatchAttentionSchedule(max_visits=1)
    for _ in attend(saved, accelerator, loader, size):
        saved.decide(1.0)
        state = saved.state_dict()
    schedule = BatchAttentionSchedule(max_visits=1)
    schedule.load_state_dict(state)
    assert (schedule.epoch, schedule.batch_index) == (0, -(-7 // size))
    assert list(attend(schedule, accelerator, remaining(schedule, accelerator, loader, size), size)) == []
    assert schedule.epoch == 1
    assert schedule.threshold == 1.2
    assert len(list(remaining(schedule, accelerator, loader, size))) == 7


# What is refused


def refusal(loader=None, accelerator=None, schedule=None):
    with pytest.raises(ProtocolError) as error:
        attend(schedule or BatchAttentionSchedule(), accelerator or make_accelerator(), loader or make_loader(), 2)
    return str(error.value)


def ranks_of(ranks=1, kind=DistributedType.NO):
    return SimpleNamespace(gradient_accumulation_steps=1, num_processes=ranks, distributed_type=kind)


def test_accumulation_by_accelerate_is_refused():
    text = refusal(accelerator=make_accelerator(gradient_accumulation_steps=3))
    assert "gradient_accumulation_steps=3" in text
    assert "attend() size=3" in text


def test_without_it_accumulate_leaves_no_update_out():
    accelerator = make_accelerator()
    loader = accelerator.prepare(make_loader())
    for window in attend(BatchAttentionSchedule(max_visits=1), accelerator, loader, 2):
        for _ in window:
            with accelerator.accumulate():
                assert accelerator.sync_gradients
        break


@pytest.mark.parametrize(
    ("kind", "name"), [(DistributedType.DEEPSPEED, "DeepSpeed"), (DistributedType.MEGATRON_LM, "Megatron-LM")]
)
def test_updates_that_are_made_elsewhere_are_refused(kind, name):
    assert f"the Accelerator uses {name}" in refusal(accelerator=ranks_of(kind=kind))


@pytest.mark.parametrize("reduce", ["refuse", None])
def test_ranks_without_reduce_are_refused(reduce):
    text = refusal(accelerator=ranks_of(2), schedule=BatchAttentionSchedule(reduce=reduce))
    assert "reduce=MeanOverRanks()" in text


def sharded(sampler):
    """As ``prepare`` makes it on the first of two ranks."""
    return DataLoaderShard(make_dataset(), batch_sampler=BatchSamplerShard(sampler, 2, 0))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_sampler_of_ours_is_refused(is_sharded):
    samplers = [
        BatchAttentionSampler(range(52), 8, schedule=BatchAttentionSchedule()),
        SampleAttention(52, 8, leave_out=0.5, epochs=4),
    ]
    for sampler in samplers:
        loader = sharded(sampler) if is_sharded else DataLoader(make_dataset(), batch_sampler=sampler)
        text = refusal(loader)
        assert type(sampler).__name__ in text
        assert "batch_size= and shuffle=" in text


def test_its_own_schedule_refuses_a_sampler_that_accelerate_has_sharded():
    schedule = BatchAttentionSchedule()
    loader = sharded(BatchAttentionSampler(range(52), 8, schedule=schedule))
    with pytest.raises(ProtocolError, match="keep the loader out of accelerate's prepare"):
        next(iter(schedule.attend(loader)))


def test_an_attended_loader_is_refused():
    assert "attend to the windows instead" in refusal(BatchAttentionSchedule().attend(make_loader()))


def test_a_size_that_is_none_is_refused():
    with pytest.raises(OptionError, match="size is 0"):
        attend(BatchAttentionSchedule(), make_accelerator(), make_loader(), 0)


def test_a_whole_loader_is_refused_in_the_middle_of_an_epoch():
    accelerator = make_accelerator()
    loader = accelerator.prepare(make_loader())
    schedule = BatchAttentionSchedule(max_visits=1)
    for _ in attend(schedule, accelerator, loader, RESUMED.accumulation):
        schedule.decide(1.0)
    for _ in attend(schedule, accelerator, loader, RESUMED.accumulation):
        schedule.decide(1.0)
        break
    resumed = BatchAttentionSchedule(max_visits=1)
    resumed.load_state_dict(schedule.state_dict())
    assert "in the middle of an epoch, after 1 batches" in refusal(loader, accelerator, resumed)
