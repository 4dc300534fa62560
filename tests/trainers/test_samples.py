"""Attention to samples in a trainer is that of the loop by hand, bit for bit, also resumed from a checkpoint."""

from dataclasses import replace
from importlib import import_module

import pytest

from tests.trainers.cases import EPOCHS, MARKS, Case
from tests.trainers.sample_loop import check_sample_tail

pytestmark = MARKS
TRAINERS = ("lightning", "transformers", "accelerate")
BOTH = {"k": 1.1, "max_visits": 3}
CASES = {
    "prunes": Case(),
    "pools": Case(options={"k": 1.1, "prune_probability": 0.0}),
    "both, plain at the end": Case(2, clip=0.5, options={**BOTH, "final_full_share": 0.3}),
    "its own epochs, bfloat16": Case(precision="bf16", options={**BOTH, "updates": 5}),
    "unweighted, workers": Case(3, workers=2, options={"weighted": False, "updates": 6}),
    "scaler": Case(2, "scaler", clip=0.5, options={**BOTH, "updates": 6}),
}


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        pytest.param(trainer, name, marks=[pytest.mark.slow] * ("workers" in name and trainer != "lightning"))
        for trainer in TRAINERS
        for name in CASES
    ],
)
def test_a_training_is_the_loop_by_hand(trainer, name, tmp_path):
    case = CASES[name]
    if trainer == "accelerate":
        # It counts windows over the ends of epochs.
        case = replace(case, options={**case.options, "updates": 6})
    trainer = import_module(f"tests.trainers.by_{trainer}")
    run, expected = trainer.train_samples(case, tmp_path), trainer.samples_by_hand(case, tmp_path)
    assert run == expected
    assert (sum(expected.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(expected.doses["pooled"]) > 0) == ("k" in case.options)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_training_is_the_tail_of_the_whole_one(trainer, workers, tmp_path):
    trainer = import_module(f"tests.trainers.by_{trainer}")
    # Lightning saves no random numbers, from which dropout is drawn.
    dropout = 0.0 if trainer.__name__.endswith("lightning") else 0.2
    case = Case(2, dropout=dropout, workers=workers, options={**BOTH, "updates": 6})
    whole = trainer.train_samples(case, tmp_path, saves=True)
    assert whole == trainer.samples_by_hand(case, tmp_path)
    # In mid-epoch, and after an epoch's last update, of three.
    for updates in (1, 2 * 3, 2 * 3 + 2, EPOCHS * 3 - 1):
        resumed = trainer.train_samples(case, tmp_path, resume=trainer.checkpoint(tmp_path, updates))
        check_sample_tail(whole, resumed, 2 * updates)
