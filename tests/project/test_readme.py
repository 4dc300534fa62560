"""The Python blocks of the README, run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def context(tmp_path, monkeypatch):
    """What the text around the blocks says is there."""
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randn(64, 4), torch.randint(0, 2, (64,))
    dataset = TensorDataset(images, labels)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())

    def train_on(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return {
        "nn": nn,
        "DataLoader": DataLoader,
        "RandomSampler": RandomSampler,
        "epochs": 2,
        "dataset": dataset,
        "loader": DataLoader(dataset, 16),
        "model": model,
        "train_on": train_on,
        "train_step": lambda x, y: train_on(nn.functional.cross_entropy(model(x), y)),
    }


def test_the_blocks_are_found():
    assert len(BLOCKS) == 3


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # forked workers, Python 3.12
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # four workers on fewer cores
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:50])
def test_a_block_runs_as_it_stands(block, context):
    exec(compile(block, "README.md", "exec"), context)
