"""A loop by hand around accelerate: where it resumes, and what is refused."""

from importlib import import_module
from types import SimpleNamespace

import pytest

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError
from tests.trainers.cases import MARKS, Case, Points, make_loader
from tests.trainers.plain_loop import check_tail
from tests.trainers.sample_loop import check_sample_tail, make_attention

pytestmark = MARKS


@pytest.mark.parametrize("is_skipping", [False, True])
def test_a_run_resumes_amid_repeats_also_by_accelerate_s_skipping(accelerate, is_skipping, tmp_path):
    case = Case(2)
    whole, _ = accelerate.train(case, tmp_path, saves=True)
    epoch, window, *_ = next(visit for visit in whole.visits if visit[1] > 0 and visit[2] > 1)
    for visits in (0, 1):
        folder = accelerate.checkpoint(tmp_path, epoch * case.windows + window, visits)
        resumed, _ = accelerate.train(case, resume=folder, is_skipping=is_skipping)
        check_tail(whole, resumed, (epoch, window, visits + 1))


def epoch_of(accelerate, schedule, accelerator, loader, size=2, windows=None):
    """First inputs of the batches of an epoch, or of its first windows; and the state after each decision."""
    seen, states = [], []
    for window in accelerate.attend(schedule, accelerator, loader, size):
        seen.append([inputs[0, 0].item() for inputs, _ in window])
        schedule.decide(1.0)
        states.append(schedule.state_dict())
        if len(seen) == windows:
            break
    return seen, states


def make_quiet(state=None, **options):
    schedule = BatchAttentionSchedule(max_visits=1, **options)
    if state is not None:
        schedule.load_state_dict(state)
    return schedule


@pytest.mark.parametrize(("size", "does_dispatch"), [(1, False), (2, True)])
def test_a_resumed_loop_is_the_loop_of_the_saved_run(accelerate, size, does_dispatch):
    accelerator, loader = accelerate.make_prepared(dispatch_batches=does_dispatch)
    schedule = make_quiet()
    epochs = [epoch_of(accelerate, schedule, accelerator, loader, size) for _ in range(3)]
    assert len({seen[0][0] for seen, _ in epochs}) == 3
    seen, states = epochs[1]
    for behind in range(1, len(seen) + 1):
        accelerator, loader = accelerate.make_prepared(dispatch_batches=does_dispatch)
        resumed = make_quiet(states[behind - 1])
        assert epoch_of(accelerate, resumed, accelerator, loader, size)[0] == seen[behind:]
        assert (resumed.epoch, resumed.threshold) == (2, 1.2)
        assert epoch_of(accelerate, resumed, accelerator, loader, size)[0] == epochs[2][0]


def test_an_epoch_that_was_left_begins_again_and_epochs_of_their_own_go_through_the_loader(accelerate):
    accelerator, loader = accelerate.make_prepared()
    schedule = make_quiet()
    begun, _ = epoch_of(accelerate, schedule, accelerator, loader, windows=2)
    whole, _ = epoch_of(accelerate, schedule, accelerator, loader)
    assert (whole[:2], len(whole)) == (begun, 4)
    schedule = make_quiet(epoch_length=3)
    assert [len(epoch_of(accelerate, schedule, accelerator, loader)[0]) for _ in range(3)] == [4, 4, 4]
    assert (schedule.epoch, schedule.batch_index) == (4, 0)
    assert len(epoch_of(accelerate, schedule, accelerator, accelerator.skip_first_batches(loader, 2))[0]) == 3


def sharded(sampler, rank=0):
    """As ``prepare`` makes it on one of two ranks."""
    data_loader = import_module("accelerate.data_loader")
    return data_loader.DataLoaderShard(Points(), batch_sampler=data_loader.BatchSamplerShard(sampler, 2, rank))


