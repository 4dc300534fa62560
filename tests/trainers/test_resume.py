"""A run that resumes from a checkpoint is the tail of the whole run, bit for bit."""

from importlib import import_module

import pytest

from tests.trainers.cases import EPOCHS, MARKS, Case
from tests.trainers.plain_loop import check_tail

pytestmark = MARKS


@pytest.mark.parametrize("trainer", ["lightning", "transformers", "accelerate"])
def test_a_resumed_run_is_the_tail_of_the_whole_run(trainer, tmp_path):
    trainer = import_module(f"tests.trainers.by_{trainer}")
    # Lightning saves no random numbers, from which dropout is drawn.
    case = Case(2, dropout=0.0 if trainer.__name__.endswith("lightning") else 0.2)
    whole, _ = trainer.train(case, tmp_path, saves=True)
    assert whole == trainer.by_hand(case, tmp_path, is_resumable=True)
    assert len(whole.first_losses) == EPOCHS * case.windows
    repeated = next(visit for visit in whole.visits if visit[0] > 1 and visit[2] > 1)
    # In mid-epoch, at an epoch's beginning, and at a window that was repeated.
    for epoch, window in [(1, 2), (2, 0), repeated[:2]]:
        folder = trainer.checkpoint(tmp_path, epoch * case.windows + window)
        resumed, _ = trainer.train(case, tmp_path, resume=folder)
        check_tail(whole, resumed, (epoch, window, 1))
