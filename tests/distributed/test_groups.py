"""The process groups that exchanges have of their own: among others, after others, and as a rank ends."""

import pytest

from batch_sampler_attn import Decision
from batch_sampler_attn.errors import ProtocolError, RankLostError
from tests.distributed.groups import through_a_run
from tests.distributed.processes import run_ranks

RANKS = 3


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups")
    return run_ranks(through_a_run, RANKS, folder, str(folder))


def test_ranks_of_a_group_decide_alike_while_all_ranks_do(results):
    # Losses of 1 + rank + batch, in two batches.
    assert [result["whole"] for result in results] == [(["advance"] * 2, 2.5)] * RANKS
    assert [result["pair"] for result in results[1:]] == [((["advance"] * 2, 3.0), rank) for rank in (0, 1)]


def test_a_copy_of_a_schedule_in_use_has_a_group_of_its_own(results):
    # Losses of 1 + rank + batch, against 2.5.
    assert [result["twin"] for result in results] == [(["advance", "repeat", "advance"], 2.5)] * RANKS


def test_schedules_side_by_side_do_not_mix_their_losses(results):
    assert [result["side by side"] for result in results] == [(2.5, 25.0)] * RANKS


def test_a_schedule_continues_with_the_ranks_of_another_init_process_group(results):
    # Losses of 1 + rank + 2 * batch, against 2.5.
    assert [result["fewer ranks"] for result in results[:2]] == [(["advance", "repeat", "advance"], 2.5)] * 2
    assert results[2]["fewer ranks"] == (["repeat", "advance", "repeat", "advance"], 4.0)


def test_a_loop_by_hand_that_began_before_there_were_ranks_is_refused_among_them(results):
    for result in results[:2]:
        assert type(result["by hand"]) is ProtocolError
        assert "one of 2" in str(result["by hand"])
    assert results[2]["by hand"] is Decision.REPEAT


def test_if_a_rank_ends_as_options_are_compared_every_call_of_the_other_is_an_error(results):
    for error in results[0]["ended"]:
        assert type(error) is RankLostError
        assert "the comparison of options" in str(error)
