"""Attention to samples in Lightning: what is refused, and what changes nothing."""

from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader

from batch_sampler_attn.errors import LossError, ProtocolError, StateError
from tests.trainers.cases import BATCHES, MARKS, Case, Points, cross_entropy
from tests.trainers.sample_loop import make_attention, make_sample_loader

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")]


def test_an_epoch_is_logged(lightning, tmp_path):
    run = lightning.train_samples(Case(options={"k": 1.1, "max_visits": 3}), tmp_path)
    assert run.logs == {name: run.last[name] for name in ("pruned", "extra_updates")}


def fit(lightning, attention, loader=None, ckpt_path=None, methods=None, callbacks=(), **options):
    module = type("Mine", (lightning.SampleModule,), methods or {})(attention)
    callbacks = [lightning.SampleAttentionCallback(attention), *callbacks]
    trainer = lightning.make_trainer(**{"max_epochs": 2, **options}, callbacks=callbacks)
    loader = attention.attend(make_sample_loader(attention, Case())) if loader is None else loader
    trainer.fit(module, loader, DataLoader(Points(), 16), ckpt_path=ckpt_path)
    return trainer


def plain(module):
    """The class that has had methods added to it."""
    return type(module).__base__


def twice(self, batch, batch_idx):
    plain(self).training_step(self, batch, batch_idx)
    return plain(self).training_step(self, batch, batch_idx)


def unreported(self, batch, batch_idx):
    return cross_entropy(self.network, batch)


def not_the_last(self, batch, batch_idx):
    return (unreported if batch_idx == BATCHES - 1 else plain(self).training_step)(self, batch, batch_idx)


def iterating(self, dataloader_iter):
    return plain(self).training_step(self, next(dataloader_iter)[0], 0)


def evaluating(self, batch, batch_idx):
    self.training_step(batch, batch_idx)


def skipping_the_rest(self, batch, batch_idx):
    return -1 if batch_idx == 3 else None


NO_BATCH = "was used with no current batch of attention.attend"
NOT_ITS_OWN = "Give it attention.attend"
REFUSALS = {
    # a module's methods, options of the trainer, what the message says, and the losses that were reported
    "some batches": ({}, {"limit_train_batches": 3}, "updates=n in place of limit_train_batches=n", 0),
    "twice": ({"training_step": twice}, {}, NO_BATCH, 1),
    "not the last": ({"training_step": not_the_last}, {}, "at batch 0 of 7, and SampleAttention at 6 of 7", 6),
    "evaluation": ({"validation_step": evaluating}, {"num_sanity_val_steps": 0, "val_check_interval": 2}, NO_BATCH, 2),
    "rest skipped": ({"on_train_batch_start": skipping_the_rest}, {}, "at batch 0 of 7, and .* at 3 of 7", 3),
    "dataloader_iter": ({"training_step": iterating}, {}, NOT_ITS_OWN, 1),
}


@pytest.mark.filterwarnings("ignore:(You are using|Found) (the )?`dataloader_iter`")
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_exact_is_refused(lightning, name):
    methods, options, words, reported = REFUSALS[name]
    attention = make_attention()
    with pytest.raises((ProtocolError, LossError), match=words):
        fit(lightning, attention, methods=methods, **options)
    assert (attention.epoch, attention.updates) == (0, reported)


def test_other_loaders_and_another_attention_are_refused(lightning):
    combined = import_module("lightning.pytorch.utilities").CombinedLoader
    attention = make_attention()
    own = attention.attend(make_sample_loader(attention, Case()))
    with pytest.raises(ProtocolError, match=NOT_ITS_OWN):
        fit(lightning, attention, DataLoader(Points(), 8), methods={"training_step": unreported})
    for batches, mode in ((13, "max_size_cycle"), (3, "min_size")):
        with pytest.raises(ProtocolError, match=f"at batch 0 of {batches}, and SampleAttention at 0 of 7"):
            fit(lightning, attention, combined({"own": own, "other": DataLoader(range(batches))}, mode))
    with pytest.raises(ProtocolError, match="holds AttendedSamples"):
        fit(lightning, attention, callbacks=[lightning.BatchAttention()])
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        fit(lightning, attention, callbacks=[lightning.SampleAttentionCallback(attention)])
    assert (attention.epoch, attention.updates) == (0, 0)


def test_an_epoch_cut_short_resumes_from_its_checkpoint_alone(lightning, tmp_path):
    attention = make_attention()
    callbacks = [lightning.saving(tmp_path, steps=10)]
    fit(lightning, attention, max_steps=10, callbacks=callbacks, enable_checkpointing=True)
    checkpoint = lightning.checkpoint(tmp_path, 10)
    with pytest.raises(ProtocolError, match="at batch 0 of 7, and SampleAttention at 3 of 7"):
        fit(lightning, attention)
    # Written without the callback, it says nothing of the attention.
    states = torch.load(checkpoint, weights_only=True)
    saved = states["callbacks"].pop("SampleAttentionCallback")
    torch.save(states, tmp_path / "without")
    with pytest.raises(ProtocolError, match="at batch 3 of 7, and SampleAttention at 0 of 7"):
        fit(lightning, make_attention(), ckpt_path=tmp_path / "without")
    states["callbacks"]["SampleAttentionCallback"] = {**saved, 1: saved[0]}
    torch.save(states, tmp_path / "two ranks")
    with pytest.raises(StateError, match="is from 2 ranks, not 1; use as many"):
        fit(lightning, make_attention(), ckpt_path=tmp_path / "two ranks")
    # Loaded for an evaluation, it changes nothing.
    other = make_attention(seed=9)
    trainer = lightning.make_trainer(callbacks=[lightning.SampleAttentionCallback(other)])
    trainer.validate(lightning.SampleModule(other), DataLoader(Points(), 16), ckpt_path=checkpoint, verbose=False)
    assert other.state_dict() == make_attention(seed=9).state_dict()
    resumed = make_attention()
    trainer = fit(lightning, resumed, ckpt_path=checkpoint)
    assert (trainer.global_step, resumed.epoch, len(resumed.batches)) == (2 * BATCHES, 2, 4)


def test_trials_train_as_they_do_without_attention(lightning, tmp_path, monkeypatch):
    attention = make_attention()
    fit(lightning, attention, fast_dev_run=2)
    assert (attention.epoch, attention.updates) == (0, 2)
    # The finder of a learning rate puts all back to where it was.
    monkeypatch.chdir(tmp_path)
    finder = import_module("lightning.pytorch.callbacks").LearningRateFinder(num_training_steps=10)
    attention, expected = make_attention(), make_attention()
    fit(lightning, attention, methods={"lr": 0.01}, callbacks=[finder])
    fit(lightning, expected)
    assert attention.batches[10][:2] == expected.batches[0][:2]
    assert (attention.epoch, attention.updates, len(attention.batches)) == (2, 0, 10 + 2 * BATCHES)
