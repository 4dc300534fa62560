"""The recipes of docs/guides/recipes.md, word for word: bit-equal to a loop by hand, also where they resume."""

import copy
import json
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from batch_sampler_attn import SampleAttention
from tests.distributed.threads import on_threads

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


def by_hand(rates=None, step=None):
    """The same training: no loader, no trainer, and the weighted mean written out.

    Args:
        rates: Of each update, for ``step``; None for PyTorch's one-cycle.
        step: Of the model, a loss and a rate, in place of PyTorch's SGD.
    """
    inputs, labels = make_data()
    attention, model = SampleAttention(512, 32, epochs=4), nn.Linear(10, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=64)
    made, used = [], []
    for _ in range(4):
        for indices in attention.attend():
            losses = nn.functional.cross_entropy(model(inputs[indices]), labels[indices], reduction="none")
            mean = (losses * torch.tensor(attention.report(losses))).mean()
            made.append((indices, losses.tolist(), mean.item()))
            if step is not None:
                step(model, mean, len(used))
                used.append(len(used))
                continue
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            schedule.step()
    assert (len(made), sum(attention.doses["pruned"]) > 100) == (64, True)
    return made, used, model


def is_same(model, other):
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


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
    assert is_same(model_of(resumed[2]), model)
    assert resumed[2]["attention"].last_summary.epoch == 3


def test_fastai_and_its_one_cycle(tmp_path, monkeypatch):
    pytest.importorskip("fastai")
    monkeypatch.chdir(tmp_path)
    made, _, names = run("fastai", monkeypatch)
    from fastai.callback.schedule import combined_cos
    from fastai.optimizer import Adam

    learner, optimizers, rates = names["learner"], [], []
    rate_at = combined_cos(0.25, 0.1 / 25, 0.1, 0.1 / 1e5)
    momentum_at = combined_cos(0.25, 0.95, 0.85, 0.95)

    def step(model, mean, update):
        if not optimizers:
            optimizers.append(Adam(list(model.parameters()), lr=0.1))
            optimizers[0].state[model.bias]["do_wd"] = False
        done = update // 16 / 4
        for _ in range(update % 16):  # added up as fastai does
            done += 1 / 64
        rates.append(rate_at(done))
        optimizers[0].set_hypers(lr=rates[-1], mom=momentum_at(done))
        mean.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()

    expected, _, model = by_hand(step=step)
    assert made == expected
    assert learner.recorder.lrs == rates
    assert is_same(learner.model, model)


def test_ray_train_on_two_workers_one_of_which_fails_in_mid_epoch(tmp_path, monkeypatch):
    pytest.importorskip("ray.train.torch")
    import ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # The workers are processes of Ray's, so what they make is noted in files.
    monkeypatch.setattr("ray.train.torch.TorchTrainer", partial(noted_trainer, ray.train.torch.TorchTrainer, tmp_path))
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        run("Ray Train", monkeypatch)
    finally:
        ray.shutdown()
    inputs, labels = make_data()
    torch.manual_seed(0)
    for rank, expected in enumerate(on_threads(2, partial(rank_by_hand, inputs, labels, nn.Linear(10, 2)))):
        made = [tuple(json.loads(line)) for line in Path(tmp_path, f"{rank}.jsonl").read_text().splitlines()]
        # Saved last at the tenth update of the second epoch; an epoch has 16.
        assert made == [*expected[:KILLED_AT], *expected[26:]]


def noted_trainer(trainer, folder, train_loop, **options):
    """Ray's trainer of the loop, with its updates noted, and killed once."""

    def loop():
        import ray.train

        rank = ray.train.get_context().get_world_rank()
        file, is_first = Path(folder, f"{rank}.jsonl"), ray.train.get_checkpoint() is None
        made, weighted_mean = [], SampleAttention.weighted_mean

        def noting(attention, losses):
            if is_first and len(made) == KILLED_AT:
                raise RuntimeError("killed")
            made.append((attention.indices, losses.tolist()))
            with file.open("a") as lines:
                lines.write(json.dumps(made[-1]) + "\n")
            return weighted_mean(attention, losses)

        SampleAttention.weighted_mean = noting
        train_loop()

    return trainer(loop, **options)


def rank_by_hand(inputs, labels, model, rank, transport):
    """The updates of one of two ranks, whose gradients are averaged."""
    model = copy.deepcopy(model)
    attention = SampleAttention(512, 16, epochs=4, rank=rank, world_size=2, ranks=transport)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=64)
    made = []
    for _ in range(4):
        for indices in attention.attend():
            losses = nn.functional.cross_entropy(model(inputs[indices]), labels[indices], reduction="none")
            made.append((indices, losses.tolist()))
            optimizer.zero_grad()
            (losses * torch.tensor(attention.report(losses))).mean().backward()
            for parameter in model.parameters():
                parameter.grad = torch.stack([grad / 2 for grad in transport.gather(parameter.grad)]).sum(0)
            optimizer.step()
            schedule.step()
    return made
