"""The same training in Lightning and by hand."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn.trainers.lightning import BatchAttention
from tests.trainers.plain_loop import Run, finish, make_schedule, plain_loop

# Marks for every module of tests here: what Lightning itself warns of.
MARKS = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"),
]

EPOCHS = 4
# Batches of 8, the last of 4: 7 in all, so that windows of 2 and of 3 have a partial last one.
SAMPLES = 52


def make_loader(samples=SAMPLES, batch_size=8):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(samples, 6, generator=generator)
    noise = 1.5 * torch.randn(samples, generator=generator)
    targets = (inputs.sum(1) + noise > 0).long()
    order = torch.Generator().manual_seed(4)
    return DataLoader(TensorDataset(inputs, targets), batch_size, shuffle=True, generator=order)


def make_network(batch_norm=False):
    torch.manual_seed(5)
    middle = [nn.BatchNorm1d(16)] if batch_norm else []
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def make_optimizer(network, optimizer="adam"):
    if optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return torch.optim.Adam(network.parameters(), lr=0.01)


def make_lr_scheduler(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)


def loss_of(network, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(network(inputs), targets)


def module_class(package):
    """A user's module, of either package."""

    class Classifier(import_module(package).LightningModule):
        def __init__(self, optimizer="adam", batch_norm=False):
            super().__init__()
            self.network = make_network(batch_norm)
            self.optimizer_name = optimizer
            self.rates = []

        def training_step(self, batch, batch_idx):
            loss = loss_of(self.network, batch)
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def on_before_optimizer_step(self, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = make_optimizer(self.network, self.optimizer_name)
            return [optimizer], [{"scheduler": make_lr_scheduler(optimizer), "interval": "step"}]

    return Classifier


def make_trainer(package="lightning.pytorch", **options):
    defaults: dict[str, Any] = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return import_module(package).Trainer(**{**defaults, **options})


@dataclass
class Case:
    """How to train.

    Attributes:
        package: Lightning's.
        accumulation: Batches in a window.
        precision: As Lightning's ``Trainer`` takes it, or "scaler" for float16 with a gradient scaler.
        clip: The gradients' greatest norm.
        optimizer: "adam" or "sgd".
        batch_norm: Whether the network has one.
        options: Of the schedule.
    """

    package: str = "lightning.pytorch"
    accumulation: int = 1
    precision: str = "32-true"
    clip: float | None = None
    optimizer: str = "adam"
    batch_norm: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def by_lightning(case: Case, module=None, trainer=None, **trainer_options) -> tuple[Run, Any, Any]:
    """The run, the trainer and the module."""
    module = module or module_class(case.package)(case.optimizer, case.batch_norm)
    schedule, recorder = make_schedule(**case.options)
    callbacks = [BatchAttention(schedule=schedule), *trainer_options.pop("callbacks", [])]
    if case.precision == "scaler":
        plugins = import_module(f"{case.package}.plugins.precision")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=7)
        trainer_options["plugins"] = [plugins.MixedPrecision("16-mixed", "cpu", scaler)]
    else:
        trainer_options["precision"] = case.precision
    trainer = make_trainer(
        case.package,
        accumulate_grad_batches=case.accumulation,
        gradient_clip_val=case.clip,
        callbacks=callbacks,
        **trainer_options,
    )
    torch.manual_seed(6)
    trainer.fit(module, make_loader())
    return finish(schedule, recorder, module.network, module.rates), trainer, module


def by_hand(case: Case, **loop_options) -> Run:
    """The plain loop's."""
    network = make_network(case.batch_norm)
    optimizer = make_optimizer(network, case.optimizer)
    if case.precision == "bf16-mixed":
        loop_options["autocast"] = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    elif case.precision == "scaler":
        loop_options["autocast"] = lambda: torch.autocast("cpu", dtype=torch.half)
        loop_options["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=7)
    torch.manual_seed(6)
    return plain_loop(
        network,
        lambda batch: loss_of(network, batch),
        optimizer,
        make_lr_scheduler(optimizer),
        make_loader(),
        **{"epochs": EPOCHS, "accumulation": case.accumulation, "clip": case.clip, **case.options, **loop_options},
    )
