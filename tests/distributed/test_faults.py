"""What goes wrong on one rank is said on every rank, without waiting, and never trained on in silence."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from batch_sampler_attn.errors import (
    LossError,
    OptionError,
    ProtocolError,
    RankLostError,
    RanksDivergedError,
    RankTimeoutError,
)
from tests.distributed import faults
from tests.distributed.processes import run_ranks

# The error on each rank, and words of the first one's.
DIVERGED = (RanksDivergedError, RanksDivergedError)
EXPECTED = {
    "other_options": (*DIVERGED, r"differ in k 1\.2 \(rank 0\), 1\.3 \(rank 1\)"),
    "other_options_by_hand": (*DIVERGED, r"differ in k 1\.2 \(rank 0\), 1\.3 \(rank 1\)"),
    "other_threshold": (*DIVERGED, r"differ in threshold 1\.2 \(rank 0\), 2\.4 \(rank 1\)"),
    "one_batch_more": (*DIVERGED, r"differ in batches to come 5 \(rank 0\), 6 \(rank 1\)"),
    "one_batch_more_unknown": (*DIVERGED, r"rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, has a batch 5"),
    "one_batch_more_by_hand": (*DIVERGED, r"rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, batch 5, visit 1"),
    "a_batch_skipped": (*DIVERGED, r"rank 1: epoch 1, batch 2, visit 1, skipped\). Call skip\(\) on all ranks"),
    "the_last_batch_skipped": (*DIVERGED, r"rank 0: epoch 1, batch 4, visit 1; rank 1: .* 4, visit 1, skipped"),
    "the_first_batch_skipped_by_hand": (*DIVERGED, r"rank 1: epoch 0, batch 0, visit 1, skipped"),
    "other_length_after_an_epoch_abandoned": (*DIVERGED, r"differ in batches to come 5 \(rank 0\), 6 \(rank 1\)"),
    "other_state_loaded_in_an_epoch": (*DIVERGED, r"rank 0: begins epoch 0 at batch 0 .*; rank 1: .* at batch 2"),
    "a_loss_refused": (
        RanksDivergedError,
        LossError,
        r"rank 1: epoch 1, batch 2, visit 1, stopped by an error",
    ),
    "samples_on_one_rank": (*DIVERGED, r"samples= was not given on rank 1"),
    "no_choice": (ProtocolError, ProtocolError, r"one of 2 .* ranks=MeanOverRanks\(\).* ranks=None"),
    "no_choice_by_hand": (ProtocolError, ProtocolError, r"one of 2 .* ranks=MeanOverRanks\(\).* ranks=None"),
    "other_order": (*DIVERGED, r"differ in generator \d+ \(rank 0\), \d+ \(rank 1\)"),
    "other_data": (*DIVERGED, r"differ in samples of the data 11 \(rank 0\), 12 \(rank 1\)"),
    "other_batch_size": (*DIVERGED, r"differ in batch_size 4 \(rank 0\), 5 \(rank 1\)"),
    "other_epoch": (*DIVERGED, r"differ in epoch of set_epoch 0 \(rank 0\), 1 \(rank 1\)"),
    "all_of_the_data": (ProtocolError, ProtocolError, r"RandomSampler yields all of the data"),
    "sampler_made_again": (ProtocolError, ProtocolError, r"no schedule on 2 ranks.*ranks=Mean.*=False"),
    "transport_shared": (OptionError, OptionError, "belongs to another schedule"),
    "group_without_this_rank": (OptionError, OptionError, "group is .*that this rank is in"),
    "a_call_left_out_by_hand": (*DIVERGED, r"rank 0: epoch 0, batch 4, visit 1; rank 1: ended epoch 0 after 4 batches"),
    # attend() finds it out on its own rank, and the other one is told.
    "a_call_left_out": (RanksDivergedError, ProtocolError, r"rank 1: epoch 0, batch 2, visit 1, stopped by"),
}


TABLE = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text(encoding="utf-8")


def test_the_table_in_the_documentation_has_every_fault():
    for fault in (*EXPECTED, "one_batch_more_in_ddp", "rank_killed", "rank_late", "rank_late_at_first"):
        assert f"| {fault.replace('_', ' ')} |" in TABLE


@pytest.fixture(scope="module")
def mild_ones(tmp_path_factory):
    return run_ranks(faults.mild_ones, 2, tmp_path_factory.mktemp("mild"))


def test_without_a_fault_ranks_go_on_to_the_end(mild_ones):
    for name in ("none", "none_by_hand", "late_within_the_limit"):
        (visits, threshold), (other_visits, other_threshold) = (result[name][0] for result in mild_ones)
        assert visits == other_visits
        assert len(visits) > 2 * faults.BATCHES
        assert threshold == other_threshold == pytest.approx(1.2 * (1.8 + 3 / 7))


def test_ranks_that_skip_alike_go_on_to_the_end(mild_ones):
    (visits, threshold), (other_visits, other_threshold) = (result["skipped_alike"][0] for result in mild_ones)
    assert visits == other_visits
    assert {*visits} == {1, 2, 3}
    assert len(visits) > 2 * 3
    assert threshold == other_threshold


def test_ranks_may_decide_apart_where_it_was_said(mild_ones):
    assert [result["no_choice_and_meant"][0] for result in mild_ones] == pytest.approx([1.2, 2.4])


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_an_error_on_both_ranks_at_once(mild_ones, fault):
    if fault == "group_without_this_rank" and torch.__version__ < (2, 14):
        pytest.skip("this PyTorch may call a group without this rank None, as if all ranks were meant")
    *kinds, words = EXPECTED[fault]
    for result, kind in zip(mild_ones, kinds, strict=True):
        error, seconds = result[fault]
        assert type(error) is kind
        assert seconds < faults.PATIENCE_SECONDS
    with pytest.raises(kinds[0], match=words):
        raise mild_ones[0][fault][0]


def test_a_rank_at_its_end_hears_of_a_batch_more_that_another_is_stuck_in(tmp_path):
    (error, seconds), (_, stuck_seconds) = run_ranks(faults.one_batch_more_in_ddp, 2, tmp_path)
    assert type(error) is RanksDivergedError
    assert "rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, has a batch 5" in str(error)
    assert seconds < faults.PATIENCE_SECONDS
    # DDP's own error, since the other rank has ended.
    assert stuck_seconds < faults.PATIENCE_SECONDS


def test_where_a_rank_is_killed_the_other_one_learns_it(tmp_path):
    survivor, killed = run_ranks(faults.rank_killed, 2, tmp_path, may_end=True)
    error, seconds = survivor
    assert killed is None
    assert isinstance(error, RankLostError)
    assert "One of them is gone" in str(error)
    assert seconds < faults.PATIENCE_SECONDS


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    return run_ranks(faults.late, 2, tmp_path_factory.mktemp("late"))


def test_where_a_rank_is_too_late_both_learn_it(late):
    (error, seconds), (late_error, _) = (result["rank_late"] for result in late)
    assert type(error) is RankTimeoutError
    assert isinstance(error, TimeoutError)
    assert "timeout_seconds=8" in str(error)
    assert faults.LIMIT_SECONDS - 1 < seconds < faults.PATIENCE_SECONDS
    assert isinstance(late_error, (RankTimeoutError, RankLostError))


@pytest.mark.skipif(
    not hasattr(dist.ProcessGroup, "get_group_store"), reason="this PyTorch does not let ranks meet before a group"
)
def test_where_a_rank_is_too_late_for_the_first_exchange_neither_waits_longer(late):
    for result in late:
        error, seconds = result["rank_late_at_first"]
        assert type(error) is RankTimeoutError
        assert "begins epoch 0 at batch 0 after 0 visits. Another rank is late, has ended" in str(error)
        assert seconds < faults.PATIENCE_SECONDS
    assert late[0]["rank_late_at_first"][1] > faults.LIMIT_SECONDS - 1
