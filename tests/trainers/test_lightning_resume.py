"""Lightning trainings that were killed and go on in another process, or run on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.lightning_processes import KILLS, RANKS, WINDOWS, ResumableLoader, in_one_process
from tests.trainers.lightning_runs import EPOCHS, MARKS, loss_of, make_lr_scheduler, make_network, make_optimizer
from tests.trainers.plain_loop import plain_loop

pytestmark = MARKS
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "tests.trainers.lightning_processes", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return path


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=False)


def test_the_whole_run_is_that_of_the_plain_loop(folder):
    class Anew(ResumableLoader):
        def __iter__(self):
            yield from super().__iter__()
            self.epoch += 1

    run, steps = load(folder, "whole")
    network = make_network()
    optimizer = make_optimizer(network)
    torch.manual_seed(6)
    expected = plain_loop(
        network,
        lambda batch: loss_of(network, batch),
        optimizer,
        make_lr_scheduler(optimizer),
        Anew(),
        epochs=EPOCHS,
        accumulation=2,
    )
    assert run == expected
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
    assert (epoch, window, visit) == {"mid-epoch": (1, 2, 1), "last-step": (2, 0, 1), "repeats": (2, 2, 1)}[kill]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_train_as_one_process_does_on_their_joined_batches(folder, accumulation):
    ranks = [load(folder, f"rank{rank}-{accumulation}") for rank in range(RANKS)]
    expected = in_one_process(accumulation)
    assert all(rank == ranks[0] for rank in ranks)
    assert [visit[:3] + visit[4:] for visit in ranks[0].visits] == [visit[:3] + visit[4:] for visit in expected.visits]
    losses = [torch.tensor([visit[3] for visit in run.visits]) for run in (ranks[0], expected)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    torch.testing.assert_close(ranks[0].weights, expected.weights, rtol=1e-9, atol=1e-12)
    assert expected.repeats > 1
