"""A trainer with repeats makes the visits, losses and weights of the plain loop around ``decide``, also resumed."""

import itertools

import pytest

from tests.trainers.cases import EPOCHS, MARKS, Case
from tests.trainers.plain_loop import check_tail

pytestmark = MARKS

TRAINERS = ("lightning", "transformers", "accelerate")
MATRIX = [
    Case(accumulation, precision, clip=clip)
    for accumulation, precision, clip in itertools.product((1, 2, 3), ("fp32", "bf16", "scaler"), (None, 0.5))
]
# Lightning's have each value with each other at least once; others take longer, or have less of their own.
QUICK = {"lightning": (0, 3, 5, 7, 8, 10, 13, 14, 17), "transformers": (13, 17), "accelerate": (5, 7, 17)}
PAIRS = [
    pytest.param(trainer, case, marks=[] if index in QUICK[trainer] else pytest.mark.slow)
    for trainer in TRAINERS
    for index, case in enumerate(MATRIX)
]
OTHERS = [
    Case(2, optimizer="sgd", batch_norm=True, options={"epoch_loss": "last", "k": 0.8, "budget": 0.7}),
    Case(3, options={"epoch_loss": "all", "max_visits": 2}),
]
PAIRS += [
    *itertools.product(TRAINERS, OTHERS),
    ("transformers", Case(2, model="gpt2")),
    ("transformers", Case(2, epochs=2.5, trainer={"lr_scheduler_type": "cosine", "warmup_steps": 5})),
]


@pytest.mark.parametrize(("trainer", "case"), PAIRS, ids=str, indirect=["trainer"])
def test_a_run_is_that_of_the_plain_loop(trainer, case, tmp_path):
    run, _ = trainer.train(case, tmp_path)
    assert run == trainer.by_hand(case, tmp_path)
    assert run.repeats > 2
    assert len(run.first_losses) == int(case.epochs * case.windows)


@pytest.mark.parametrize("trainer", TRAINERS, indirect=True)
def test_a_resumed_run_is_the_tail_of_the_whole_run(trainer, tmp_path):
    # Lightning saves no random numbers, from which dropout is drawn.
    case = Case(2, dropout=0.0 if trainer.__name__.endswith("lightning") else 0.2)
    whole, _ = trainer.train(case, tmp_path, saves=1)
    assert whole == trainer.by_hand(case, tmp_path, is_resumable=True)
    assert len(whole.first_losses) == EPOCHS * case.windows
    repeated = next(visit for visit in whole.visits if visit[0] > 1 and visit[2] > 1)
    # In mid-epoch, at an epoch's beginning, and at a window that was repeated.
    for epoch, window in [(1, 2), (2, 0), repeated[:2]]:
        folder = trainer.checkpoint(tmp_path, epoch * case.windows + window)
        resumed, _ = trainer.train(case, tmp_path, resume=folder)
        check_tail(whole, resumed, (epoch, window, 1))
