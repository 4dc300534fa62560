"""Repeats inside a trainer's step: after its update, and before the learning-rate schedule and all that counts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from batch_sampler_attn.attended import length_of
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.trainers.replay import Replay
from batch_sampler_attn.transformers.items import WatchedItems, is_compiled
from batch_sampler_attn.transformers.refusals import check_training

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "batch_sampler_attn.transformers needs transformers, which is not installed: "
            "pip install 'batch-sampler-attn[transformers]'",
            name="transformers",
        ) from error

_METHODS = ("training_step", "compute_loss")


class Repeating(TrainerCallback):
    """Stands in for two methods of one trainer while it trains, and is told of its steps as a callback.

    It stands in on the instance, so that it is outermost, whatever subclasses make of these methods: each batch is kept
    as the trainer hands it out, and each loss is caught as ``compute_loss`` returns it.

    Args:
        trainer: That has the ``BatchAttentionMixin``.
        replay: Keeps the window under way.
        samples: How many there are in a batch.
    """

    def __init__(self, trainer: Any, replay: Replay, samples: Callable[[Any], object]) -> None:
        self._trainer = trainer
        self._replay = replay
        self._samples = samples
        # What others had set on the instance, to be put back, and what is called in its place.
        self._before: dict[str, Any] = {}
        self._training_step: Any = None
        self._compute_loss: Any = None
        self._is_repeating = False
        self._repeats = 0
        # Of the epoch: how many windows it has, if that is known, and how many are behind.
        self._windows: int | None = None
        self._behind = 0
        self._is_first_epoch = True
        # Of the window: the model in its wrappers; parts of its loss, where the trainer sums them up; their weight.
        self._model: Any = None
        self._parts: list[Any] = []
        self._weight: object = 1
        # Of the batch.
        self._caught: list[Any] | None = None
        # Whether losses are divided by the items of their window; None where that was not seen yet.
        self._are_divided: bool | None = None

    def attach(self) -> None:
        """Have the trainer call this."""
        trainer = self._trainer
        self._before = {name: vars(trainer)[name] for name in _METHODS if name in vars(trainer)}
        self._training_step = trainer.training_step
        self._compute_loss = trainer.compute_loss
        for name in _METHODS:
            vars(trainer)[name] = getattr(self, name)
        # After the callbacks of others, who are told of an update before its batches are trained on again.
        trainer.add_callback(self)

    def detach(self) -> None:
        """Leave the trainer as it was; an epoch in progress sets no threshold."""
        self._replay.end_epoch(finished=False)
        trainer = self._trainer
        trainer.remove_callback(self)
        for name in _METHODS:
            del vars(trainer)[name]
        vars(trainer).update(self._before)
        self._model = None

    def take_repeats(self) -> int:
        """How many there were since this was asked last."""
        repeats, self._repeats = self._repeats, 0
        return repeats

    # In place of the trainer's -----------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The first visit to a batch.

        Args:
            model: As the trainer trains it.
            inputs: The batch.
            args: As the trainer gives them.
            kwargs: Likewise.

        Returns:
            What the trainer's own method returns.
        """
        if not self._replay.is_in_epoch:
            self._replay.begin_epoch(self._windows, at=self._behind)
        if not self._replay.is_in_window:
            self._parts = []
        self._model = model
        self._replay.hold((inputs, args, kwargs))
        return self._visit(inputs, *args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch, caught as it is if the batch is trained on.

        Args:
            args: As the trainer gives them.
            kwargs: Likewise.

        Returns:
            What the trainer's own method returns.
        """
        output = self._compute_loss(*args, **kwargs)
        if self._caught is not None:
            loss = output[0] if isinstance(output, tuple) else output
            # A copy, since what it is scaled by may be applied in place.
            self._caught.append(loss.detach().clone() if isinstance(loss, torch.Tensor) else loss)
        return output

    # As the trainer tells it -------------------------------------------------------------------------------

    def on_train_begin(self, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
        """Refuse what shows once loader and optimizer are made."""
        check_training(self._trainer, train_dataloader)
        # One that failed before, which the trainer begins anew with smaller batches.
        self._replay.end_epoch(finished=False)
        self._is_first_epoch = True
        self._repeats = 0
        self._are_divided = None

    def on_epoch_begin(self, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
        """Note where the trainer is."""
        args, state = self._trainer.args, self._trainer.state
        batches = length_of(train_dataloader)
        self._windows = None if batches is None else max(1, math.ceil(batches / args.gradient_accumulation_steps))
        self._behind = 0
        if self._is_first_epoch and not args.ignore_data_skip:
            # The trainer takes it that steps of a stream without a length are all of one epoch.
            self._behind = state.global_step if self._windows is None else state.global_step % self._windows
        self._is_first_epoch = False

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After the update of a window: decide, and make those of its repeats."""
        if self._is_repeating:
            return
        if not self._replay.is_in_window:
            self._refuse_order("made an update from no batch that training_step was called with")
        self._behind += 1
        self._note_window()
        self._is_repeating = True
        try:
            for window in self._replay.repeats(is_last=self._behind == self._windows):
                self._repeats += 1
                self._train_again(window)
        finally:
            self._is_repeating = False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Make sure that the step was decided on."""
        if self._replay.is_in_window:
            self._refuse_order("ended a step without on_optimizer_step, in which its batches are repeated")

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """End an epoch whose length was not known, or that was cut short: by ``max_steps``, it sets no threshold."""
        self._replay.end_epoch(finished=not self._trainer.control.should_training_stop)

    # Training ----------------------------------------------------------------------------------------------

    def _train_again(self, window: Iterable[Any]) -> None:
        """What the trainer does for an update, but for what it counts and logs."""
        trainer, model = self._trainer, self._model
        args, accelerator, callbacks = trainer.args, trainer.accelerator, trainer.callback_handler
        does_sync_each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        model.zero_grad()
        *others, last = window
        self._parts = []
        for inputs, rest, options in others:
            accelerator.sync_gradients = False
            with nullcontext() if does_sync_each else accelerator.no_sync(model=model):
                self._visit(inputs, *rest, **options)
        accelerator.sync_gradients = True
        inputs, rest, options = last
        self._visit(inputs, *rest, **options)
        self._note_window()
        # Without a limit too: it has a scaler unscale them, as at the first visit, for callbacks to look at.
        limit = args.max_grad_norm if (args.max_grad_norm or 0) > 0 else math.inf
        accelerator.clip_grad_norm_(model.parameters(), limit)
        trainer.control = callbacks.on_pre_optimizer_step(args, trainer.state, trainer.control)
        trainer.optimizer.step()
        trainer.control = callbacks.on_optimizer_step(args, trainer.state, trainer.control)

    def _visit(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        items: Any = args[0] if args else kwargs.get("num_items_in_batch")
        is_summed_up = self._is_summed_up(items)
        # Before the step, which may take the batch apart.
        weight = self._weight_of(inputs, items, is_summed_up=is_summed_up)
        watched = None
        if is_summed_up and self._is_to_be_watched(items):
            watched, weight_of_mean = WatchedItems.of(items), self._weight_of(inputs, items, is_summed_up=False)
            args, kwargs = ((watched, *args[1:]), kwargs) if args else (args, {**kwargs, "num_items_in_batch": watched})
        self._caught = []
        try:
            output = self._training_step(self._model, inputs, *args, **kwargs)
            losses = self._caught
        finally:
            self._caught = None
        if len(losses) != 1:
            self._refuse(len(losses))
        if watched is not None:
            self._are_divided = watched.is_used
            if not watched.is_used:
                is_summed_up, weight = False, weight_of_mean
        if is_summed_up:
            self._parts.append(losses[0])
            self._weight = weight
        else:
            self._replay.note(losses[0], weight)
        return output

    def _note_window(self) -> None:
        """Tell the loss of a window whose batches' losses are parts of it."""
        if self._parts:
            # Each is divided by the items of the whole window already. A single one is left exactly as it is.
            loss, *others = self._parts
            if others:
                # Not sum(), whose rounding differs between versions of Python.
                loss = reduce(operator.add, map(float, others), float(loss))
            self._replay.note(loss, self._weight)

    def _is_summed_up(self, items: object) -> bool:
        """Whether the losses of a window's batches add up to the window's; otherwise they are means."""
        trainer = self._trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        if self._are_divided is False:
            return False
        return trainer.compute_loss_func is not None or (trainer.model_accepts_loss_kwargs and items is not None)

    def _is_to_be_watched(self, items: Any) -> bool:
        """Whether it makes a difference if the loss is divided by the items, and is not known yet.

        Models that take any keyword, such as BERT's with a head for classification, are handed the items too, and may
        return the mean over the batch all the same.
        """
        return (
            self._are_divided is None
            and self._trainer.args.gradient_accumulation_steps > 1
            and getattr(self._trainer, "loss_is_scaled_for_ga", None) is None
            and isinstance(items, torch.Tensor)
            and not is_compiled(self._model)
        )

    def _weight_of(self, inputs: Any, items: object, *, is_summed_up: bool) -> object:
        args = self._trainer.args
        if args.world_size == 1 and (is_summed_up or args.gradient_accumulation_steps == 1):
            return 1
        if is_summed_up and items is not None:
            # If they are those of all ranks, so that ranks' losses average to the mean over them, ranks weigh the same.
            return 1 if args.average_tokens_across_devices else items
        return self._samples(inputs)

    def _refuse_order(self, what: str) -> None:
        raise ProtocolError(
            f"{type(self._trainer).__name__} {what}. It has a training loop of its own, or that of a transformers of a "
            "newer kind. Install an older transformers, or a newer batch-sampler-attn; or write the loop by hand, "
            "around schedule.attend(loader) and schedule.decide(loss)"
        )

    def _refuse(self, losses: int) -> None:
        name = type(self._trainer).__name__
        raise ProtocolError(
            f"{name}.training_step called compute_loss {losses} times for one batch, so that there is no one loss to "
            "decide on. Let it be called once, by super().training_step(...), and compute_loss return the loss that "
            "the batch is trained on; or write the loop by hand, around schedule.attend(loader) and "
            "schedule.decide(loss)"
        )
