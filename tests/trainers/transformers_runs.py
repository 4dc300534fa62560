"""The same training in transformers' Trainer and by hand."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

from batch_sampler_attn import Decision
from batch_sampler_attn.trainers.transformers import BatchAttentionMixin
from tests.trainers.plain_loop import Run, finish, make_schedule, plain_loop

# Marks for every module of tests here.
MARKS = [pytest.mark.usefixtures("one_thread")]

EPOCHS = 4
# Batches of 8, the last of 4: 7 in all, so that windows of 2 and of 3 have a partial last one.
SAMPLES = 52
BATCHES = 7

logging.getLogger("transformers").setLevel(logging.ERROR)


class MyTrainer(BatchAttentionMixin, Trainer):
    """A user's, which notes the learning rate of each update."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rates = []

    def create_optimizer(self, *args, **kwargs):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            optimizer.register_step_pre_hook(lambda *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer


class Points(Dataset):
    """Vectors of two classes, with noise."""

    def __init__(self, samples=SAMPLES):
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(samples, 6, generator=generator)
        noise = 1.5 * torch.randn(samples, generator=generator)
        self.labels = (self.inputs.sum(1) + noise > 0).long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


class Texts(Dataset):
    """Lines of tokens, of which a part of each is to be predicted."""

    def __init__(self, samples=SAMPLES):
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(0, 24, (samples, 6), generator=generator)
        self.labels = self.tokens.clone()
        for row, begin in enumerate(torch.randint(0, 4, (samples,), generator=generator).tolist()):
            self.labels[row, :begin] = -100

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Sentences(Dataset):
    """Lines of tokens of two classes, with noise."""

    def __init__(self, samples=SAMPLES):
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(0, 24, (samples, 6), generator=generator)
        noise = 8 * torch.randn(samples, generator=generator)
        self.labels = (self.tokens[:, 0] + noise > 12).long()

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A user's module, that is told nothing of the trainer's counts."""

    # Looked at for what kind of problem it is.
    config = SimpleNamespace()

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, inputs, labels=None):
        logits = self.layers(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


@dataclass
class Case:
    """How to train.

    Attributes:
        model: "classifier"; "gpt2", whose losses are divided by the window's tokens; or "bert", which is told their
            number, and takes the mean over the batch.
        accumulation: Batches in a window.
        precision: "fp32", "bf16", or "scaler" for float16 with a gradient scaler.
        clip: The gradients' greatest norm; 0 for no limit.
        options: Of the schedule.
        arguments: Of the trainer.
    """

    model: str = "classifier"
    accumulation: int = 1
    precision: str = "fp32"
    clip: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


def make_model(name):
    torch.manual_seed(5)
    if name == "classifier":
        return Classifier()
    if name == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForSequenceClassification(BertConfig(vocab_size=24, max_position_embeddings=8, **sizes))
    config = GPT2Config(
        vocab_size=24, n_positions=8, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    # Which GPT-2's class does not say, so that the trainer would count the first token of each row, too.
    model.loss_type = "ForCausalLM"
    return model


def make_dataset(name):
    return {"classifier": Points, "gpt2": Texts, "bert": Sentences}[name]()


def make_arguments(case, folder, **arguments):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": case.accumulation,
            "num_train_epochs": EPOCHS,
            "max_grad_norm": case.clip,
            "bf16": case.precision == "bf16",
            "learning_rate": 0.01,
            "lr_scheduler_type": "linear",
            "weight_decay": 0.01,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "seed": 7,
            "data_seed": 7,
            **case.arguments,
            **arguments,
        }
    )


def with_scaler(trainer_class):
    """The same with a gradient scaler and float16, which accelerate has on a GPU alone."""

    class Scaled(trainer_class):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.accelerator.scaler = make_scaler()
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"

    return Scaled


def make_scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=7)


def by_trainer(case, folder, trainer_class=MyTrainer, *, resume=None, options=None, **arguments):
    """The run, and the trainer."""
    schedule, recorder = make_schedule(**case.options)
    if case.precision == "scaler":
        trainer_class = with_scaler(trainer_class)
    trainer = trainer_class(
        model=make_model(case.model),
        args=make_arguments(case, folder, **arguments),
        train_dataset=make_dataset(case.model),
        schedule=schedule,
        **(options or {}),
    )
    torch.manual_seed(6)
    trainer.train(resume_from_checkpoint=resume)
    return finish(schedule, recorder, trainer.model, getattr(trainer, "rates", ())), trainer


class Given:
    """The trainer's own optimizer, learning-rate schedule and loader, without the mixin."""

    def __init__(self, case, folder, model=None, **options):
        self.model = model or make_model(case.model)
        self.trainer = Trainer(
            model=self.model,
            args=make_arguments(case, folder),
            train_dataset=make_dataset(case.model),
            **options,
        )
        self.loader = Numbered(self.trainer.get_train_dataloader())
        windows = -(-len(self.loader.loader) // case.accumulation)
        steps = case.arguments.get("max_steps", EPOCHS * windows)
        self.trainer.create_optimizer_and_scheduler(steps)
        self.optimizer, self.lr_scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        self.scaler = make_scaler() if case.precision == "scaler" else None
        self.dtype = {"bf16": torch.bfloat16, "scaler": torch.half}.get(case.precision)
        self.model.train()

    def autocast(self):
        return torch.autocast("cpu", dtype=self.dtype) if self.dtype else nullcontext()


class Numbered:
    """Shuffles an epoch as the trainer does: by its number."""

    def __init__(self, loader):
        self.loader = loader
        self.epoch = -1

    def __iter__(self):
        self.epoch += 1
        self.loader.set_epoch(self.epoch)
        return iter(self.loader)


def by_hand(case, folder, loss_of=None, loader=None, model=None, **loop_options) -> Run:
    """The plain loop's, around means of batches."""
    given = Given(case, folder, model)
    loss_of = loss_of or (lambda model, batch: model(**batch)["loss"])
    torch.manual_seed(6)
    return plain_loop(
        given.model,
        lambda batch: loss_of(given.model, batch),
        given.optimizer,
        given.lr_scheduler,
        loader or given.loader,
        **{
            "epochs": EPOCHS,
            "accumulation": case.accumulation,
            "autocast": given.autocast,
            "scaler": given.scaler,
            "clip": case.clip or None,
            "divisor": len,
            "samples_of": lambda batch: len(batch["labels"]),
            **case.options,
            **loop_options,
        },
    )


def by_items(case, folder, loss_of=None, loader=None, model=None) -> Run:
    """A loop by hand around sums over tokens, divided by all tokens of the window."""
    given = Given(case, folder, model)
    model, optimizer = given.model, given.optimizer
    loss_of = loss_of or (lambda model, batch, items: model(**batch, num_items_in_batch=items)["loss"])
    scaler = given.scaler or torch.amp.GradScaler("cpu", enabled=False)
    schedule, recorder = make_schedule(**case.options)
    rates = []
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        batches = list(loader or given.loader)
        for begin in range(0, len(batches), case.accumulation):
            window = batches[begin : begin + case.accumulation]
            items = sum((batch["labels"][..., 1:] != -100).sum() for batch in window)
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                parts = []
                optimizer.zero_grad()
                for batch in window:
                    with given.autocast():
                        loss = loss_of(model, batch, items)
                    parts.append(loss.item())
                    scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                if case.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                rates.append(optimizer.param_groups[0]["lr"])
                scaler.step(optimizer)
                scaler.update()
                decision = schedule.decide(sum(parts))
            given.lr_scheduler.step()
        schedule.end_epoch()
    return finish(schedule, recorder, model, rates)
