"""Attention to samples in Lightning is that of a plain loop, bit for bit, or refused with words."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader

from batch_sampler_attn.errors import LossError, ProtocolError, StateError
from batch_sampler_attn.trainers.lightning import BatchAttention, SampleAttentionCallback
from tests.trainers import in_processes
from tests.trainers.forks import RANKS
from tests.trainers.lightning_runs import MARKS, make_trainer
from tests.trainers.lightning_samples import (
    UPDATES,
    Case,
    Rows,
    by_hand,
    by_lightning,
    make_attention,
    make_loader,
    module_class,
)

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # forked workers
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
]
Module = module_class()
BOTH = {"k": 1.2, "max_visits": 3}
CASES = {
    "prunes": Case(),
    "prunes, unweighted": Case({"weighted": False}),
    "pools": Case({"k": 1.2, "prune_probability": 0.0}),
    "both, plain at the end": Case({**BOTH, "epochs": 4, "final_full_share": 0.3}, clip=0.5),
    "its own epochs": Case({**BOTH, "updates": 5}),
    "workers": Case(BOTH, workers=2),
    "accumulation": Case(BOTH, accumulation=2),
    "accumulation and workers": Case({"weighted": False}, workers=2, accumulation=3),
    "bfloat16": Case(BOTH, precision="bf16-mixed"),
    "scaler": Case(BOTH, precision="scaler", accumulation=2, clip=0.5),
    "manual": Case(BOTH, is_manual=True),
    "evaluations in mid-epoch": Case(BOTH, trainer={"val_check_interval": 3, "num_sanity_val_steps": 2}),
    "loaded again": Case(BOTH, trainer={"reload_dataloaders_every_n_epochs": 1}),
    "the other package": Case(BOTH, package="pytorch_lightning", accumulation=2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_training_is_the_loop_by_hand(name):
    case = CASES[name]
    run, attention, trainer = by_lightning(case)
    expected, by_loop = by_hand(case)
    assert run == expected
    assert attention.doses == by_loop.doses
    assert (sum(by_loop.doses["pruned"]) > 0) == (case.options.get("prune_probability", 0.5) > 0)
    assert (sum(by_loop.doses["pooled"]) > 0) == ("k" in case.options)
    logged = {key: trainer.callback_metrics[f"sample_attention/{key}"] for key in ("pruned", "extra_updates")}
    summary = by_loop.last_summary
    assert logged == {"pruned": summary.pruned, "extra_updates": summary.extra_updates}


# Processes


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    return in_processes.make("lightning_sample_processes", tmp_path_factory.mktemp("trainings"))


def check_tail(whole, resumed):
    assert 0 < len(resumed.visits) < len(whole.visits)
    assert resumed.visits == whole.visits[-len(resumed.visits) :]
    assert resumed.rates == whole.rates[-len(resumed.rates) :]
    assert torch.equal(resumed.weights, whole.weights)


@pytest.mark.parametrize(("name", "checkpoints"), [("batches", 10), ("windows", 5)])
def test_a_killed_training_resumes_exactly_from_each_checkpoint(trainings, name, checkpoints):
    whole, resumed = in_processes.load(trainings, name), list((trainings / name).glob("*.pt"))
    assert len(resumed) == checkpoints
    for file in resumed:
        check_tail(whole, torch.load(file, weights_only=False))


@pytest.mark.parametrize("rank", range(RANKS))
def test_two_ranks_are_two_ranks_of_the_loop_by_hand_and_resume_exactly(trainings, rank):
    by_loop = in_processes.load(trainings, f"hand-rank{rank}")
    assert in_processes.load(trainings, f"whole-rank{rank}") == by_loop
    for step in (3, 4):
        check_tail(by_loop, in_processes.load(trainings, f"{step}-rank{rank}"))


# What is refused


def fit(attention, module_type=Module, ckpt_path=None, loader=None, **options):
    callbacks = [SampleAttentionCallback(attention), *options.pop("callbacks", [])]
    trainer, module = make_trainer(**{"max_epochs": 2, **options}, callbacks=callbacks), module_type(attention)
    loader = attention.attend(make_loader(attention)) if loader is None else loader
    trainer.fit(module, loader, DataLoader(Rows(), 16), ckpt_path=ckpt_path)
    return trainer, module


def mean(module, batch):
    return nn.functional.cross_entropy(module.network(batch[0]), batch[1])


class Reduced(Module):
    def training_step(self, batch, batch_idx):
        return self.attention.weighted_mean(mean(self, batch))


class Twice(Module):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        return super().training_step(batch, batch_idx)


class Never(Module):
    def training_step(self, batch, batch_idx):
        return mean(self, batch)


class NotTheLast(Module):
    def training_step(self, batch, batch_idx):
        return mean(self, batch) if batch_idx == UPDATES - 1 else super().training_step(batch, batch_idx)


class Evaluating(Module):
    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)


class SkippingTheRest(Module):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class Refined(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Iterating(Module):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


def beside(batches, mode):
    def loader(attention):
        other = DataLoader(range(batches))
        return CombinedLoader({"own": attention.attend(make_loader(attention)), "other": other}, mode)

    return loader


def of_another(_):
    other = make_attention()
    return other.attend(make_loader(other))


NO_BATCH = "was used with no current batch of attention.attend"
NOT_REPORTED = "the next batch was requested before"
NOT_ITS_OWN = "Give it attention.attend"
REFUSALS = {
    # a module, a loader, options of the trainer, what the message says, and the losses that were reported
    "plain loader": (Module, lambda _: DataLoader(Rows(), 8), {}, NO_BATCH, 0),
    "not attended": (Module, make_loader, {}, NO_BATCH, 0),
    "of another attention": (Module, of_another, {}, NO_BATCH, 0),
    "no losses of a plain loader": (Never, lambda _: DataLoader(Rows(), 8), {}, NOT_ITS_OWN, 0),
    "longer loader beside": (Module, beside(13, "max_size_cycle"), {}, "at batch 0 of 13, and .* at 0 of 7", 0),
    "shorter loader beside": (Module, beside(3, "min_size"), {}, "at batch 0 of 3, and", 0),
    "some batches": (Module, None, {"limit_train_batches": 3}, "updates=n in place of limit_train_batches=n", 0),
    "the same batches": (Module, None, {"overfit_batches": 2}, "at batch 0 of 2, and", 0),
    "reduced": (Reduced, None, {}, r'got losses of shape \(\); .* with reduction="none"', 0),
    "twice": (Twice, None, {}, NO_BATCH, 1),
    "never": (Never, None, {}, NOT_REPORTED, 0),
    "not the last": (NotTheLast, None, {}, "at batch 0 of 7, and SampleAttention at 6 of 7", 6),
    "sanity check": (Evaluating, None, {}, NO_BATCH, 0),
    "evaluation in mid-epoch": (Evaluating, None, {"num_sanity_val_steps": 0, "val_check_interval": 2}, NO_BATCH, 2),
    "rest of an epoch skipped": (SkippingTheRest, None, {}, "at batch 0 of 7, and SampleAttention at 3 of 7", 3),
    "LBFGS": (Refined, None, {}, NO_BATCH, 1),
    "dataloader_iter": (Iterating, None, {}, NOT_ITS_OWN, 1),
    "repeats beside": (Module, None, {"callbacks": [BatchAttention()]}, "holds AttendedSamples", 0),
}


@pytest.mark.filterwarnings("ignore:(You are using|Found) (the )?`dataloader_iter`")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_exact_is_refused(name):
    module_type, loader, options, words, reported = REFUSALS[name]
    attention = make_attention()
    with pytest.raises((ProtocolError, LossError), match=words):
        fit(attention, module_type, loader=loader and loader(attention), **options)
    assert (attention.epoch, attention.updates) == (0, reported)


def test_data_that_grew_are_refused_as_the_next_epoch_begins():
    rows, attention = Rows(), make_attention()

    class Growing(Callback):
        def on_train_epoch_end(self, *_):
            rows.inputs = torch.cat([rows.inputs, rows.inputs[:1]])

    loader = attention.attend(make_loader(attention, data=rows))
    with pytest.raises(ProtocolError, match="the dataset has 53 samples, not 52"):
        fit(attention, loader=loader, callbacks=[Growing()])
    assert (attention.epoch, attention.updates) == (1, 0)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_an_epoch_cut_short_resumes_from_its_checkpoint_alone(tmp_path):
    attention = make_attention()
    steps = ModelCheckpoint(tmp_path, "checkpoint", every_n_train_steps=10, enable_version_counter=False)
    fit(attention, max_steps=10, callbacks=[steps], enable_checkpointing=True)
    checkpoint = tmp_path / "checkpoint.ckpt"
    with pytest.raises(ProtocolError, match="at batch 0 of 7, and SampleAttention at 3 of 7"):
        fit(attention)
    # Written without the callback, it says nothing of the attention.
    states = torch.load(checkpoint, weights_only=True)
    saved = states["callbacks"].pop("SampleAttentionCallback")
    torch.save(states, tmp_path / "without")
    with pytest.raises(ProtocolError, match="at batch 3 of 7, and SampleAttention at 0 of 7"):
        fit(make_attention(), ckpt_path=tmp_path / "without")
    states["callbacks"]["SampleAttentionCallback"] = {**saved, 1: saved[0]}
    torch.save(states, tmp_path / "two ranks")
    with pytest.raises(StateError, match="has 2 ranks, here are 1; use as many"):
        fit(make_attention(), ckpt_path=tmp_path / "two ranks")
    resumed = make_attention()
    trainer, module = fit(resumed, ckpt_path=checkpoint)
    assert (trainer.global_step, resumed.epoch, len(module.run.visits)) == (2 * UPDATES, 2, 4)


def test_a_checkpoint_that_is_evaluated_changes_nothing(tmp_path):
    attention = make_attention()
    trainer, module = fit(attention, max_steps=10)
    trainer.save_checkpoint(tmp_path / "checkpoint")
    other = make_attention(seed=9)
    make_trainer(callbacks=[SampleAttentionCallback(other)]).validate(
        module, DataLoader(Rows(), 16), ckpt_path=tmp_path / "checkpoint"
    )
    assert other.state_dict() == make_attention(seed=9).state_dict()


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"callbacks": [LearningRateFinder(num_training_steps=10)]}])
def test_trials_train_as_they_do_without_attention(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class WithRate(Module):
        lr = 0.01

    attention = make_attention()
    _, module = fit(attention, WithRate, **options)
    if "callbacks" in options:
        # The finder puts all back to where it was.
        expected = make_attention()
        _, plain = fit(expected, WithRate)
        assert module.run.visits[10:][0][0] == plain.run.visits[0][0]
        assert (attention.epoch, attention.updates, len(module.run.visits)) == (2, 0, 10 + 2 * UPDATES)
    else:
        assert (attention.epoch, attention.updates) == (0, 2)


def test_two_attentions_in_a_trainer_are_refused():
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        make_trainer(callbacks=[SampleAttentionCallback(make_attention()) for _ in range(2)])
