"""Trainings of a Trainer that were killed and go on in another process, or run on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batch_sampler_attn.errors import BatchAttentionWarning
from tests.trainers.transformers_processes import CASE, KILLS, RANKS, WINDOWS, in_one_process
from tests.trainers.transformers_runs import BATCHES, EPOCHS, MARKS, Case, by_hand, by_trainer

pytestmark = MARKS
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.trainers.transformers_processes", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=False)


def test_the_whole_run_is_that_of_the_plain_loop(folder, tmp_path):
    run, steps = load(folder, "whole")
    assert run == by_hand(CASE, tmp_path)
    assert steps == EPOCHS * WINDOWS


@pytest.mark.parametrize("kill", KILLS)
def test_a_run_that_was_killed_and_resumed_has_the_same_tail(folder, kill):
    whole, steps = load(folder, "whole")
    resumed, resumed_steps = load(folder, kill)
    tail = len(resumed.visits)
    assert 0 < tail < len(whole.visits)
    assert resumed.visits == whole.visits[-tail:]
    assert resumed.rates == whole.rates[-tail:]
    assert resumed.threshold == whole.threshold
    assert resumed.epochs == whole.epochs[-len(resumed.epochs) :]
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed_steps == steps
    # Where it went on: in mid-epoch, at an epoch's begin, and at a window that was being repeated.
    epoch, window, visit = resumed.visits[0][:3]
    assert (epoch, window, visit) == {"mid-epoch": (1, 2, 1), "last-step": (2, 0, 1), "repeats": (2, 1, 1)}[kill]


@pytest.mark.parametrize(("model", "accumulation"), [("classifier", 2), ("gpt2", 1)])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, model, accumulation, tmp_path):
    ranks = [load(folder, f"rank{rank}-{model}-{accumulation}") for rank in range(RANKS)]
    expected = in_one_process(model, accumulation, tmp_path)
    assert all(rank == ranks[0] for rank in ranks)
    assert [visit[:3] + visit[4:] for visit in ranks[0].visits] == [visit[:3] + visit[4:] for visit in expected.visits]
    losses = [torch.tensor([visit[3] for visit in run.visits]) for run in (ranks[0], expected)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(ranks[0].weights, expected.weights, rtol=1e-6, atol=1e-9)
    assert expected.repeats > 1


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
