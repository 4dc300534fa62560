"""Attention to samples on ranks: one mean, each rank's choice among its own samples, as many updates on each."""

import itertools

import pytest
from torch.utils.data import DataLoader

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import ProtocolError, RanksDivergedError, StateError
from tests.distributed.processes import run_ranks
from tests.distributed.threads import attempt, on_threads

SAMPLES, BATCH_SIZE, EPOCHS, RANKS = 47, 4, 5, 2
OPTIONS = {"k": 1.3, "prune_probability": 0.5, "weighted": True, "epochs": EPOCHS, "final_full_share": 0.2}


def loss_of(sample, epoch):
    return (1.0 + sample % 7) / (1 + 0.1 * epoch)


def make(rank, ranks=None, **options):
    return SampleAttention(
        SAMPLES, BATCH_SIZE, ranks=ranks, **{"rank": rank, "world_size": RANKS, **OPTIONS, **options}
    )


def train(attention, epochs=EPOCHS, loader=None, stop=None):
    """The batches, weights and thresholds of each epoch, and its summary; the last one up to an update."""
    made = []
    for epoch in range(attention.epoch, epochs):
        batches = []
        for indices in attention.attend(loader):
            weights = attention.report([loss_of(sample, epoch) for sample in indices])
            batches.append((indices, weights, attention.threshold))
            if epoch == epochs - 1 and attention.updates == stop:
                return made
        made.append((batches, attention.last_summary))
    return made


# On a real process group ----------------------------------------------------------------------------------------


def on_rank(rank):
    with_workers = make(rank, MeanOverRanks())
    loader = DataLoader(
        range(SAMPLES), batch_sampler=with_workers, num_workers=1, multiprocessing_context="fork", collate_fn=list
    )
    plain = train(make(rank, MeanOverRanks()))
    return plain, train(with_workers, loader=loader), attempt(lambda: train(make(rank, "refuse"))), train(make(rank))


def test_each_rank_makes_as_many_updates_on_samples_of_its_own_and_chooses_by_the_common_mean(tmp_path):
    plain, with_workers, refused, apart = zip(*run_ranks(on_rank, RANKS, tmp_path), strict=True)
    for rank, epochs in enumerate(plain):
        for batches, summary in epochs:
            assert len(batches) == summary.updates == -(-SAMPLES // (BATCH_SIZE * RANKS))
            assert {sample % RANKS for indices, _, _ in batches for sample in indices} == {rank}
        assert sum(summary.pruned for _, summary in epochs) > 0
        assert sum(summary.extra_updates for _, summary in epochs) > 0
    for together in (plain, with_workers):
        means = [[summary.mean_loss for _, summary in epochs] for epochs in together]
        thresholds = [[batches[0][2] for batches, _ in epochs] for epochs in together]
        assert (means[0], thresholds[0]) == (means[1], thresholds[1])
        assert thresholds[0][1] == pytest.approx(1.3 * means[0][0])
    assert apart[0][0][1].mean_loss != apart[1][0][1].mean_loss
    assert {*map(type, refused)} == {ProtocolError}


# On threads -----------------------------------------------------------------------------------------------------


def test_the_mean_is_over_all_ranks_samples_by_their_weights():
    options = {"k": None, "epochs": None}
    results = on_threads(RANKS, lambda rank, transport: train(make(rank, transport, **options), 4))
    weight_sums = []
    for epochs in zip(*results, strict=True):
        rows = [
            row
            for batches, _ in epochs
            for indices, weights, _ in batches
            for row in zip(indices, weights, strict=True)
        ]
        weight_sums.append([sum(sum(weights) for _, weights, _ in batches) for batches, _ in epochs])
        loss_sum = sum(weight * loss_of(sample, epochs[0][1].epoch) for sample, weight in rows)
        for _, summary in epochs:
            assert summary.mean_loss == pytest.approx(loss_sum / sum(weight for _, weight in rows), rel=1e-12)
    assert any(one != pytest.approx(other) for one, other in weight_sums)


def test_ranks_that_differ_are_refused_with_what_differs():
    for error in on_threads(RANKS, lambda rank, transport: train(make(rank, transport, k=1.3 + rank))):
        assert isinstance(error, RanksDivergedError)
        assert "k 1.3 (rank 0), 2.3 (rank 1)" in str(error)


def test_ranks_that_loaded_different_states_in_mid_epoch_are_refused_as_they_resume():
    def on_rank(rank, transport):
        apart, together = make(rank, updates=2), make(rank, transport, updates=2)
        train(together, 1, stop=1)
        train(apart, 2, stop=1)
        together.load_state_dict(apart.state_dict())
        train(together)

    for error in on_threads(RANKS, on_rank):
        assert isinstance(error, RanksDivergedError)
        assert "mean_loss" in str(error)


def test_ranks_that_leave_each_epoch_at_its_last_batch_resume_as_those_that_do_not():
    def on_rank(rank, transport):
        attention, again = (make(rank, transport, updates=4) for _ in range(2))
        for epoch in range(EPOCHS):
            for indices in itertools.islice(attention.attend(), 4):
                attention.report([loss_of(sample, epoch) for sample in indices])
            assert (attention.epoch, attention.last_summary.epoch) == (epoch + 1, epoch)
            if epoch == 1:
                state = attention.state_dict()
        again.load_state_dict(state)
        train(again)
        return again.state_dict() == attention.state_dict()

    assert on_threads(RANKS, on_rank) == [True, True]


def test_ranks_that_would_train_on_the_same_samples_are_refused():
    def on_rank(rank, transport):
        with pytest.raises(ProtocolError, match="on the same samples: give rank="):
            make(None, transport, world_size=None).attend()

    def with_another_number(rank, transport):
        with pytest.raises(ProtocolError, match="leave some samples out: give rank= and world_size=2"):
            make(rank, transport, world_size=3).attend()

    def with_data_of_its_own(rank, transport):
        return len(train(make(None, transport, world_size=1)))

    assert on_threads(RANKS, on_rank) == on_threads(RANKS, with_another_number) == [None, None]
    assert on_threads(RANKS, with_data_of_its_own) == [EPOCHS, EPOCHS]


def test_a_sampler_s_order_is_kept_to_the_rank_s_samples():
    attention = SampleAttention(12, 3, sampler=range(11, -1, -1), rank=1, world_size=2, prune_probability=0, ranks=None)
    assert [indices for indices, _, _ in train(attention, 1)[0][0]] == [[11, 9, 7], [5, 3, 1]]


def test_a_state_of_another_rank_is_refused():
    attention = make(0)
    train(attention, 1)
    with pytest.raises(StateError, match=r"rank \(saved 0, here 1\)"):
        make(1).load_state_dict(attention.state_dict())
    with pytest.raises(StateError, match=r"ranks \(saved 2, here 1\)"):
        SampleAttention(SAMPLES, BATCH_SIZE, **OPTIONS, updates=6).load_state_dict(attention.state_dict())
