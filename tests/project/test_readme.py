"""The Python blocks of the README and of its pages, run as they stand."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision

ROOT = Path(__file__).parents[2]
PAGES = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/ranks.md"))
BLOCKS = [
    textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```$", PAGES, re.DOTALL | re.MULTILINE)
]


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

    def train_step(*batch):
        x, y = batch if len(batch) == 2 else batch[0]
        return train_on(nn.functional.cross_entropy(model(x), y))

    schedule = BatchAttentionSchedule()
    return {
        "torch": torch,
        "nn": nn,
        "tqdm": tqdm,
        "DataLoader": DataLoader,
        "RandomSampler": RandomSampler,
        "SummaryWriter": SummaryWriter,
        "BatchAttentionSampler": BatchAttentionSampler,
        "BatchAttentionSchedule": BatchAttentionSchedule,
        "Decision": Decision,
        "epochs": 2,
        "images": images,
        "labels": labels,
        "dataset": dataset,
        "loader": DataLoader(dataset, 16),
        "model": model,
        "optimizer": optimizer,
        "train_on": train_on,
        "train_step": train_step,
        "schedule": schedule,
        "loss": torch.tensor(1.0),
        "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batches: 1 / (1 + batches)),
        "validate": lambda: None,
        "rank": 0,
        "ranks": 1,
    }


def test_the_blocks_are_found():
    assert len(BLOCKS) >= 8


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # forked workers, Python 3.12
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # four workers on fewer cores
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:50])
def test_a_block_runs_as_it_stands(block, context, tmp_path):
    if "sampler.state_dict()" in block:
        context["schedule"] = BatchAttentionSchedule()
        sampler = BatchAttentionSampler(RandomSampler(context["dataset"]), 16, schedule=context["schedule"])
        context["sampler"], context["loader"] = sampler, DataLoader(context["dataset"], batch_sampler=sampler)
        block = block.replace("        ...", "        schedule.decide(train_step(*batch))")
    if "loader.schedule.batch_index" in block:
        context["loader"] = context["schedule"].attend(context["loader"])
    elif "loader.schedule.decide" in block:
        block = block.replace("...\nloader", "for batch in loader:\n    loader")
    if "read_visits" in block:
        block = block.replace(
            "...\n", "schedule.decide(1.0)\nschedule.state_dict()\nschedule.epochs.recorders[0].close()\n"
        )
    is_distributed = "MeanOverRanks" in block
    if is_distributed:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        exec(compile(block, "README.md", "exec"), context)
    finally:
        if is_distributed:
            torch.distributed.destroy_process_group()
