"""What is checked of trainings that were made in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.trainers.forks import RANKS


def make(module, folder):
    """Run a module of trainings, which saves them into the folder."""
    command = [sys.executable, "-m", f"tests.trainers.{module}", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=False)


def check_tail(whole, resumed, where):
    """That a run which went on at an epoch, window and visit is the tail of the whole one."""
    tail = len(resumed.visits)
    assert 0 < tail < len(whole.visits)
    assert resumed.visits == whole.visits[-tail:]
    assert resumed.visits[0][:3] == where
    assert resumed.rates == whole.rates[-tail:]
    assert resumed.threshold == whole.threshold
    assert resumed.epochs == whole.epochs[-len(resumed.epochs) :]
    assert torch.equal(resumed.weights, whole.weights)


def check_ranks(folder, results, expected, rtol, atol):
    """That all ranks did the same, and what one process does on their joined batches."""
    ranks = [load(folder, f"{results}-rank{rank}") for rank in range(RANKS)]
    assert all(rank == ranks[0] for rank in ranks)
    assert [visit[:3] + visit[4:] for visit in ranks[0].visits] == [visit[:3] + visit[4:] for visit in expected.visits]
    losses = [torch.tensor([visit[3] for visit in run.visits]) for run in (ranks[0], expected)]
    torch.testing.assert_close(*losses, rtol=rtol, atol=0)
    torch.testing.assert_close(torch.tensor(ranks[0].rates), torch.tensor(expected.rates), rtol=rtol, atol=0)
    torch.testing.assert_close(ranks[0].weights, expected.weights, rtol=rtol, atol=atol)
    assert expected.repeats > 1
