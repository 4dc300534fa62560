"""TRL's trainer of language models, which is transformers' own with a loss of its own."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from batch_sampler_attn.trainers.transformers import BatchAttentionMixin
from tests.trainers.plain_loop import finish, make_schedule
from tests.trainers.transformers_runs import EPOCHS, MARKS, Case, Texts, make_arguments, make_model

# There is none of today's for Python 3.10.
trl = pytest.importorskip("trl")

pytestmark = MARKS


class MySFTTrainer(BatchAttentionMixin, trl.SFTTrainer):
    pass


def fine_tune(trainer_class, folder, **options):
    words = {word: index for index, word in enumerate(["<pad>", "<eos>", *(f"w{index}" for index in range(22))])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )
    arguments = make_arguments(Case("gpt2", 2), folder, learning_rate=0.02).to_dict()
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate", "seed")
    trainer = trainer_class(
        model=make_model("gpt2"),
        args=trl.SFTConfig(
            output_dir=str(folder),
            max_length=8,
            logging_steps=1,
            bf16=False,
            **{name: arguments[name] for name in (*names, "data_seed", "use_cpu", "disable_tqdm", "report_to")},
            dataloader_pin_memory=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"input_ids": Texts().tokens.tolist(), "labels": Texts().labels.tolist()}),
        processing_class=tokenizer,
        **options,
    )
    torch.manual_seed(6)
    trainer.train()
    return trainer


# TRL's settings use the old name.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_s_sft_trainer_repeats_and_is_otherwise_as_it_was(tmp_path):
    schedule, recorder = make_schedule()
    trainer = fine_tune(MySFTTrainer, tmp_path, schedule=schedule)
    run = finish(schedule, recorder, trainer.model)
    assert run.repeats > 2
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(logs) == EPOCHS * 4
    assert sum(entry["batch_attention/repeats"] for entry in logs) == run.repeats
    assert "mean_token_accuracy" in logs[-1]
    firsts = [visit[3] for visit in run.visits if visit[2] == 1]
    assert [entry["loss"] for entry in logs] == pytest.approx(firsts, rel=1e-6)
    quiet, _ = make_schedule(max_visits=1)
    same, plain = fine_tune(MySFTTrainer, tmp_path, schedule=quiet), fine_tune(trl.SFTTrainer, tmp_path)
    assert all(map(torch.equal, same.model.parameters(), plain.model.parameters()))
    assert logs[0] == {**plain.state.log_history[0], "batch_attention/repeats": 0}
