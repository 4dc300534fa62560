"""The process groups that exchanges have of their own: beside others, anew after others, and as a rank ends."""

import pytest

from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, RankLostError, RanksDivergedError
from tests.distributed.groups import HAS_JAX, LIMIT_SECONDS, through_a_run
from tests.distributed.processes import run_ranks

RANKS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    made = run_ranks(through_a_run, RANKS, folder, str(folder))
    for result in made:
        if isinstance(result, Exception):
            raise result
    return made


def test_ranks_of_a_group_decide_alike_beside_all_ranks(results):
    # Losses of 1 + rank + batch, in two batches.
    assert [result["group"][0] for result in results[:2]] == [(["advance"] * 2, 2.0)] * 2
    assert [result["whole"][0] for result in results] == [(["advance"] * 2, 2.5)] * RANKS


def test_a_copy_of_a_schedule_in_use_has_a_group_of_its_own(results):
    # Losses of 1 + rank + batch, against 2.5.
    assert [result["twin"][0] for result in results] == [(["advance", "repeat", "advance"], 2.5)] * RANKS


def test_schedules_side_by_side_do_not_mix_their_losses(results):
    assert [result["two at once"] for result in results] == [(2.5, 25.0)] * RANKS


def test_a_schedule_goes_on_with_the_ranks_there_are_after_another_init(results):
    # Losses of 1 + rank + 2 * batch, against 2.5.
    assert [result["again"][0] for result in results[:2]] == [(["advance", "repeat", "advance"], 2.5)] * 2
    assert results[2]["again"][0] == (["repeat", "advance", "repeat", "advance"], 4.0)


def test_a_loop_by_hand_that_began_before_there_were_ranks_is_refused_among_them(results):
    for result in results[:2]:
        error, _ = result["decided before there were ranks"]
        assert type(error) is ProtocolError
        assert "one of 2" in str(error)
    assert results[2]["decided before there were ranks"][0] == "repeat"


def test_a_loss_refused_in_a_later_window_is_told_at_once(results):
    for rank, result in enumerate(results):
        error, seconds = result["refused in a later window"]
        assert type(error) is (LossError if rank == 1 else RanksDivergedError)
        assert seconds < LIMIT_SECONDS
    assert "rank 1: epoch 2, batch 0, visit 1, stopped" in str(error)


@pytest.mark.skipif(not HAS_JAX, reason="jax is not installed")
def test_losses_may_be_of_jax(results):
    assert [result["jax"][0] for result in results] == [(["advance"] * 2, 3.0)] * RANKS


def test_a_rank_that_ends_as_options_are_compared_is_told_and_told_again(results):
    for error, seconds in results[0]["ended as options were told"]:
        assert type(error) is RankLostError
        assert "the comparison of options" in str(error)
        assert seconds < LIMIT_SECONDS


def test_the_class_in_place_of_an_object_is_refused(results):
    for result in results:
        error, _ = result["class as ranks"]
        assert type(error) is OptionError
        assert "must be MeanOverRanks()" in str(error)
