"""Attention to samples on ranks: one mean, each rank's choice among its own samples, as many updates on each."""

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError, RanksDivergedError, StateError
from tests.distributed.processes import outcome, run_ranks

SAMPLES, BATCH_SIZE, EPOCHS, RANKS = 47, 4, 5, 2
OPTIONS = {"k": 1.3, "prune_probability": 0.5, "weighted": True, "epochs": EPOCHS, "final_full_share": 0.2}


def loss_of(sample, epoch):
    return (1.0 + sample % 7) / (1 + 0.1 * epoch)


def make(rank, ranks=None, **options):
    return SampleAttention(SAMPLES, BATCH_SIZE, rank=rank, world_size=RANKS, ranks=ranks, **{**OPTIONS, **options})


def train(attention, epochs=EPOCHS, loader=None):
    """The batches, weights and thresholds of each epoch, and its summary."""
    made = []
    for epoch in range(attention.epoch, epochs):
        batches = []
        for batch in attention.attend(loader):
            indices = batch if loader is None else batch.tolist()
            weights = attention.report([loss_of(sample, epoch) for sample in indices])
            batches.append((indices, weights, attention.threshold))
        made.append((batches, attention.last_summary))
    return made


def on_rank(rank):
    with_workers = make(rank, MeanOverRanks())
    loader = DataLoader(range(SAMPLES), batch_sampler=with_workers, num_workers=1, multiprocessing_context="fork")
    outcomes = {
        "plain": train(make(rank, MeanOverRanks())),
        "workers": train(with_workers, loader=loader),
        "resumed": resumed(rank),
        "other options": outcome(lambda: train(make(rank, MeanOverRanks(), k=1.3 + rank)))[0],
        "no ranks": outcome(lambda: train(make(rank, "refuse")))[0],
        "apart": train(make(rank)),
    }
    dist.barrier()
    return outcomes


def resumed(rank):
    attention = make(rank, MeanOverRanks())
    train(attention, 2)
    for made, indices in enumerate(attention.attend()):
        attention.report([loss_of(sample, 2) for sample in indices])
        if made == 2:
            break
    state = attention.state_dict()
    again = make(rank, MeanOverRanks())
    again.load_state_dict(state)
    return train(again)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = run_ranks(on_rank, RANKS, tmp_path_factory.mktemp("ranks"))
    for result in made:
        if isinstance(result, Exception):
            raise result
    return made


def test_each_rank_makes_as_many_updates_on_samples_of_its_own(results):
    for rank, result in enumerate(results):
        for batches, summary in result["plain"]:
            assert len(batches) == summary.updates == -(-SAMPLES // (BATCH_SIZE * RANKS))
            assert {sample % RANKS for indices, _, _ in batches for sample in indices} == {rank}


def test_the_mean_is_over_all_ranks_samples(results):
    for epoch in range(EPOCHS):
        loss_sum = weight_sum = 0.0
        for result in results:
            batches, _ = result["plain"][epoch]
            pooled = result["plain"][epoch][1].extra_updates
            for indices, weights, _ in batches:
                loss_sum += sum(
                    weight * loss_of(sample, epoch) for sample, weight in zip(indices, weights, strict=True)
                )
                weight_sum += sum(weights)
            if pooled:
                break
        else:
            for result in results:
                assert result["plain"][epoch][1].mean_loss == pytest.approx(loss_sum / weight_sum, rel=1e-12)
    means = [[summary.mean_loss for _, summary in result["plain"]] for result in results]
    assert means[0] == means[1]
    thresholds = [[batches[0][2] for batches, _ in result["plain"]] for result in results]
    assert thresholds[0] == thresholds[1]
    assert thresholds[0][1] == pytest.approx(1.3 * means[0][0])


def test_each_rank_chooses_by_the_common_mean(results):
    pruned = [sum(summary.pruned for _, summary in result["plain"]) for result in results]
    extra = [sum(summary.extra_updates for _, summary in result["plain"]) for result in results]
    assert min(pruned) > 0
    assert min(extra) > 0
    apart = [[summary.mean_loss for _, summary in result["apart"]] for result in results]
    assert apart[0] != apart[1]


def test_a_resumed_rank_goes_on_to_the_same_end(results):
    for result in results:
        assert result["resumed"][-2:] == result["plain"][-2:]


def test_workers_change_when_losses_arrive_and_nothing_else(results):
    means = [[summary.mean_loss for _, summary in result["workers"]] for result in results]
    assert means[0] == means[1]
    assert all(summary.updates == 6 for result in results for _, summary in result["workers"])


def test_ranks_that_differ_or_decide_apart_without_a_word_are_refused(results):
    for result in results:
        assert type(result["other options"]) is RanksDivergedError
        assert "k 1.3 (rank 0), 2.3 (rank 1)" in str(result["other options"])
        assert type(result["no ranks"]) is ProtocolError


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(OptionError, match="each of 2 ranks has 3 samples"):
        SampleAttention(7, 4, rank=0, world_size=2)
    with pytest.raises(OptionError, match=r"not a DistributedSampler.*give rank="):
        SampleAttention(40, 4, sampler=DistributedSampler(range(40), 2, 0))
    with pytest.raises(OptionError, match="rank is None"):
        SampleAttention(40, 4, world_size=2)


def test_a_sampler_s_order_is_kept_to_the_rank_s_samples():
    attention = SampleAttention(12, 3, sampler=range(11, -1, -1), rank=1, world_size=2, prune_probability=0, ranks=None)
    assert [indices for indices, _, _ in train(attention, 1)[0][0]] == [[11, 9, 7], [5, 3, 1]]


def test_a_state_of_another_rank_is_refused():
    attention = make(0)
    train(attention, 1)
    state = attention.state_dict()
    with pytest.raises(StateError, match=r"rank \(saved 0, here 1\)"):
        make(1).load_state_dict(state)
    with pytest.raises(StateError, match=r"ranks \(saved 2, here 1\)"):
        SampleAttention(SAMPLES, BATCH_SIZE, **OPTIONS, updates=6).load_state_dict(state)
    again = make(0)
    again.load_state_dict(state)
    assert torch.equal(torch.tensor(train(again, 2)[0][0][0][0]), torch.tensor(train(attention, 2)[0][0][0][0]))
