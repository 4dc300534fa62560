"""Two ranks train as one process does on their joined batches, or as two loops by hand."""

from importlib import import_module

import pytest

from tests.trainers.cases import MARKS, Case
from tests.trainers.ranks import on_ranks
from tests.trainers.sample_loop import check_sample_tail, samples_on_a_rank

pytestmark = MARKS
TRAINERS = ("lightning", "transformers", "accelerate")
OPTIONS = {"k": 0.9, "max_visits": 4}


@pytest.mark.parametrize(
    ("trainer", "accumulation"),
    [
        pytest.param(trainer, size, marks=[pytest.mark.slow] * (size == 1))
        for trainer in TRAINERS[:2]
        for size in (1, 2)
    ],
)
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(trainer, accumulation, tmp_path):
    case = Case(accumulation, optimizer="sgd", dropout=0.0, options=OPTIONS)
    check_ranks(import_module(f"tests.trainers.by_{trainer}"), case, tmp_path)


@pytest.mark.slow
def test_two_ranks_divide_by_the_tokens_of_both(tmp_path):
    case = Case(model="gpt2", optimizer="sgd", dropout=0.0, options=OPTIONS)
    check_ranks(import_module("tests.trainers.by_transformers"), case, tmp_path)


def check_ranks(trainer, case, folder):
    first, second = on_ranks(trainer.on_a_rank, case, folder, folder=folder)
    expected = trainer.in_one_process(case, folder)
    assert first == second
    assert expected.repeats > 1
    assert [visit[:3] + visit[4:] for visit in first.visits] == [visit[:3] + visit[4:] for visit in expected.visits]
    for given, wanted in zip(
        ([visit[3] for visit in first.visits], first.rates, first.weights),
        ([visit[3] for visit in expected.visits], expected.rates, expected.weights),
        strict=True,
    ):
        assert given == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_samples_on_two_ranks_are_those_of_two_loops_by_hand_and_resume(trainer, tmp_path):
    trainer = import_module(f"tests.trainers.by_{trainer}")
    # Lightning saves no random numbers, from which dropout is drawn.
    case = Case(2, dropout=0.0, options={"k": 1.1, "max_visits": 3, "updates": 6})
    ranks = on_ranks(samples_on_a_rank, trainer, case, tmp_path, 4, folder=tmp_path)
    for whole, resumed, by_hand in ranks:
        assert whole == by_hand
        assert sum(whole.doses["pruned"]) > 0
        check_sample_tail(whole, resumed, 8)
    assert ranks[0][0].batches != ranks[1][0].batches
