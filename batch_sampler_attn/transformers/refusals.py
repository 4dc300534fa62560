"""What cannot be repeated exactly in a trainer, refused before the first update, with what to do instead."""

from __future__ import annotations

from typing import Any

import torch

from batch_sampler_attn.accelerate import check_ranks, sampler_of_ours, updates_are_elsewhere
from batch_sampler_attn.attended import AttendedLoader
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.windows import Windows

# Whose ``compute_loss`` is known to divide by ``num_items_in_batch`` where it is given, or to say that it does not.
_KNOWN = ("transformers", "trl")

# Methods by which TRL's trainers make batches inside their training step.
_GENERATING = ("_prepare_inputs", "generate_on_policy_outputs")


def check_trainer(trainer: Any) -> None:
    """Refuse what shows before any data is loaded.

    Raises:
        ProtocolError: If there is something.
    """
    if trainer.args.n_gpu > 1:
        raise ProtocolError(
            f"the trainer would split each batch among {trainer.args.n_gpu} GPUs in one process (DataParallel), which "
            "batch-attention was not tried with. Start it with torchrun, one process for each GPU, and the schedule "
            "with reduce=MeanOverRanks(); or show it one GPU: CUDA_VISIBLE_DEVICES=0"
        )
    elsewhere = updates_are_elsewhere(trainer.accelerator)
    if elsewhere is None and getattr(trainer, "is_distributed_loading_by_transformers", False):
        elsewhere = "sharding at load time"
    if elsewhere is not None:
        raise ProtocolError(
            f"the trainer uses {elsewhere}, which batch-attention was not tried with, and which may make updates by "
            "itself. Start it with torchrun, for DistributedDataParallel"
        )
    check_ranks(trainer.schedule, trainer.args.world_size)
    _check_methods(trainer)


def _check_methods(trainer: Any) -> None:
    cls = type(trainer)
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "trl" and not vars(base).keys().isdisjoint(_GENERATING):
            raise ProtocolError(
                f"{base.__name__} makes its batches inside the training step, so that the same batch cannot be trained "
                "on again. Use batch-attention with trainers of batches that are there beforehand, such as SFTTrainer, "
                "DPOTrainer or RewardTrainer"
            )
    is_known = _module_of(cls, "compute_loss") in _KNOWN or trainer.compute_loss_func is not None
    is_said = getattr(trainer, "loss_is_scaled_for_ga", None) is not None
    if trainer.args.gradient_accumulation_steps > 1 and trainer.model_accepts_loss_kwargs and not (is_known or is_said):
        raise ProtocolError(
            f"{cls.__name__} has a compute_loss of its own, and whether it divides by num_items_in_batch is not known; "
            "the trainer takes it that it does, and does not divide by gradient_accumulation_steps. Say so in the "
            "class: loss_is_scaled_for_ga = True if it divides the sum over the batch by num_items_in_batch, and "
            "False if it returns the batch's mean"
        )


def _module_of(cls: type, method: str) -> str:
    """The package of the class that the method is taken from."""
    owner = next(base for base in cls.__mro__ if method in vars(base))
    return owner.__module__.partition(".")[0]


def check_training(trainer: Any, loader: object) -> None:
    """Refuse what shows once loader and optimizer are made.

    Raises:
        ProtocolError: If there is something.
    """
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # in accelerate's wrapper, or in several
        optimizer = optimizer.optimizer
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ProtocolError(
            "LBFGS trains on a batch several times in each step by itself, so that there is no one loss to decide on; "
            "use another optimizer, such as AdamW or SGD"
        )
    if isinstance(loader, AttendedLoader):
        raise ProtocolError(
            "get_train_dataloader returned what attend() returned: the trainer would stop at its length, of base "
            "batches, and never tell the losses. Return the loader itself; BatchAttentionMixin repeats batches"
        )
    if isinstance(loader, Windows):
        raise ProtocolError(
            "get_train_dataloader returned windows(loader, size). Return the loader itself, with "
            "TrainingArguments(gradient_accumulation_steps=size): BatchAttentionMixin repeats windows of so many"
        )
    if (name := sampler_of_ours(loader)) is not None:
        raise ProtocolError(
            f"the trainer's loader has a {name}, which the trainer tells no losses. Make the DataLoader with "
            "batch_size= and shuffle=, or leave get_train_dataloader to the trainer; BatchAttentionMixin repeats "
            "batches by itself"
        )
