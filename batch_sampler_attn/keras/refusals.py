"""What cannot be repeated exactly in Keras, refused before the first update, with what to do instead."""

from __future__ import annotations

import sys
from typing import Any

import keras

from batch_sampler_attn.attended import AttendedLoader
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.samples import SampleAttention
from batch_sampler_attn.accumulation import AccumulatedLoader

BACKENDS = ("torch", "jax")


def check_arguments(x: Any, callbacks: Any) -> None:
    """Refuse data that repeat by themselves, and callbacks that nothing can be put before.

    Args:
        x: As ``fit`` was given it.
        callbacks: Likewise.

    Raises:
        ProtocolError: If it is so.
    """
    if isinstance(x, AttendedLoader):
        raise ProtocolError(
            "fit was given what attend() returned, which waits for a loss after each batch, and Keras tells none. Give "
            "it the loader itself; BatchAttention.fit repeats batches by itself"
        )
    if isinstance(x, AccumulatedLoader):
        raise ProtocolError("fit was given accumulate(loader, size); give it a loader, of batches so many times as large")
    sampler = getattr(x, "batch_sampler", None)
    if hasattr(sampler, "schedule") or isinstance(sampler, SampleAttention):
        raise ProtocolError(
            f"the loader has a {type(sampler).__name__}, which Keras tells no losses. Make the DataLoader with "
            "batch_size= and shuffle=; BatchAttention.fit repeats batches by itself"
        )
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise ProtocolError("callbacks is a CallbackList, made for one model and fit; give a list of callbacks")


def check_model(model: Any) -> None:
    """Refuse ways of training in which Python does not come between two updates, or one update is not one batch's.

    Args:
        model: Compiled.

    Raises:
        ProtocolError: If it is so.
    """
    backend = keras.config.backend()
    if backend not in BACKENDS:
        raise ProtocolError(
            f"Keras runs on {backend!r}; BatchAttention.fit is for {' and '.join(BACKENDS)}: set KERAS_BACKEND before "
            "Keras is imported, or decide on what model.train_on_batch returns, around schedule.attend(batches)"
        )
    if getattr(keras.config, "is_nnx_enabled", bool)():
        raise ProtocolError("Keras runs with NNX, whose steps do not tell their loss; leave KERAS_NNX_ENABLED out")
    if (steps := model.steps_per_execution) != 1:
        raise ProtocolError(
            f"the model was compiled with steps_per_execution={steps}: the updates of {steps} batches are made in one "
            "call, with no decision in between. Compile it with steps_per_execution=1"
        )
    # Without one it is not compiled, which Keras says by itself.
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if steps := getattr(optimizer, "gradient_accumulation_steps", None):
        raise ProtocolError(
            f"the optimizer has gradient_accumulation_steps={steps}: its windows go on from one epoch into the next, "
            f"so that none can be repeated as a whole. Use batches of {steps} times as many samples"
        )
    # Of processes that torch's process group knows, the schedule says so itself.
    if backend == "jax" and (processes := sys.modules["jax"].process_count()) > 1:
        raise ProtocolError(
            f"JAX runs on {processes} processes, which has not been tried. Train in one process, on any number of "
            "devices, or write the loop by hand"
        )


def check_loss_is_told(model: Any) -> None:
    """Refuse a model that has no metric for its loss.

    Args:
        model: Built.

    Raises:
        ProtocolError: If it has none.
    """
    if not any(metric.name == "loss" for metric in model.metrics):
        names = ", ".join(metric.name for metric in model.metrics) or "none"
        raise ProtocolError(
            f"{type(model).__name__} has no metric named 'loss' (its metrics: {names}), by which its train_step would "
            "tell its loss. Have model.metrics hold keras.metrics.Mean(name='loss'), and train_step give that each "
            "batch's loss; or decide on what model.train_on_batch returns, around schedule.attend(batches)"
        )


def check_is_of_epoch(model_epoch: int, schedule_epoch: int) -> None:
    """Refuse a model that ``BackupAndRestore`` put back, beside a schedule that was not.

    Args:
        model_epoch: That the model goes on with.
        schedule_epoch: Likewise the schedule.

    Raises:
        ProtocolError: If they differ.
    """
    if model_epoch != schedule_epoch:
        raise ProtocolError(
            f"BackupAndRestore put the model back to where epoch {model_epoch} begins, and the attention's state is of "
            f"epoch {schedule_epoch}: its threshold and repeats would be those of another training. Save "
            "attention.state_dict() as each epoch ends, and load_state_dict() it before fit; or have BackupAndRestore "
            "begin anew, in an empty folder"
        )
