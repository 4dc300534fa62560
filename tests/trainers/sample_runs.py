"""Attention to samples: the same training in transformers' Trainer and by hand."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Trainer

from batch_sampler_attn.trainers.transformers import SampleAttentionMixin, sequence_losses
from tests.trainers.sample_notes import Noted, finish
from tests.trainers.transformers_runs import (
    EPOCHS,
    SAMPLES,
    make_arguments,
    make_dataset,
    make_model,
    make_scaler,
)


def make_attention(**options):
    return Noted(SAMPLES, 8, **{"seed": 3, "epochs": EPOCHS, **options})


class MyTrainer(SampleAttentionMixin, Trainer):
    """A user's, which notes the learning rate of each update."""

    def create_optimizer(self, *args, **kwargs):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            self.rates = []
            optimizer.register_step_pre_hook(lambda *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer


class Scaled(MyTrainer):
    """With a gradient scaler and float16, which accelerate has on a GPU alone."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = make_scaler()
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def by_trainer(case, folder, attention=None, *, resume=None, model=None, callbacks=(), options=None, **arguments):
    """The run, and the trainer."""
    attention = attention or make_attention(**case.options)
    trainer = (Scaled if case.precision == "scaler" else MyTrainer)(
        model=model or make_model(case.model),
        args=make_arguments(case, folder, **arguments),
        train_dataset=make_dataset(case.model),
        attention=attention,
        **{"compute_loss_func": sequence_losses, **(options or {})},
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    torch.manual_seed(6)
    trainer.train(resume_from_checkpoint=resume)
    return finish(attention, trainer.rates, trainer.model, trainer.state.log_history), trainer


def by_hand(case, folder, attention=None, model=None, updates=None, ranks=1):
    """A loop by hand; of the trainer, it has the optimizer and the learning-rate schedule."""
    attention = attention or make_attention(**case.options)
    plain = Trainer(model or make_model(case.model), make_arguments(case, folder))
    length, size = len(attention), case.accumulation
    plain.create_optimizer_and_scheduler(case.arguments.get("max_steps", EPOCHS * -(-length // size)))
    model, optimizer, lr_scheduler = plain.model.train(), plain.optimizer, plain.lr_scheduler
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    scaler = make_scaler() if case.precision == "scaler" else torch.amp.GradScaler("cpu", enabled=False)
    dtype = {"bf16": torch.bfloat16, "scaler": torch.half}.get(case.precision)
    workers = case.arguments.get("dataloader_num_workers", 0)
    attended = attention.attend(DataLoader(make_dataset(case.model), batch_sampler=attention, num_workers=workers))
    rates = []
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        for index, batch in enumerate(attended):
            window = min(size, length - index // size * size)
            is_last = (index + 1) % size == 0 or index + 1 == length
            with wrapped.no_sync() if ranks > 1 and not is_last else nullcontext():
                with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                    outputs = wrapped(**{name: value for name, value in batch.items() if name != "labels"})
                    losses = sequence_losses(outputs["logits"].float(), batch["labels"])
                scaler.scale(attention.weighted_mean(losses) / window).backward()
            if is_last:
                scaler.unscale_(optimizer)
                if case.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                rates.append(optimizer.param_groups[0]["lr"])
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                lr_scheduler.step()
            if len(rates) == updates:
                return finish(attention, rates, model)
    return finish(attention, rates, model)


def mean_loss(model, samples=SAMPLES):
    """Of the first samples, without training."""
    batch = next(iter(DataLoader(make_dataset("gpt2"), samples)))
    with torch.no_grad():
        return sequence_losses(model.eval()(batch["input_ids"]), batch["labels"]).mean().item()
