"""Trainings in Lightning, and the same by hand."""

from importlib import import_module

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from batch_sampler_attn.trainers.lightning import BatchAttention, SampleAttentionCallback
from tests.trainers import cases, plain_loop, sample_loop
from tests.trainers.cases import BATCHES, PLAIN, Points, cross_entropy, make_loader, make_network, make_optimizer
from tests.trainers.plain_loop import finish, make_schedule
from tests.trainers.ranks import RANKS
from tests.trainers.sample_loop import finish_samples, make_attention, make_sample_loader

PACKAGE = "lightning.pytorch"
ON_RANKS = {"devices": RANKS, "strategy": "ddp"}


class Steps:
    """What a user's module has, of either package."""

    def __init__(self, case=PLAIN, step=None, end_epoch_at=None):
        super().__init__()
        self.case, self.step, self.end_epoch_at, self.rates = case, step, end_epoch_at, []
        self.network = make_network(case)

    def training_step(self, batch, batch_idx):
        batch = self.step(batch) if self.step else batch
        loss = cross_entropy(self.network, batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == self.end_epoch_at else None

    def on_before_optimizer_step(self, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self):
        optimizer, lr_scheduler = make_optimizer(self.network, self.case)
        return [optimizer], [{"scheduler": lr_scheduler, "interval": "step"}]


def module_class(package=PACKAGE, methods=None):
    module = type("Module", (Steps, import_module(package).LightningModule), {})
    return type("Mine", (module,), methods) if methods else module


Module = module_class()


def make_trainer(case=PLAIN, package=PACKAGE, **options):
    if case.precision == "scaler":
        plugins = import_module(f"{package}.plugins.precision")
        options["plugins"] = [plugins.MixedPrecision("16-mixed", "cpu", case.scaler())]
    elif case.precision == "bf16":
        options["precision"] = "bf16-mixed"
    defaults = {
        "max_epochs": case.epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accumulate_grad_batches": case.accumulation,
        "gradient_clip_val": case.clip,
    }
    return import_module(package).Trainer(**{**defaults, **case.trainer, **options})


class Stop(Callback):
    """Ends the training after so many windows."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.at


def train(
    case,
    folder=None,
    *,
    methods=None,
    package=PACKAGE,
    step=None,
    end_epoch_at=None,
    stop_at=None,
    loader=None,
    resume=None,
    saves=0,
    schedule=None,
    callbacks=(),
    **options,
):
    """The run, and the trainer, which saves every so many steps."""
    schedule, recorder = schedule or make_schedule(**case.options)
    module = module_class(package, methods)(case, step, end_epoch_at)
    callbacks = [BatchAttention(schedule=schedule), *callbacks]
    if stop_at is not None:
        callbacks.append(Stop(stop_at))
    if saves:
        callbacks.append(saving(folder, saves))
    if "max_steps" in options:
        options["max_epochs"] = -1
    trainer = make_trainer(case, package, callbacks=callbacks, enable_checkpointing=bool(saves), **options)
    if loader is None:
        loader = cases.Resumable() if saves or resume else make_loader()
    torch.manual_seed(6)
    trainer.fit(module, loader, ckpt_path=resume)
    return finish(schedule, recorder, module.network, module.rates), trainer


def saving(folder, steps=1):
    """A callback that saves each so many steps."""
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=steps, save_top_k=-1)


def checkpoint(folder, steps):
    return folder / f"step={steps}.ckpt"


def by_hand(case, folder=None, *, is_resumable=False, loader=None, **options):
    if loader is None:
        loader = cases.Resumable() if is_resumable else make_loader()
    return plain_loop.by_hand(case, loader, divisor=lambda window: case.accumulation, **options)


def make_dataset(_):
    return Points()


def is_left_as_it_was(trainer):
    return not {"training_step", "optimizer_step"} & set(vars(trainer.strategy))


def on_a_rank(rank, case, _=None, *, module=None, size=4):
    """A rank's run, whose callback has no option of ranks."""
    recorder, module = make_schedule()[1], module or Module(case)
    callback = BatchAttention(**case.options, recorders=[recorder])
    options = {**ON_RANKS, "precision": "64-true", "use_distributed_sampler": False}
    trainer = make_trainer(case, callbacks=[callback], **options)
    trainer.fit(module, DataLoader(Points(56), size, sampler=range(rank, RANKS * BATCHES * size, RANKS)))
    return finish(callback.schedule, recorder, module.network, module.rates)


def in_one_process(case, _):
    return by_hand(case, loader=DataLoader(Points(56, torch.float64), 8), dtype=torch.float64)


# Attention to samples

samples_by_hand = sample_loop.samples_by_hand


class SampleModule(Module):
    def __init__(self, attention, case=PLAIN):
        super().__init__(case)
        self.attention = attention

    def training_step(self, batch, batch_idx):
        return self.attention.weighted_mean(cross_entropy(self.network, batch, "none"))

    def validation_step(self, batch, batch_idx):
        self.log("val", cross_entropy(self.network, batch), sync_dist=True)


def train_samples(case, folder=None, *, attention=None, resume=None, saves=False):
    attention = attention or make_attention(**case.options)
    module = SampleModule(attention, case)
    callbacks = [SampleAttentionCallback(attention), *[saving(folder)] * saves]
    trainer = make_trainer(case, callbacks=callbacks, enable_checkpointing=saves)
    torch.manual_seed(6)
    evaluated = DataLoader(Points(), 16, generator=torch.Generator())
    trainer.fit(module, attention.attend(make_sample_loader(attention, case)), evaluated, ckpt_path=resume)
    return finish_samples(attention, module.rates, module.network)