def test_on_ranks_the_sampler_of_a_skipping_loader_is_of_the_same_epoch(accelerate):
    def shard(skipped=0):
        accelerator, loader = accelerate.make_prepared()
        shard = sharded(loader.batch_sampler, rank=1)
        return accelerator, accelerator.skip_first_batches(shard, skipped) if skipped else shard

    schedule = make_quiet()
    accelerator, loader = shard()
    epoch_of(accelerate, schedule, accelerator, loader, 1)
    seen, states = epoch_of(accelerate, schedule, accelerator, loader, 1)
    for skipped in (0, 1):
        assert epoch_of(accelerate, make_quiet(states[0]), *shard(skipped), 1)[0] == seen[1:]


@pytest.mark.parametrize("position", [0, 2])
def test_a_loader_that_skips_other_batches_than_those_behind_is_refused(accelerate, position):
    accelerator, loader = accelerate.make_prepared()
    state = epoch_of(accelerate, make_quiet(), accelerator, loader)[1][position - 1]
    resumed = make_quiet(state if position else None)
    with pytest.raises(ProtocolError, match=rf"skips 3 batches, and {2 * position} batches of this epoch are done"):
        next(iter(accelerate.attend(resumed, accelerator, accelerator.skip_first_batches(loader, 3), 2)))


def test_what_would_repeat_or_count_otherwise_is_refused(accelerate):
    accumulating = SimpleNamespace(gradient_accumulation_steps=3)
    accelerator, stateful = accelerate.make_accelerator(), make_loader()
    stateful.use_stateful_dataloader = True  # as accelerate's loader says it
    # As DeepSpeed's and Megatron's, which are not installed.
    engine = SimpleNamespace(gradient_accumulation_steps=lambda: 2)
    megatron = SimpleNamespace(gradient_accumulation_steps=1, distributed_type=SimpleNamespace(name="MEGATRON_LM"))
    sampler = BatchAttentionSampler(range(52), 8, schedule=BatchAttentionSchedule())
    for given, loader, words in (
        (accumulating, make_loader(), r"Leave out gradient_accumulation_steps and give attend\(\) size=n"),
        (engine, make_loader(), r"around a DeepSpeed engine, use schedule.attend\(accumulate\(loader, n\)\)"),
        (megatron, make_loader(), "MEGATRON_LM was not tried"),
        (accelerator, stateful, r"attend\(\) resumes by itself"),
        (accelerator, sharded(sampler), "holds BatchAttentionSampler"),
    ):
        with pytest.raises(ProtocolError, match=words):
            accelerate.attend(BatchAttentionSchedule(), given, loader, 2)
    with pytest.raises(OptionError, match="size is 0"):
        accelerate.attend(BatchAttentionSchedule(), accelerator, make_loader(), 0)


def test_a_loader_that_prepare_sharded_is_refused_with_how_to_shard(accelerate):
    schedule, attention = BatchAttentionSchedule(), make_attention(rank=0, world_size=2, ranks=MeanOverRanks())
    with pytest.raises(ProtocolError, match="no loader to accelerate's prepare"):
        next(iter(schedule.attend(sharded(BatchAttentionSampler(range(52), 8, schedule=schedule)))))
    words = r"a BatchSamplerShard around this Noted.* rank= and world_size=, and no loader to accelerate's prepare\(\)"
    with pytest.raises(ProtocolError, match=words):
        attention.attend(sharded(attention))


class ReadsAhead:
    """Reads one batch ahead, as a prepared loader does."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        ahead = []
        for batch in self.loader:
            yield from ahead
            ahead = [batch]
        yield from ahead


def test_samples_of_a_prepared_loader_are_those_of_a_loop_that_reads_ahead(accelerate, tmp_path):
    case = Case(2, options={"k": 1.0, "updates": 6})
    run = accelerate.train_samples(case, tmp_path, is_prepared=True, saves=True)
    assert run == accelerate.samples_by_hand(case, wrap=ReadsAhead)
    resumed = accelerate.train_samples(case, is_prepared=True, resume=accelerate.checkpoint(tmp_path, 4))
    check_sample_tail(run, resumed, 8)
