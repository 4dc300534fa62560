"""Two ranks train as one process does on their joined batches, or as two loops by hand."""

from dataclasses import replace

import pytest

from tests.trainers.cases import MARKS, Case
from tests.trainers.ranks import on_ranks
from tests.trainers.sample_loop import check_sample_tail, samples_on_a_rank

pytestmark = MARKS


@pytest.mark.parametrize(
    ("trainer", "case"),
    [
        ("lightning", Case(2)),
        ("transformers", Case(2)),
        pytest.param("lightning", Case(), marks=pytest.mark.slow),
        pytest.param("transformers", Case(), marks=pytest.mark.slow),
        # Divided by the tokens of both.
        pytest.param("transformers", Case(model="gpt2"), marks=pytest.mark.slow),
    ],
    ids=str,
    indirect=["trainer"],
)
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(trainer, case, tmp_path):
    case = replace(case, optimizer="sgd", dropout=0.0, epochs=3, options={"k": 0.9, "max_visits": 4})
    first, second = on_ranks(trainer.on_a_rank, case, tmp_path, folder=tmp_path)
    expected = trainer.in_one_process(case, tmp_path)
    assert first == second
    assert expected.repeats > 1
    assert [visit[:3] + visit[4:] for visit in first.visits] == [visit[:3] + visit[4:] for visit in expected.visits]
    given, wanted = ([*(visit[3] for visit in run.visits), *run.rates, *run.weights] for run in (first, expected))
    assert given == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("trainer", ["lightning", "transformers", "accelerate"], indirect=True)
def test_samples_on_two_ranks_are_those_of_two_loops_by_hand_and_resume(trainer, tmp_path):
    # Lightning saves no random numbers, from which dropout is drawn.
    case = Case(2, dropout=0.0, options={"k": 1.1, "max_visits": 3, "updates": 6})
    ranks = on_ranks(samples_on_a_rank, trainer, case, tmp_path, 4, folder=tmp_path)
    for whole, resumed, by_hand in ranks:
        assert whole == by_hand
        assert sum(whole.doses["pruned"]) > 0
        check_sample_tail(whole, resumed, 8)
    assert ranks[0][0].batches != ranks[1][0].batches
