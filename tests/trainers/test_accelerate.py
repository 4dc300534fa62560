"""A loop by hand around accelerate, beside the plain loop: the same visits, losses and weights; and what is refused."""

import itertools
from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard
from accelerate.utils import DataLoaderConfiguration, DistributedType
from torch.utils.data import DataLoader

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.errors import OptionError, ProtocolError
from batch_sampler_attn.trainers.accelerate import attend
from tests.trainers.accelerate_runs import (
    MARKS,
    RESUMES,
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
@pytest.mark.parametrize("resumed", RESUMES)
@pytest.mark.parametrize(
    ("kill", "where"), [("mid-epoch", (1, 2, 1)), ("last-step", (2, 0, 1)), ("repeats", (2, 0, 3))]
)
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill, where, resumed):
    check_tail(load(folder, "whole"), load(folder, f"{kill}-{resumed}"), where)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, accumulation):
    check_ranks(folder, str(accumulation), in_one_process(accumulation), rtol=1e-9, atol=1e-12)


def make_prepared(**configuration):
    """A loader whose order follows from the epoch's number, and its accelerator."""
    accelerator = make_accelerator(
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, **configuration)
    )
    return accelerator, accelerator.prepare(make_loader())


def epoch_of(schedule, accelerator, loader, size=2, windows=None):
    """First inputs of the batches of an epoch, or of its first windows; and the state after each decision."""
    seen, states = [], []
    for window in attend(schedule, accelerator, loader, size):
        seen.append([inputs[0, 0].item() for inputs, _ in window])
        schedule.decide(1.0)
        states.append(schedule.state_dict())
        if len(seen) == windows:
            break
    return seen, states


def make_quiet(state=None):
    schedule = BatchAttentionSchedule(max_visits=1)
    if state is not None:
        schedule.load_state_dict(state)
    return schedule


