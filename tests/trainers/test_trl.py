"""TRL's trainer of language models, which is transformers' own with a loss of its own."""

from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
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


def make_trainer(transformers, folder, mixin=None, arguments=None, **options):
    """A trainer with a mixin, or as it is."""
    trl, tokenizers = import_module("trl"), import_module("tokenizers")
    bases = (getattr(transformers, mixin), trl.SFTTrainer) if mixin else (trl.SFTTrainer,)
    texts = transformers.Texts()
    data = {"input_ids": texts.tokens.tolist(), "labels": texts.labels.tolist()}
    words = {"<pad>": 0, "<eos>": 1, **{f"w{index}": index for index in range(2, 24)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    fast = import_module("transformers").PreTrainedTokenizerFast
    given = {"learning_rate": 0.02, "max_length": 8, "logging_strategy": "steps", "logging_steps": 1}
    return type("Mine", bases, {})(
        model=transformers.make_model(CASE),
        args=transformers.make_arguments(CASE, folder, trl.SFTConfig, **{**given, **(arguments or {})}),
        train_dataset=import_module("datasets").Dataset.from_dict(data),
        processing_class=fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"),
        **options,
    )


def trained(trainer):
    torch.manual_seed(6)
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_the_trainer_repeats_and_is_otherwise_as_it_was(transformers, tmp_path):
    schedule, recorder = make_schedule()
    trainer, logs = trained(make_trainer(transformers, tmp_path, "BatchAttentionMixin", schedule=schedule))
    run = finish(schedule, recorder, trainer.model)
    assert run.repeats > 2
    assert trainer.state.global_step == len(logs) == EPOCHS * CASE.windows
    assert sum(entry["batch_attention/repeats"] for entry in logs) == run.repeats
    assert "mean_token_accuracy" in logs[-1]
    assert [entry["loss"] for entry in logs] == pytest.approx(run.first_losses, rel=1e-6)
    quiet, _ = make_schedule(max_visits=1)
    same, _ = trained(make_trainer(transformers, tmp_path, "BatchAttentionMixin", schedule=quiet))
    plain, plain_logs = trained(make_trainer(transformers, tmp_path))
    assert all(map(torch.equal, same.model.parameters(), plain.model.parameters()))
    assert logs[0] == {**plain_logs[0], "batch_attention/repeats": 0}


def samples_by_hand(transformers, folder):
    plain, attention = make_trainer(transformers, folder), make_attention()
    given = plain.get_train_dataloader()
    loader = DataLoader(given.dataset, batch_sampler=attention, collate_fn=given.collate_fn)
    plain.create_optimizer_and_scheduler(EPOCHS * CASE.windows)

    def losses_of(model, batch):
        outputs = model(**batch, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum(1) / outputs.label_mask.sum(1)

    optimizers = plain.optimizer, plain.lr_scheduler
    torch.manual_seed(6)
    return sample_loop(attention, plain.model.train(), losses_of, optimizers, loader, CASE, divisor=lambda size: size)


def test_a_training_on_samples_is_the_loop_by_hand(transformers, tmp_path):
    attention = make_attention()
    trainer, logs = trained(make_trainer(transformers, tmp_path, "SampleAttentionMixin", attention=attention))
    expected = samples_by_hand(transformers, tmp_path)
    assert finish_samples(attention, expected.rates, trainer.model) == expected
    assert len(logs) == EPOCHS * CASE.windows
    assert any(entry["sample_attention/pruned"] for entry in logs)
    assert "mean_token_accuracy" in logs[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"loss_type": "dft"}, r"shape \(\)"), ({"packing": True}, "got 1 loss for a batch of 8")],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_loss_of_all_samples_is_refused(transformers, arguments, words, tmp_path):
    attention = make_attention()
    trainer = make_trainer(transformers, tmp_path, "SampleAttentionMixin", arguments, attention=attention)
    with pytest.raises((LossError, ProtocolError), match=words):
        trainer.train()
    assert attention.batches == []
