"""Attention to samples in a trainer is that of the loop by hand, bit for bit, also resumed from a checkpoint."""

from dataclasses import replace

import pytest

from tests.trainers.cases import EPOCHS, MARKS, Case
from tests.trainers.sample_loop import check_sample_tail

pytestmark = MARKS
TRAINERS = ("lightning", "transformers", "accelerate")
BOTH = {"k": 1.1, "max_visits": 3}
CASES = [
    Case(2, clip=0.5, options={**BOTH, "final_full_share": 0.3}),
    Case(2, "scaler", clip=0.5, options={**BOTH, "updates": 6}),
    Case(options={"weighted": False}, workers=2),
    Case(3, options={"k": 1.1, "prune_probability": 0.0}),
    Case(precision="bf16", options={**BOTH, "updates": 5}),
]
PAIRS = [
    pytest.param(trainer, case, marks=[pytest.mark.slow] * (index > (2 if trainer == "lightning" else 0)))
    for trainer in TRAINERS
    for index, case in enumerate(CASES)
]
ONE_TRAINER_S = [
    ("lightning", Case(options=BOTH, trainer={"val_check_interval": 3, "num_sanity_val_steps": 2})),
    ("lightning", Case(options=BOTH, trainer={"reload_dataloaders_every_n_epochs": 1})),
    ("transformers", Case(2, "bf16", model="counted", options={"weighted": False, "final_full_share": 0})),
    ("transformers", Case(3, "scaler", model="gpt2", options={"prune_probability": 0, "k": 0.9, "max_visits": 3})),
    pytest.param("transformers", Case(1, model="gpt2", trainer={"max_steps": 17}), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("trainer", "case"), PAIRS + ONE_TRAINER_S, ids=str, indirect=["trainer"])
def test_a_training_is_the_loop_by_hand(trainer, case, tmp_path):
    if trainer.__name__.endswith("accelerate"):
        # It counts windows over the ends of epochs.
        case = replace(case, options={**case.options, "updates": 6})
    run, expected = trainer.train_samples(case, tmp_path), trainer.samples_by_hand(case, tmp_path)
    assert run == expected
    assert (sum(expected.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(expected.doses["pooled"]) > 0) == ("k" in case.options)


@pytest.mark.parametrize("trainer", TRAINERS, indirect=True)
def test_a_resumed_training_is_the_tail_of_the_whole_one(trainer, tmp_path):
    # Lightning saves no random numbers, from which dropout is drawn.
    dropout = 0.0 if trainer.__name__.endswith("lightning") else 0.2
    case = Case(2, dropout=dropout, options={**BOTH, "updates": 6})
    whole = trainer.train_samples(case, tmp_path, saves=True)
    assert whole == trainer.samples_by_hand(case, tmp_path)
    # In mid-epoch, and after an epoch's last update, of three.
    for updates in (1, 2 * 3, EPOCHS * 3 - 1):
        resumed = trainer.train_samples(case, tmp_path, resume=trainer.checkpoint(tmp_path, updates))
        check_sample_tail(whole, resumed, 2 * updates)