@pytest.mark.parametrize("does_dispatch", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_resumed_loop_is_the_loop_of_the_saved_run(size, does_dispatch):
    accelerator, loader = make_prepared(dispatch_batches=does_dispatch)
    schedule = make_quiet()
    epochs = [epoch_of(schedule, accelerator, loader, size) for _ in range(3)]
    assert len({seen[0][0] for seen, _ in epochs}) == 3
    seen, states = epochs[1]
    for behind in range(1, len(seen) + 1):
        accelerator, loader = make_prepared(dispatch_batches=does_dispatch)
        resumed = make_quiet(states[behind - 1])
        assert epoch_of(resumed, accelerator, loader, size)[0] == seen[behind:]
        assert resumed.epoch == 2
        assert resumed.threshold == 1.2
        assert epoch_of(resumed, accelerator, loader, size)[0] == epochs[2][0]


def test_an_epoch_that_was_left_begins_again_at_its_first_batch():
    accelerator, loader = make_prepared()
    schedule = make_quiet()
    begun, _ = epoch_of(schedule, accelerator, loader, windows=2)
    whole, _ = epoch_of(schedule, accelerator, loader)
    assert whole[:2] == begun
    assert len(whole) == 4


def test_epochs_of_their_own_go_through_the_loader_as_it_is():
    accelerator, loader = make_prepared()
    schedule = BatchAttentionSchedule(max_visits=1, epoch_length=3)
    assert [len(epoch_of(schedule, accelerator, loader)[0]) for _ in range(3)] == [4, 4, 4]
    assert (schedule.epoch, schedule.batch_index) == (4, 0)
    assert len(epoch_of(schedule, accelerator, accelerator.skip_first_batches(loader, 2))[0]) == 3


def test_on_ranks_the_sampler_of_a_skipping_loader_is_of_the_same_epoch():
    def shard(skipped=0):
        accelerator, loader = make_prepared()
        sharded = DataLoaderShard(loader.dataset, batch_sampler=BatchSamplerShard(loader.batch_sampler, 2, 1))
        return accelerator, accelerator.skip_first_batches(sharded, skipped) if skipped else sharded

    schedule = make_quiet()
    accelerator, loader = shard()
    epoch_of(schedule, accelerator, loader, 1)
    seen, states = epoch_of(schedule, accelerator, loader, 1)
    for skipped in (0, 1):
        assert epoch_of(make_quiet(states[0]), *shard(skipped), 1)[0] == seen[1:]


# What is refused


@pytest.mark.parametrize("position", [0, 2])
def test_a_loader_that_skips_other_batches_than_those_behind_is_refused(position):
    accelerator, loader = make_prepared()
    schedule = make_quiet()
    state = epoch_of(schedule, accelerator, loader)[1][position - 1]
    resumed = make_quiet(state if position else None)
    with pytest.raises(ProtocolError, match=rf"skips 3 batches, and {2 * position} batches of this epoch are behind"):
        next(iter(attend(resumed, accelerator, accelerator.skip_first_batches(loader, 3), 2)))


def test_a_loader_that_keeps_its_own_position_is_refused():
    loader = make_loader()
    loader.use_stateful_dataloader = True  # as accelerate's loader says it
    assert "attend() resumes by itself" in refusal(loader)


def test_an_engine_that_counts_batches_itself_is_refused():
    # As DeepSpeed's, which is not installed.
    engine = SimpleNamespace(gradient_accumulation_steps=lambda: 2, is_gradient_accumulation_boundary=lambda: True)
    text = refusal(accelerator=engine)
    assert "around a DeepSpeed engine, use schedule.attend(accumulate(loader, n))" in text


def refusal(loader=None, accelerator=None):
    with pytest.raises(ProtocolError) as error:
        attend(BatchAttentionSchedule(), accelerator or make_accelerator(), loader or make_loader(), 2)
    return str(error.value)


def test_accumulation_by_accelerate_is_refused():
    text = refusal(accelerator=make_accelerator(gradient_accumulation_steps=3))
    assert "gradient_accumulation_steps" in text
    assert "attend() size=n" in text


def test_without_it_accumulate_leaves_no_update_out():
    accelerator = make_accelerator()
    loader = accelerator.prepare(make_loader())
    for window in attend(BatchAttentionSchedule(max_visits=1), accelerator, loader, 2):
        for _ in window:
            with accelerator.accumulate():
                assert accelerator.sync_gradients
        break


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_updates_that_are_made_elsewhere_are_refused(kind):
    accelerator = SimpleNamespace(gradient_accumulation_steps=1, distributed_type=kind)
    assert f"{kind.name} was not tried" in refusal(accelerator=accelerator)


def test_ranks_without_the_option_are_refused(monkeypatch):
    monkeypatch.setattr("batch_sampler_attn.ranks.process_group_size", lambda: 2)
    accelerator, loader = make_prepared()
    with pytest.raises(ProtocolError, match=r"ranks=MeanOverRanks\(\)"):
        next(iter(attend(BatchAttentionSchedule(), accelerator, loader, 2)))


def sharded(sampler):
    """As ``prepare`` makes it on the first of two ranks."""
    return DataLoaderShard(make_dataset(), batch_sampler=BatchSamplerShard(sampler, 2, 0))


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_sampler_of_ours_is_refused(is_sharded):
    samplers = [
        BatchAttentionSampler(range(52), 8, schedule=BatchAttentionSchedule()),
        SampleAttention(52, 8, epochs=4),
    ]
    for sampler in samplers:
        loader = sharded(sampler) if is_sharded else DataLoader(make_dataset(), batch_sampler=sampler)
        text = refusal(loader)
        assert type(sampler).__name__ in text
        assert "batch_size=..., shuffle=..." in text


def test_its_own_schedule_refuses_a_sampler_that_accelerate_has_sharded():
    schedule = BatchAttentionSchedule()
    loader = sharded(BatchAttentionSampler(range(52), 8, schedule=schedule))
    with pytest.raises(ProtocolError, match="no loader to accelerate's prepare"):
        next(iter(schedule.attend(loader)))


def test_an_attended_loader_is_refused():
    assert "AttendedLoader" in refusal(BatchAttentionSchedule().attend(make_loader()))


def test_a_size_that_is_none_is_refused():
    with pytest.raises(OptionError, match="size is 0"):
        attend(BatchAttentionSchedule(), make_accelerator(), make_loader(), 0)
