"""Attention to samples: the same training in Lightning and by a plain loop."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.trainers.lightning import SampleAttentionCallback
from tests.trainers.lightning_runs import make_lr_scheduler, make_network, make_optimizer, make_trainer

EPOCHS, SAMPLES, SIZE = 4, 52, 8
UPDATES = 7  # in an epoch, so that windows of 2 and of 3 batches have a partial last one


class Rows(Dataset):
    """Samples that tell their index."""

    def __init__(self, samples=SAMPLES):
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(samples, 6, generator=generator)
        noise = 1.5 * torch.randn(samples, generator=generator)
        self.targets = (self.inputs.sum(1) + noise > 0).long()

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], self.targets[index], index


@dataclass
class Case:
    """How to train.

    Attributes:
        options: Of the attention.
        workers: Of the loader.
        accumulation: Batches of an update.
        precision: As Lightning's ``Trainer`` takes it, or "scaler" for float16 with a gradient scaler.
        clip: The gradients' greatest norm.
        package: Lightning's.
        is_manual: Whether the module makes its updates itself.
        trainer: Further options of the trainer, which change nothing in training.
    """

    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    accumulation: int = 1
    precision: str = "32-true"
    clip: float | None = None
    package: str = "lightning.pytorch"
    is_manual: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)


def make_attention(**options):
    return SampleAttention(SAMPLES, SIZE, **{"ranks": None, "seed": 1, "weighted": True, **options})


def make_loader(attention, workers=0, data=None):
    # Without a generator of its own, a loader draws a number from torch's each time it is iterated over.
    generator = torch.Generator()
    context = "fork" if workers else None
    return DataLoader(
        data or Rows(),
        batch_sampler=attention,
        num_workers=workers,
        multiprocessing_context=context,
        generator=generator,
    )


class Run:
    """What a training came to: each batch's indices, weights and losses, the learning rates, and the parameters."""

    def __init__(self):
        self.visits, self.rates, self.weights = [], [], None

    def loss(self, network, attention, batch):
        """What the user's step computes."""
        inputs, targets, indices = batch
        losses = nn.functional.cross_entropy(network(inputs), targets, reduction="none")
        assert attention.indices == indices.tolist()
        self.visits.append((indices.tolist(), attention.weights, losses.tolist()))
        return attention.weighted_mean(losses)

    def finish(self, network):
        self.weights = torch.cat([value.detach().double().flatten() for value in network.state_dict().values()])
        return self

    def __eq__(self, other):
        return (self.visits, self.rates) == (other.visits, other.rates) and torch.equal(self.weights, other.weights)


def module_class(package="lightning.pytorch"):
    """A user's module, of either package."""

    class Classifier(import_module(package).LightningModule):
        def __init__(self, attention, is_manual=False):
            super().__init__()
            self.attention = attention
            self.network = make_network()
            self.automatic_optimization = not is_manual
            self.run = Run()

        def training_step(self, batch, batch_idx):
            loss = self.run.loss(self.network, self.attention, batch)
            if not self.automatic_optimization:
                optimizer, scheduler = self.optimizers(), self.lr_schedulers()
                self.run.rates.append(optimizer.param_groups[0]["lr"])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                scheduler.step()
            return loss

        def validation_step(self, batch, batch_idx):
            inputs, targets, _ = batch
            self.log("val", nn.functional.cross_entropy(self.network(inputs), targets))

        def on_before_optimizer_step(self, optimizer):
            if self.automatic_optimization:
                self.run.rates.append(optimizer.param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = make_optimizer(self.network)
            return [optimizer], [{"scheduler": make_lr_scheduler(optimizer), "interval": "step"}]

    return Classifier


def by_lightning(case, callbacks=(), resumed_from=None):
    """The run, the attention and the trainer."""
    attention = make_attention(**case.options)
    module = module_class(case.package)(attention, case.is_manual)
    options = dict(case.trainer)
    if case.precision == "scaler":
        plugins = import_module(f"{case.package}.plugins.precision")
        options["plugins"] = [plugins.MixedPrecision("16-mixed", "cpu", make_scaler())]
    else:
        options["precision"] = case.precision
    trainer = make_trainer(
        case.package,
        accumulate_grad_batches=case.accumulation,
        gradient_clip_val=case.clip,
        callbacks=[SampleAttentionCallback(attention), *callbacks],
        **{"max_epochs": EPOCHS, **options},
    )
    torch.manual_seed(6)
    evaluated = DataLoader(Rows(), 16, generator=torch.Generator())
    trainer.fit(module, attention.attend(make_loader(attention, case.workers)), evaluated, ckpt_path=resumed_from)
    return module.run.finish(module.network), attention, trainer


def make_scaler():
    return torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=7)


def by_hand(case, wrap=lambda network: network):
    """The run and the attention."""
    attention, run = make_attention(**case.options), Run()
    network = wrap(make_network())
    optimizer = make_optimizer(network)
    scheduler = make_lr_scheduler(optimizer)
    dtype = torch.half if case.precision == "scaler" else torch.bfloat16
    scaler = make_scaler() if case.precision == "scaler" else torch.amp.GradScaler("cpu", enabled=False)
    loader = make_loader(attention, case.workers)
    torch.manual_seed(6)
    for _ in range(EPOCHS):
        for number, batch in enumerate(attention.attend(loader), 1):
            is_inside = number % case.accumulation > 0 and number < len(attention)
            # As in Lightning, ranks exchange gradients with the last batch alone.
            with network.no_sync() if is_inside and hasattr(network, "no_sync") else nullcontext():
                with torch.autocast("cpu", dtype, enabled=case.precision != "32-true"):
                    loss = run.loss(network, attention, batch)
                scaler.scale(loss / case.accumulation).backward()
            if is_inside:
                continue
            scaler.unscale_(optimizer)
            if case.clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), case.clip)
            run.rates.append(optimizer.param_groups[0]["lr"])
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
    return run.finish(network), attention
