"""The programs of docs/guides/your-trainer.md, word for word: bit-equal to a loop by hand, also killed and resumed."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, SampleAttention
from batch_sampler_attn.distributed import MeanOverRanks
from tests.trainers.ranks import on_ranks

PAGE = Path(__file__).parents[2] / "docs/guides/your-trainer.md"
SECTIONS = re.split(r"^##+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
EPOCHS, UPDATES, SAVED, KILLED_AT = 4, 64, 40, 45
pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that the programs are for


class KilledError(Exception): ...


def note(position, *update):
    """Add an update to those of this rank, or kill the run, unless it is the second."""
    file = Path(os.environ["NOTES"], os.environ.get("RANK", "0"))
    updates = json.loads(file.read_text()) if file.exists() else []
    if position == KILLED_AT and updates == sorted(updates):
        raise KilledError(position)
    file.write_text(json.dumps([*updates, [position, *update]]))


class NotedAttention(SampleAttention):
    def weighted_mean(self, losses):
        note(self.epoch * len(self) + self.updates, self.indices, losses.tolist())
        return super().weighted_mean(losses)


class NotedSchedule(BatchAttentionSchedule):
    def decide(self, loss, **options):
        note(self.epoch * 16 + self.batch_index, self.visits, float(loss))
        return super().decide(loss, **options)


def run(rank, section):
    """Run a program; the weights at its end, or None where it was killed."""
    [text] = [text for text in SECTIONS if text.startswith(f"{section}\n")]
    common, program = (re.search(r"```python\n(.*?)```", part, re.DOTALL)[1] for part in (SECTIONS[0], text))
    names = {"__name__": "__main__"}
    exec(common, names)
    names |= {"SampleAttention": NotedAttention, "BatchAttentionSchedule": NotedSchedule}
    try:
        exec(program, names)
    except KilledError:
        return None
    if "result" not in names:
        return names["model"].state_dict()
    with names["result"].checkpoint.as_directory() as folder:  # of Ray
        return torch.load(f"{folder}/0.pt")[0]


def make_page_training():
    torch.manual_seed(0)
    inputs = torch.randn(512, 10)
    labels = (inputs.sum(dim=1) > 0).long()
    labels[:16] = 1 - labels[:16]
    torch.manual_seed(0)
    model = nn.Linear(10, 2)
    return inputs, labels, model, torch.optim.SGD(model.parameters(), lr=0.1)


def repeats_by_hand(rank, ranks):
    inputs, labels, model, optimizer = make_page_training()
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    schedule, updates = BatchAttentionSchedule(k=1.0, budget=0.2), []
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        for x, y in schedule.attend(loader):
            loss = nn.functional.cross_entropy(model(x), y)
            updates.append([schedule.epoch * 16 + schedule.batch_index, schedule.visits, loss.item()])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.decide(loss)
    assert len(updates) > UPDATES
    return updates, model.state_dict()


def samples_by_hand(rank, ranks, rates=None):
    """No loader and no trainer; the weighted mean of the losses, and the ranks' mean gradient, written out."""
    inputs, labels, model, optimizer = make_page_training()
    if ranks > 1:
        distributed.init_process_group("gloo")
    attention = SampleAttention(512, 32 // ranks, epochs=EPOCHS, rank=rank, world_size=ranks, ranks=MeanOverRanks())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=UPDATES)
    updates = []
    for _ in range(EPOCHS):
        for indices in attention.attend():
            losses = nn.functional.cross_entropy(model(inputs[indices]), labels[indices], reduction="none")
            if rates:
                optimizer.param_groups[0].update(lr=rates[len(updates)], momentum=0.0)
            updates.append([len(updates), indices, losses.tolist()])
            optimizer.zero_grad()
            (losses * torch.tensor(attention.report(losses))).mean().backward()
            for weights in model.parameters() if ranks > 1 else ():
                distributed.all_reduce(weights.grad.div_(ranks))
            optimizer.step()
            schedule.step()
    assert sum(attention.doses["pruned"]) > 100 / ranks
    return updates, model.state_dict()


def fastai_by_hand(rank, ranks):
    from fastai.callback.schedule import combined_cos

    rate = combined_cos(0.25, 0.1 / 25, 0.1, 0.1 / 1e5)
    return samples_by_hand(rank, ranks, [rate(update / UPDATES) for update in range(UPDATES)])


@pytest.mark.parametrize(
    ("section", "package", "by_hand", "ranks", "resumes_at"),
    [
        ("Repeats of batches", "torch", repeats_by_hand, 1, SAVED),
        ("Ignite", "ignite", samples_by_hand, 1, SAVED),
        ("skorch", "skorch", samples_by_hand, 1, 0),
        ("fastai", "fastai", fastai_by_hand, 1, 0),
        ("Composer", "composer", samples_by_hand, 1, SAVED),
        ("DeepSpeed", "deepspeed", samples_by_hand, 2, SAVED),
        ("Ray Train", "ray", samples_by_hand, 2, SAVED),
    ],
)
def test_a_program_is_the_loop_by_hand(section, package, by_hand, ranks, resumes_at, tmp_path, monkeypatch):
    module = pytest.importorskip(package)
    if package == "deepspeed":  # which would compile this at its first start
        monkeypatch.setitem(module.ops.__compatible_ops__, "deepspeed_shm_comm", False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTES", str(tmp_path))
    expected = on_ranks(by_hand, ranks, folder=tmp_path) if ranks > 1 else [by_hand(0, 1)]
    weights = None
    while weights is None:
        weights = on_ranks(run, section, folder=tmp_path)[0] if package == "deepspeed" else run(0, section)
    for rank, (updates, expected_weights) in enumerate(expected):
        update_at = [position for position, *_ in updates].index
        noted = json.loads(Path(str(rank)).read_text())
        assert noted == updates[: update_at(KILLED_AT)] + updates[update_at(resumes_at) :]
        assert all(map(torch.equal, weights.values(), expected_weights.values()))
