"""What cannot be repeated exactly in Lightning, refused before the first update, with what to do instead."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping

import torch

from batch_sampler_attn.attended import AttendedLoader
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.lightning.packages import LightningModule, Trainer
from batch_sampler_attn.samples import SampleAttention
from batch_sampler_attn.accumulation import AccumulatedLoader

_BY_HAND = "write the loop by hand, around schedule.attend(loader) and schedule.decide(loss)"


def check_module(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what shows before any data is loaded.

    Raises:
        ProtocolError: If there is something.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ProtocolError(
            f"{name} has automatic_optimization=False (as several optimizers need it): its updates are made inside "
            f"training_step, where the BatchAttention callback cannot repeat them. Decide there by yourself ({_BY_HAND}"
            "), or let Lightning optimize, with one optimizer"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ProtocolError(
            f"{name}.training_step takes dataloader_iter, and so fetches batches by itself, which cannot be handed to "
            "it again. Let it take (batch, batch_idx)"
        )
    strategy = trainer.strategy
    if strategy.handles_gradient_accumulation:
        raise ProtocolError(
            f"{type(strategy).__name__} accumulates gradients and makes updates by itself (as DeepSpeed does), so that "
            "a window of batches cannot be repeated. Use strategy='ddp' or 'fsdp'"
        )


def check_training(trainer: Trainer) -> None:
    """Refuse what shows once loaders and optimizers are made.

    Raises:
        ProtocolError: If there is something.
    """
    optimizers = trainer.optimizers
    if len(optimizers) != 1:
        raise ProtocolError(
            f"there are {len(optimizers)} optimizers, and an update that is repeated is that of one; use one "
            f"optimizer, with parameter groups, or {_BY_HAND}"
        )
    # What Lightning has in place of none, where configure_optimizers returns None.
    if not optimizers[0].param_groups:
        raise ProtocolError(
            "there is no optimizer (configure_optimizers returned None): without updates no loss gets lower, and "
            "batches would be repeated in vain. Leave the BatchAttention callback out"
        )
    if isinstance(optimizers[0], torch.optim.LBFGS):
        raise several_visits("LBFGS")
    check_loaders(trainer)


def check_loaders(trainer: Trainer) -> None:
    """Refuse loaders that repeat by themselves; Lightning may load others for a later epoch.

    Raises:
        ProtocolError: If there is one.
    """
    for loader in _loaders_in(trainer.train_dataloader):
        _check_loader(loader)


def several_visits(name: str) -> ProtocolError:
    """The refusal of an optimizer that calls its closure more than once in a step.

    Args:
        name: Its.
    """
    return ProtocolError(
        f"{name} trains on a batch several times in each step by itself, so that there is no one loss to decide on; "
        "use another optimizer, such as AdamW or SGD"
    )


def _check_loader(loader: object) -> None:
    if isinstance(loader, AttendedLoader):
        raise ProtocolError(
            "the trainer was given what attend() returned: Lightning would stop at its length, of base batches, and "
            "never tell the losses. Give it the loader itself; the BatchAttention callback repeats batches, and takes "
            "the schedule's options, or schedule="
        )
    if isinstance(loader, AccumulatedLoader):
        raise ProtocolError(
            "the trainer was given accumulate(loader, size); give it the loader itself, and "
            "Trainer(accumulate_grad_batches=size): the BatchAttention callback repeats windows of so many batches"
        )
    sampler = getattr(loader, "batch_sampler", None)
    if hasattr(sampler, "schedule") or isinstance(sampler, SampleAttention):
        raise ProtocolError(
            f"the trainer's loader has a {type(sampler).__name__}, which Lightning tells no losses, and which it "
            "rebuilds, with default options, to share a data set among ranks. Make the DataLoader with batch_size= and "
            "shuffle=; the BatchAttention callback repeats batches by itself"
        )


def _loaders_in(loaders: object) -> Iterator[object]:
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        for loader in loaders:
            yield from _loaders_in(loader)
    else:
        yield loaders
