"""Ranks that train together decide alike, and end where one process on the joined batches does."""

import pytest
import torch

from tests.distributed.processes import run_ranks
from tests.distributed.training import Case, in_one_process, on_a_rank

pytestmark = pytest.mark.usefixtures("one_thread")

# 29, 30 and 61 samples leave ranks with shards and last batches of different sizes.
CASES = {
    2: [
        Case("ddp", 32, "ours", "decide"),
        Case("ddp", 30, "ours", "report"),
        Case("ddp", 29, "ours", "sampler"),
        Case("ddp", 30, "torch's", "decide", "deferred"),
        Case("fsdp", 29, "ours", "report", "deferred", "last"),
        Case("fsdp", 30, "torch's", "sampler"),
        Case("fsdp", 32, "ours", "decide", "immediate", "all"),
    ],
    4: [Case("ddp", 64, "torch's", "report"), Case("fsdp", 61, "ours", "sampler", "deferred")],
}


def all_cases(rank, ranks):
    return [on_a_rank(rank, case, ranks) for case in CASES[ranks]]


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_decide_alike_and_as_one_process_on_the_joined_batches(ranks, tmp_path):
    for case, *of_ranks in zip(CASES[ranks], *run_ranks(all_cases, ranks, tmp_path, ranks), strict=True):
        visits, weights, threshold = of_ranks[0]
        for other_visits, other_weights, other_threshold in of_ranks[1:]:
            assert [visit[:2] for visit in other_visits] == [visit[:2] for visit in visits], case
            assert other_threshold == threshold, case
            assert torch.equal(other_weights, weights), case

        joined_visits, joined_weights, joined_threshold = in_one_process(case, ranks)
        decisions, thresholds, indices = zip(*joined_visits, strict=True)
        assert decisions.count("repeat") > 5, case
        assert [visit[0] for visit in visits] == [*decisions], case
        joined = [[index for rank in of_ranks for index in rank[0][number][2]] for number in range(len(visits))]
        assert joined == [*indices], case
        assert [visit[1] or 0 for visit in visits] == pytest.approx([value or 0 for value in thresholds], abs=1e-10)
        assert threshold == pytest.approx(joined_threshold, abs=1e-10), case
        assert torch.allclose(weights, joined_weights, rtol=0, atol=1e-8), case
