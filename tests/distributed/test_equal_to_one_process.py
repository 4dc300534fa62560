"""Ranks that train together decide alike, and end where one process on the joined batches does."""

import pytest
import torch

from tests.distributed.processes import run_ranks
from tests.distributed.training import Case, in_one_process, on_a_rank

pytestmark = pytest.mark.usefixtures("one_thread")

# 30 samples leave ranks with shards and last batches of different sizes.
CASES = {
    2: [
        Case("ddp", 32, calls=1),
        Case("ddp", 30, calls=2),
        Case("ddp", 29, calls=1),
        Case("fsdp", 32, calls=2),
        Case("fsdp", 30, calls=1),
        Case("fsdp", 29, calls=2),
        Case("ddp", 32, "torch's", 2, "immediate"),
        Case("ddp", 30, "torch's", 1, "deferred"),
        Case("ddp", 29, "ours", 2, "deferred", "last"),
        Case("fsdp", 30, "ours", 2, "immediate", "all"),
    ],
    4: [Case("ddp", 64), Case("fsdp", 64, calls=1), Case("ddp", 61), Case("fsdp", 61, "ours", 2, "deferred")],
}


def all_cases(rank, ranks):
    return [on_a_rank(rank, case, ranks) for case in CASES[ranks]]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = {}

    def get(ranks):
        if ranks not in made:
            made[ranks] = run_ranks(all_cases, ranks, tmp_path_factory.mktemp("ranks"), ranks)
            for result in made[ranks]:
                if isinstance(result, Exception):
                    raise result
        return made[ranks]

    return get


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(
    ("ranks", "number"), [(ranks, number) for ranks in CASES for number in range(len(CASES[ranks]))]
)
def test_ranks_decide_alike_and_as_one_process_on_the_joined_batches(results, ranks, number):
    case = CASES[ranks][number]
    of_ranks = [result[number] for result in results(ranks)]

    visits, weights, threshold = of_ranks[0]
    for other_visits, other_weights, other_threshold in of_ranks[1:]:
        assert [visit[:2] for visit in other_visits] == [visit[:2] for visit in visits]
        assert other_threshold == threshold
        assert torch.equal(other_weights, weights)

    joined_visits, joined_weights, joined_threshold = in_one_process(case, ranks)
    decisions, thresholds, indices = zip(*joined_visits, strict=True)
    assert decisions.count("repeat") > 5
    assert [visit[0] for visit in visits] == [*decisions]
    joined_indices = [
        [index for rank in range(ranks) for index in of_ranks[rank][0][place][2]] for place in range(len(visits))
    ]
    assert joined_indices == [*indices]
    assert [visit[1] or 0 for visit in visits] == pytest.approx([value or 0 for value in thresholds], abs=1e-10)
    assert threshold == pytest.approx(joined_threshold, abs=1e-10)
    assert torch.allclose(weights, joined_weights, rtol=0, atol=1e-8)
