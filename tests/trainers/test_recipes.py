"""The recipes of docs/guides/recipes.md, word for word: bit-equal to a loop by hand, also where they resume."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from batch_sampler_attn import SampleAttention

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "recipes.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
KILLED_AT = 37


class KilledError(Exception):
    pass


def code_of(section):
    """Its Python block, after the one that all sections share."""
    [text] = [text for text in SECTIONS if text.startswith(f"{section}\n")]
    blocks = [re.search(r"```python\n(.*?)```", part, re.DOTALL)[1] for part in (SECTIONS[0], text)]
    return compile("\n".join(blocks), str(PAGE), "exec")


def run(section, monkeypatch, kill_at=None):
    """Run a recipe; the updates that it made (indices, losses, mean, learning rate), and its names."""
    made, weighted_mean = [], SampleAttention.weighted_mean

    def noting(attention, losses):
        if len(made) == kill_at:
            raise KilledError
        indices = attention.indices
        made.append((indices, losses.tolist(), weighted_mean(attention, losses)))
        return made[-1][2]

    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    names = {"__name__": "__main__"}
    with monkeypatch.context() as patched, warnings.catch_warnings():
        patched.setattr(SampleAttention, "weighted_mean", noting)
        warnings.simplefilter("ignore")  # of packages that the recipes are for
        try:
            exec(code_of(section), names)
        except KilledError:
            pass
        finally:
            hook.remove()
    return [(*update[:2], update[2].item()) for update in made], rates[: len(made)], names


def make_data():
    """The page's; the next draw of the generator is the first of the weights."""
    torch.manual_seed(0)
    inputs = torch.randn(512, 10)
    return inputs, (inputs.sum(dim=1) > 0).long()


def by_hand():
    """The same training: no loader, no trainer, and the weighted mean written out."""
    inputs, labels = make_data()
    attention, model = SampleAttention(512, 32, epochs=4), nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=64)
    made, rates = [], []
    for _ in range(4):
        for indices in attention.attend():
            losses = nn.functional.cross_entropy(model(inputs[indices]), labels[indices], reduction="none")
            mean = (losses * torch.tensor(attention.report(losses))).mean()
            made.append((indices, losses.tolist(), mean.item()))
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            schedule.step()
    assert (len(made), sum(attention.doses["pruned"]) > 100) == (64, True)
    return made, rates, model


@pytest.mark.parametrize(
    ("section", "package", "resumes_at", "model_of"),
    [
        ("Ignite", "ignite", 30, lambda names: names["model"]),
        ("skorch", "skorch", KILLED_AT, lambda names: names["net"].module_),
    ],
)
def test_a_recipe_is_the_loop_by_hand_also_killed_in_mid_epoch(
    section, package, resumes_at, model_of, tmp_path, monkeypatch
):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    made, rates, model = by_hand()
    begun = run(section, monkeypatch, kill_at=KILLED_AT)
    assert begun[:2] == (made[:KILLED_AT], rates[:KILLED_AT])
    resumed = run(section, monkeypatch)
    assert resumed[:2] == (made[resumes_at:], rates[resumes_at:])
    assert all(map(torch.equal, model_of(resumed[2]).state_dict().values(), model.state_dict().values()))
    assert resumed[2]["attention"].last_summary.epoch == 3
