"""The Python blocks of the README, run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import batch_sampler_attn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
PAGES += ROOT.glob("benchmarks/records/*/*.md")
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
        "epochs": 5,
        "dataset": dataset,
        "loader": DataLoader(dataset, 16),
        "model": model,
        "train_on": train_on,
        "train_step": lambda x, y: train_on(nn.functional.cross_entropy(model(x), y)),
    }


def test_the_blocks_are_found():
    assert len(BLOCKS) == 3


def test_it_is_short_opens_with_the_two_commands_and_has_one_picture():
    assert len(README.splitlines()) <= 130
    first, second = re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert "examples/quickstart.py" in first
    assert "-m pytest" in second
    assert README.count("![") == 1


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {batch_sampler_attn.__version__}\n" in citation


def test_every_file_that_it_leads_to_is_there():
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if ":" not in target]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_no_page_shows_a_backtick_as_it_is():
    assert len(PAGES) > 30
    assert [path.name for path in PAGES if r"\`" in path.read_text(encoding="utf-8")] == []


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # forked workers, Python 3.12
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # four workers on fewer cores
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:50])
def test_a_block_runs_as_it_stands(block, context):
    exec(compile(block, "README.md", "exec"), context)
