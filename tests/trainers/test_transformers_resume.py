"""Trainings of a Trainer that were killed and go on in another process, or run on two ranks."""

import json

import pytest
import torch

from batch_sampler_attn.errors import BatchAttentionWarning
from tests.trainers.in_processes import check_ranks, check_tail, load, make
from tests.trainers.transformers_processes import CASE, WINDOWS, in_one_process
from tests.trainers.transformers_runs import BATCHES, EPOCHS, MARKS, Case, by_hand, by_trainer

pytestmark = MARKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make("transformers_processes", tmp_path_factory.mktemp("runs"))


def test_the_whole_run_is_that_of_the_plain_loop(folder, tmp_path):
    run, steps = load(folder, "whole")
    assert run == by_hand(CASE, tmp_path)
    assert steps == EPOCHS * WINDOWS


# Where it goes on: in mid-epoch, at an epoch's begin, and at a window that was being repeated.
@pytest.mark.parametrize(
    ("kill", "where"), [("mid-epoch", (1, 2, 1)), ("last-step", (2, 0, 1)), ("repeats", (2, 1, 1))]
)
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill, where):
    (whole, steps), (resumed, resumed_steps) = load(folder, "whole"), load(folder, kill)
    check_tail(whole, resumed, where)
    assert resumed_steps == steps


@pytest.mark.parametrize(("model", "accumulation"), [("classifier", 2), ("gpt2", 1)])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, model, accumulation, tmp_path):
    expected = in_one_process(model, accumulation, tmp_path)
    check_ranks(folder, f"{model}-{accumulation}", expected, rtol=1e-6, atol=1e-9)


def test_ranks_that_divide_by_their_own_tokens_decide_on_the_mean_over_all(folder, tmp_path):
    ranks = [load(folder, f"apart-rank{rank}") for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0].repeats > 2
    # Before the first update, of which the ranks make the plain mean, there is no difference.
    expected = in_one_process("gpt2", 1, tmp_path)
    assert ranks[0].visits[0][3] == pytest.approx(expected.visits[0][3], rel=1e-6)


# In one process


@pytest.mark.parametrize("steps", [BATCHES + 3, 2 * BATCHES])
def test_max_steps_can_be_raised_in_another_run(steps, tmp_path):
    case = Case(arguments={"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"})
    whole, _ = by_trainer(case, tmp_path / "whole", max_steps=3 * BATCHES)
    begun, _ = by_trainer(case, tmp_path / "begun", max_steps=steps)
    resumed, _ = by_trainer(case, tmp_path / "begun", resume=True, max_steps=3 * BATCHES)
    assert begun.visits + resumed.visits == whole.visits
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.threshold == whole.threshold


def test_the_state_lies_beside_the_trainer_s(tmp_path):
    by_trainer(CASE, tmp_path, save_strategy="epoch")
    for epoch in range(1, EPOCHS + 1):
        folder = tmp_path / f"checkpoint-{epoch * WINDOWS}"
        assert (folder / "trainer_state.json").is_file()
        assert json.loads((folder / "batch_attention.json").read_text())["state"]["epoch"] == epoch


def test_a_checkpoint_without_a_state_is_gone_on_from_with_a_warning(tmp_path):
    case = Case(arguments={"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"})
    by_trainer(case, tmp_path, max_steps=BATCHES + 3)
    (tmp_path / f"checkpoint-{BATCHES + 3}" / "batch_attention.json").unlink()
    with pytest.warns(BatchAttentionWarning, match=r"has no batch_attention.json"):
        run, trainer = by_trainer(case, tmp_path, resume=True, max_steps=3 * BATCHES)
    assert trainer.state.global_step == 3 * BATCHES
    # The part of an epoch that was left sets no threshold; the whole one after it does.
    assert len(run.epochs) == 1


def test_data_that_is_not_skipped_is_an_epoch_from_its_begin(tmp_path):
    case = Case(arguments={"save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"})
    by_trainer(case, tmp_path, max_steps=BATCHES + 3)
    run, _ = by_trainer(case, tmp_path, resume=True, max_steps=2 * BATCHES + 3, ignore_data_skip=True)
    assert run.visits[0][:3] == (1, 0, 1)
    assert len({visit[1] for visit in run.visits if visit[0] == 1}) == BATCHES
