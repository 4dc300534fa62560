"""TRL's trainers, which are transformers' own with losses of their own."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from batch_sampler_attn.errors import LossError, ProtocolError
from tests.trainers.cases import EPOCHS, MARKS, Case
from tests.trainers.plain_loop import finish, make_schedule
from tests.trainers.sample_loop import finish_samples, make_attention, sample_loop

pytestmark = [
    *MARKS,
    # There is none of today's for Python 3.10.
    pytest.mark.skipif(find_spec("trl") is None, reason="needs TRL"),
    # TRL's settings use the old name.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

CASE = Case(2, clip=1.0, model="gpt2")


def make_trainer(transformers, kind, folder, mixin=None, arguments=None, **options):
    """A trainer of SFT, or of rewards as in the guide; with a mixin, or as it is."""
    trl, datasets = import_module("trl"), import_module("datasets")
    trainer_class = getattr(trl, f"{kind}Trainer")
    if kind == "Reward":
        trainer_class = type("PairLosses", (trainer_class,), {"compute_loss": compute_pair_losses})
    if mixin:
        trainer_class = type("Mine", (getattr(transformers, mixin), trainer_class), {})
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": CASE.accumulation,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.02,
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
        model=make_scorer() if kind == "Reward" else transformers.make_model(CASE),
        args=getattr(trl, f"{kind}Config")(**given),
        train_dataset=datasets.Dataset.from_dict(make_data(transformers, kind)),
        processing_class=make_tokenizer(),
        **options,
    )


def compute_pair_losses(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    outputs = model(**inputs)
    losses = pair_losses(outputs)
    return (losses, outputs) if return_outputs else losses


def pair_losses(outputs):
    chosen, rejected = outputs["logits"].squeeze(-1).chunk(2)
    return -nn.functional.logsigmoid(chosen - rejected)


def make_scorer():
    transformers = import_module("transformers")
    torch.manual_seed(5)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=24, num_labels=1, pad_token_id=0, **sizes)
    return transformers.GPT2ForSequenceClassification(config)


def make_data(transformers, kind):
    texts = transformers.Texts()
    tokens = texts.tokens.tolist()
    if kind == "Reward":
        return {"chosen_ids": tokens, "rejected_ids": tokens[1:] + tokens[:1]}
    return {"input_ids": tokens, "labels": texts.labels.tolist()}


def make_tokenizer():
    tokenizers = import_module("tokenizers")
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *(f"w{index}" for index in range(22))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    fast = import_module("transformers").PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def trained(trainer):
    torch.manual_seed(6)
    trainer.train()
    return trainer


def losses_in(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_trl_s_sft_trainer_repeats_and_is_otherwise_as_it_was(transformers, tmp_path):
    schedule, recorder = make_schedule()
    trainer = trained(make_trainer(transformers, "SFT", tmp_path, "BatchAttentionMixin", schedule=schedule))
    run, logs = finish(schedule, recorder, trainer.model), losses_in(trainer)
    assert run.repeats > 2
    assert trainer.state.global_step == len(logs) == EPOCHS * 4
    assert sum(entry["batch_attention/repeats"] for entry in logs) == run.repeats
    assert "mean_token_accuracy" in logs[-1]
    assert [entry["loss"] for entry in logs] == pytest.approx(run.first_losses, rel=1e-6)
    quiet, _ = make_schedule(max_visits=1)
    same = trained(make_trainer(transformers, "SFT", tmp_path, "BatchAttentionMixin", schedule=quiet))
    plain = trained(make_trainer(transformers, "SFT", tmp_path))
    assert all(map(torch.equal, same.model.parameters(), plain.model.parameters()))
    assert logs[0] == {**plain.state.log_history[0], "batch_attention/repeats": 0}


# Attention to samples


def samples_by_hand(transformers, kind, folder):
    plain, attention = make_trainer(transformers, kind, folder), make_attention()
    given = plain.get_train_dataloader()
    loader = DataLoader(given.dataset, batch_sampler=attention, collate_fn=given.collate_fn)
    plain.create_optimizer_and_scheduler(EPOCHS * CASE.windows)

    def losses_of(model, batch):
        if kind == "Reward":
            return pair_losses(model(**batch))
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum(1) / outputs.label_mask.sum(1)

    model, optimizer, lr_scheduler = plain.model.train(), plain.optimizer, plain.lr_scheduler
    torch.manual_seed(6)
    return sample_loop(
        attention, model, losses_of, optimizer, lr_scheduler, loader, CASE, divisor=lambda window: window
    )


@pytest.mark.parametrize("kind", ["SFT", "Reward"])
def test_a_training_is_the_loop_by_hand(transformers, kind, tmp_path):
    attention = make_attention()
    trainer = trained(make_trainer(transformers, kind, tmp_path, "SampleAttentionMixin", attention=attention))
    expected = samples_by_hand(transformers, kind, tmp_path)
    assert finish_samples(attention, expected.rates, trainer.model) == expected
    logs = losses_in(trainer)
    assert len(logs) == EPOCHS * CASE.windows
    assert any(entry["sample_attention/pruned"] for entry in logs)
    assert kind == "Reward" or "mean_token_accuracy" in logs[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loss_type": "dft"}, r"shape \(\)"),
        ({"padding_free": True, "max_length": None}, "got 1 loss for a batch of 8"),
        ({"packing": True}, "got 1 loss for a batch of 8"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_loss_of_all_samples_is_refused(transformers, arguments, words, tmp_path):
    attention = make_attention()
    trainer = make_trainer(transformers, "SFT", tmp_path, "SampleAttentionMixin", arguments, attention=attention)
    with pytest.raises((LossError, ProtocolError), match=words):
        trainer.train()
    assert attention.batches == []
