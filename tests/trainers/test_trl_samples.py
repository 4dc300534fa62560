"""Attention to samples in TRL's trainers, or its refusal."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from batch_sampler_attn.errors import LossError, ProtocolError
from batch_sampler_attn.trainers.transformers import SampleAttentionMixin
from tests.trainers.sample_notes import finish
from tests.trainers.sample_runs import make_attention
from tests.trainers.transformers_runs import EPOCHS, MARKS, SAMPLES, Texts, make_model

# There is none of today's for Python 3.10.
trl = pytest.importorskip("trl")

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")]

SIZE = 2


class MySFTTrainer(SampleAttentionMixin, trl.SFTTrainer):
    pass


class MyDPOTrainer(SampleAttentionMixin, trl.DPOTrainer):
    pass


class PairLosses(trl.RewardTrainer):
    """As in the guide."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        chosen, rejected = outputs["logits"].squeeze(-1).chunk(2)
        losses = -nn.functional.logsigmoid(chosen - rejected)
        return (losses, outputs) if return_outputs else losses


class MyRewardTrainer(SampleAttentionMixin, PairLosses):
    pass


def texts():
    data = Texts()
    return Dataset.from_dict({"input_ids": data.tokens.tolist(), "labels": data.labels.tolist()})


def pairs():
    tokens = Texts().tokens.tolist()
    return Dataset.from_dict({"chosen_ids": tokens, "rejected_ids": tokens[1:] + tokens[:1]})


def preferences():
    rows = range(SAMPLES)
    words = {"prompt": 2, "chosen": 5, "rejected": 7}
    return Dataset.from_dict({name: [f"w{(row * by) % 22}" for row in rows] for name, by in words.items()})


def make_scorer():
    torch.manual_seed(5)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2ForSequenceClassification(GPT2Config(vocab_size=24, num_labels=1, pad_token_id=0, **sizes))


KINDS = {
    "SFT": (trl.SFTConfig, lambda: make_model("gpt2"), texts),
    "Reward": (trl.RewardConfig, make_scorer, pairs),
    "DPO": (trl.DPOConfig, lambda: make_model("gpt2"), preferences),
}


def make_trainer(trainer_class, kind, folder, arguments=None, **options):
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *(f"w{index}" for index in range(22))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )
    config, make, data = KINDS[kind]
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": SIZE,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.01,
        "max_length": 8,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        **(arguments or {}),
    }
    return trainer_class(
        model=make(), args=config(**given), train_dataset=data(), processing_class=tokenizer, **options
    )


def by_hand(kind, folder, losses_of):
    plain = make_trainer({"SFT": trl.SFTTrainer, "Reward": trl.RewardTrainer}[kind], kind, folder)
    given, attention, rates = plain.get_train_dataloader(), make_attention(), []
    loader = DataLoader(given.dataset, batch_sampler=attention, collate_fn=given.collate_fn)
    length = len(attention)
    plain.create_optimizer_and_scheduler(EPOCHS * -(-length // SIZE))
    model, optimizer = plain.model.train(), plain.optimizer
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        for index, batch in enumerate(attention.attend(loader)):
            window = min(SIZE, length - index // SIZE * SIZE)
            (attention.weighted_mean(losses_of(model, batch)) / window).backward()
            if (index + 1) % SIZE == 0 or index + 1 == length:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                plain.lr_scheduler.step()
                optimizer.zero_grad()
    return finish(attention, rates, model)


def token_means(model, batch):
    outputs = model(**batch, use_cache=False, fused_lm_head=True)
    return -outputs.log_probs.sum(1) / outputs.label_mask.sum(1)


def pair_losses(model, batch):
    chosen, rejected = model(**batch)["logits"].squeeze(-1).chunk(2)
    return -nn.functional.logsigmoid(chosen - rejected)


@pytest.mark.parametrize(
    ("trainer_class", "kind", "losses_of"),
    [(MySFTTrainer, "SFT", token_means), (MyRewardTrainer, "Reward", pair_losses)],
)
def test_it_trains_as_the_loop_by_hand(trainer_class, kind, losses_of, tmp_path):
    attention = make_attention()
    trainer = make_trainer(trainer_class, kind, tmp_path, attention=attention)
    torch.manual_seed(6)
    trainer.train()
    assert finish(attention, [], trainer.model) == by_hand(kind, tmp_path, losses_of)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == EPOCHS * 4
    assert any(entry["sample_attention/pruned"] for entry in logs)
    assert kind == "Reward" or "mean_token_accuracy" in logs[-1]


@pytest.mark.parametrize(
    ("trainer_class", "kind", "arguments", "words"),
    [
        (MySFTTrainer, "SFT", {"loss_type": "dft"}, r"shape \(\)"),
        (MySFTTrainer, "SFT", {"padding_free": True, "max_length": None}, "got 1 loss for a batch of 8"),
        (MySFTTrainer, "SFT", {"packing": True}, "got 1 loss for a batch of 8"),
        (MySFTTrainer, "SFT", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0"),
        (MyDPOTrainer, "DPO", {}, r"shape \(\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_loss_of_all_samples_is_refused(trainer_class, kind, arguments, words, tmp_path):
    attention = make_attention()
    options = {"ref_model": make_model("gpt2")} if kind == "DPO" else {}
    trainer = make_trainer(trainer_class, kind, tmp_path, arguments, attention=attention, **options)
    with pytest.raises((LossError, ProtocolError), match=words):
        trainer.train()
    assert attention.batches == []
