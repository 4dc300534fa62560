"""A fault on one rank is an error on both, without waiting for a limit, and both stop training."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from batch_sampler_attn.errors import RankLostError, RanksDivergedError, RankTimeoutError
from tests.distributed.faults import BATCHES, FAULTS
from tests.distributed.process_faults import (
    PROCESS_FAULTS,
    all_faults,
    one_batch_more_in_ddp,
    rank_killed,
    rank_late,
)
from tests.distributed.processes import run_ranks

TABLE = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "fault",
    [*FAULTS, *PROCESS_FAULTS, "one batch more in ddp", "rank killed", "rank late", "rank late at first"],
)
def test_the_table_in_the_documentation_has_every_fault(fault):
    assert f"| {fault} |" in TABLE


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_ranks(all_faults, 2, tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", ["none", "by hand", "late within the limit"])
def test_without_a_fault_ranks_train_to_the_end(outcomes, name):
    (visited, threshold), other = (outcome[name] for outcome in outcomes)
    assert other == (visited, threshold)
    assert len(visited) > 2 * BATCHES
    assert threshold == pytest.approx(1.2 * (1.8 + 3 / 7))


def test_ranks_may_decide_apart_with_ranks_none(outcomes):
    (visited, threshold), (other_visited, other_threshold) = (outcome["apart"] for outcome in outcomes)
    assert len(visited) < len(other_visited)
    assert threshold != other_threshold


@pytest.mark.parametrize("name", [*FAULTS, *PROCESS_FAULTS])
def test_a_fault_is_an_error_on_both_ranks(outcomes, name):
    if name == "group without this rank" and torch.__version__ < (2, 14):
        pytest.skip("this PyTorch may call a group without this rank None, as if all ranks were meant")
    _, errors, words = {**FAULTS, **PROCESS_FAULTS}[name]
    # A rank that waited for its limit would have raised RankTimeoutError.
    assert tuple(type(outcome[name]) for outcome in outcomes) == errors
    with pytest.raises(errors[0], match=words):
        raise outcomes[0][name]


def test_a_rank_at_its_end_is_notified_of_one_more_batch_that_another_is_stuck_in(tmp_path):
    error, _ = run_ranks(one_batch_more_in_ddp, 2, tmp_path)
    assert type(error) is RanksDivergedError
    assert "rank 0: ended epoch 0 after 5 batches; rank 1: epoch 0, has a batch 5" in str(error)


def test_if_a_rank_is_killed_the_other_one_raises_rank_lost_error(tmp_path):
    error, killed = run_ranks(rank_killed, 2, tmp_path, may_end=True)
    assert killed is None
    assert isinstance(error, RankLostError)
    assert "One of them is gone" in str(error)


def test_if_a_rank_is_too_late_both_raise_an_error(tmp_path):
    in_time, late = run_ranks(rank_late, 2, tmp_path)
    assert type(in_time["later"]) is RankTimeoutError
    assert isinstance(in_time["later"], TimeoutError)
    assert "at: epoch 1, batch 2, visit 1. Another rank is late, has ended" in str(in_time["later"])
    assert "timeout_seconds=0.5 must be longer" in str(in_time["later"])
    assert isinstance(late["later"], (RankTimeoutError, RankLostError))
    if hasattr(dist.ProcessGroup, "get_group_store"):  # otherwise ranks cannot meet before they make a group
        for outcome in (in_time, late):
            assert type(outcome["at first"]) is RankTimeoutError
            assert "begins epoch 0 at batch 0 after 0 visits. Another rank is late" in str(outcome["at first"])
