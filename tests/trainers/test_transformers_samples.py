"""Attention to samples in transformers' Trainer: language models, evaluations, and what is refused."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from batch_sampler_attn.errors import LossError, ProtocolError, StateError
from tests.trainers.cases import BATCHES, MARKS, SAMPLES, Case
from tests.trainers.sample_loop import make_attention

pytestmark = MARKS


def test_an_evaluation_in_mid_epoch_changes_nothing(transformers, tmp_path):
    case = Case(model="gpt2", dropout=0.0, options={"k": 1.0})
    evaluations = {"eval_strategy": "steps", "eval_steps": 2}
    data = {"eval_dataset": transformers.make_dataset(case)}
    run = transformers.train_samples(case, tmp_path, options=data, **evaluations)
    assert run == transformers.samples_by_hand(case, tmp_path)
    losses = [entry["loss"] for entry in run.logs if "loss" in entry]
    assert losses == pytest.approx([batch[4] for batch in run.batches], rel=1e-5)
    assert sum("eval_loss" in entry for entry in run.logs) == len(losses) // 2
    # Of the epoch so far; the first has nothing to compare with, and the last is on all data.
    for name in ("pruned", "extra_updates"):
        counts = [entry[f"sample_attention/{name}"] for entry in run.logs if "loss" in entry]
        assert [max(counts[begin : begin + BATCHES]) > 0 for begin in (0, 14, 21)] == [False, True, False]


def repeating_step(self, model, inputs, *arguments):
    plain(self).training_step(self, model, dict(inputs), *arguments)
    return plain(self).training_step(self, model, inputs, *arguments)


def read_ahead(self, epoch_iterator, num_batches, device):
    return [next(epoch_iterator) for _ in range(num_batches)], None


def plain(trainer):
    """The class that the test has added methods to."""
    return next(base for base in type(trainer).__mro__ if base.__name__ == "MySampleTrainer")


REFUSALS = {
    # the trainer's methods, arguments, and options; and what the error says
    "batch size": ({}, {"per_device_train_batch_size": 4}, {}, r"batch_size=8 \(it is 4\)"),
    "order": ({}, {"train_sampling_strategy": "sequential"}, {}, "there is a SequentialSampler"),
    "smoothing": ({}, {"label_smoothing_factor": 0.1}, {}, r"label_smoothing_factor=0 \(it is 0.1\)"),
    "reduced": ({}, {}, {"compute_loss_func": None}, r"shape \(\).*reduction=\"none\""),
    "other data": ({}, {}, {"train_dataset": [{"inputs": torch.zeros(6)}] * 53}, "the dataset has 53 samples"),
    "repeats": ({"training_step": repeating_step}, {}, {}, "no current batch"),
    "reads ahead": ({"get_batch_samples": read_ahead}, {"gradient_accumulation_steps": 2}, {}, "before report"),
}


def make_trainer(transformers, folder, methods, arguments=None, options=None, base=None):
    trainer_class = type("Mine", (base or transformers.MySampleTrainer,), methods)
    options = {"compute_loss_func": transformers.sequence_losses, "attention": make_attention(), **(options or {})}
    return transformers.make_trainer(Case(), folder, trainer_class, arguments, **options)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_would_lose_or_mix_up_losses_is_refused(transformers, name, tmp_path):
    methods, arguments, options, words = REFUSALS[name]
    trainer = make_trainer(transformers, tmp_path, methods, arguments, options)
    with pytest.raises((ProtocolError, LossError), match=words):
        trainer.train()
    assert len(trainer.attention.batches) == (name == "repeats")


def test_an_order_of_the_user_s_and_several_gpus_are_refused(transformers, tmp_path):
    trainer = make_trainer(transformers, tmp_path, {})
    sampler = WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)
    loader = DataLoader(trainer.train_dataset, 8, sampler=sampler)
    weighted = type("Weighted", (transformers.Trainer,), {"get_train_dataloader": lambda self: loader})
    base = type("Base", (transformers.SampleAttentionMixin, weighted), {})
    with pytest.raises(ProtocolError, match="there is a WeightedRandomSampler"):
        make_trainer(transformers, tmp_path, {}, base=base).train()
    trainer.args._n_gpu = 2
    with pytest.raises(ProtocolError, match="DataParallel"):
        trainer.train()


def test_both_mixins_and_a_checkpoint_without_a_state_are_refused(transformers, tmp_path):
    mixins = transformers.BatchAttentionMixin, transformers.SampleAttentionMixin
    both = type("Both", (*mixins, transformers.Trainer), {})
    with pytest.raises(ProtocolError, match="leave one mixin out"):
        both(transformers.make_model(Case()), transformers.make_arguments(Case(), tmp_path), attention=make_attention())
    transformers.train_samples(Case(), tmp_path, saves=True, max_steps=1)
    folder = transformers.checkpoint(tmp_path, 1)
    assert json.loads((folder / "sample_attention_0.json").read_text())["options"]["rank"] == 0
    (folder / "sample_attention_0.json").unlink()
    with pytest.raises(StateError, match=r"has no sample_attention_0\.json"):
        transformers.train_samples(Case(), tmp_path, resume=folder)


def test_losses_are_means_over_tokens(transformers):
    sequence_losses = transformers.sequence_losses
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[1, :3], labels[2] = -100, -100
    for shift in (True, False):
        pairs = zip(logits[:, :-1], labels[:, 1:], strict=True) if shift else zip(logits, labels, strict=True)
        expected = [nn.functional.cross_entropy(*pair, ignore_index=-100).nan_to_num() for pair in pairs]
        assert torch.allclose(sequence_losses({"logits": logits}, labels, shift=shift), torch.stack(expected))
    assert sequence_losses(logits, labels)[2] == 0
