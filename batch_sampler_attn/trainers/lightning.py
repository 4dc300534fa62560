"""Batch-attention in Lightning, of either package: ``Trainer(callbacks=[BatchAttention(k=1.2)])``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch

from batch_sampler_attn.accumulation import samples_in
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError
from batch_sampler_attn.ranks import RanksOption
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.trainers.replay import (
    Replay,
    refuse_closures,
    refuse_own_loader,
    schedule_from,
    several_visits,
    standing_in,
    warn_of_too_few_epochs,
)

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["BatchAttention"]

_INSTEAD = "the BatchAttention callback repeats batches, and with accumulate_grad_batches=n the n batches of an update"


def _callback_class() -> type:
    """A ``Callback`` of each installed package; the trainer of one does not take the other's."""
    classes = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        with suppress(ImportError):
            classes.append(import_module(name).Callback)
    if not classes:
        raise ModuleNotFoundError(
            "batch_sampler_attn.trainers.lightning needs Lightning, which is not installed: "
            "pip install 'batch-sampler-attn[lightning]'",
            name="lightning",
        )
    return type("Callback", tuple(classes), {})


# A type checker has the import above.
if not TYPE_CHECKING:
    Callback = _callback_class()
    LightningModule = Trainer = object


class _StateKey:
    """The key in checkpoints. Lightning reads it as a Trainer is made, even from a class among its callbacks."""

    def __get__(self, callback: object, owner: type) -> str:
        if callback is None:
            raise OptionError(f"callbacks has the class {owner.__name__}; give an instance: {owner.__name__}(k=1.2)")
        return owner.__qualname__


class BatchAttention(Callback):
    """Repeats batches inside Lightning's optimizer step; the module and the loaders stay as they are.

    With ``accumulate_grad_batches=n``, the n batches of one update are decided on and repeated together, by the mean of
    their losses over samples. The trainer's mixed precision, gradient scaler, clipping and hooks apply to every update.
    Lightning's counters (``global_step``, learning-rate schedules, batches, checkpoints every n steps) do not count
    repeats, and ``self.log`` logs first visits. What ``training_step`` itself updates, such as BatchNorm and
    torchmetrics, it updates at each visit.

    Lightning's checkpoints contain the schedule's state.

    Args:
        k: As in ``BatchAttentionSchedule``.
        schedule: A schedule made beforehand, in place of options.
        ranks: "auto" lets all ranks decide alike, on the mean of their losses. Other values are those of
            ``BatchAttentionSchedule``.
        samples: Returns the number of samples in a batch, or the sum of their weights; used with several batches in an
            update, or several ranks. None counts the length of the batch's first tensor.
        log: Whether to log ``batch_attention/repeats`` and ``batch_attention/threshold`` once an epoch.
        options: Further options of ``BatchAttentionSchedule``.

    Attributes:
        schedule: The schedule that decides.

    Raises:
        OptionError: If an option has a value that is not allowed, or there are options beside a schedule.
        ProtocolError: If the schedule belongs to a sampler. From ``Trainer.fit``, before the first update, if the
            trainer works in a way that cannot be repeated; the message says what to use instead.

    Example:
        >>> from batch_sampler_attn.trainers.lightning import BatchAttention
        >>> BatchAttention(k=1.5, budget=0.2).schedule.options.budget
        0.2
    """

    state_key = _StateKey()

    def __init__(
        self,
        k: float | None = None,
        *,
        schedule: BatchAttentionSchedule | None = None,
        ranks: RanksOption | Literal["auto"] = "auto",
        samples: Callable[[Any], object] | None = None,
        log: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if ranks != "auto":
            options["ranks"] = ranks
        elif schedule is None:
            options["ranks"] = MeanOverRanks()
        self.schedule = schedule_from(k, schedule, options)
        self._replay = Replay(self.schedule)
        self._samples = samples_in if samples is None else samples
        self._logs = log
        self._epochs_logged = 0
        self._fit: _Fit | None = None
        # A checkpoint may be loaded to evaluate it; training then goes on from the present state.
        self._loads_states = True

    # Where a fit begins and ends -------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what can be seen before any data is loaded."""
        self._loads_states = stage == "fit"
        if stage == "fit":
            _check_module(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to repeat, once loaders and optimizers are there."""
        for optimizer in trainer.optimizers:
            refuse_closures(optimizer)
        self._fit = _Fit(trainer, pl_module, self._replay, self._samples)
        self._fit.warn_if_too_short()

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Check the loaders, which Lightning may load again for any epoch."""
        for loader in trainer.fit_loop._combined_loader.flattened:
            refuse_own_loader(loader, _INSTEAD)

    def on_exception(self, *_: Any) -> None:
        """Leave the trainer as it was; the epoch in progress sets no threshold."""
        self._replay.end_epoch(finished=False)
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the trainer as it was."""
        if self._fit is not None:
            self._fit.installed.close()
            self._fit = None
        self._loads_states = True

    # Where windows and epochs end ------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Skip a window if the module's ``optimizer_step`` made no update of it."""
        assert self._fit is not None
        is_last = self._fit.is_at_last_batch
        batch_idx = args[-1]
        if is_last or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._replay.skip(is_last=is_last)

    def on_train_epoch_end(self, _: Trainer, pl_module: LightningModule) -> None:
        """End an epoch that did not end with its last window, and log."""
        assert self._fit is not None
        self._replay.end_epoch(finished=not self._fit.is_cut_short)
        if self._logs and self.schedule.epoch > self._epochs_logged:
            self._epochs_logged = self.schedule.epoch
            summary = self.schedule.last_summary
            values = {"batch_attention/repeats": float(summary.repeats)}
            if summary.threshold is not None:
                values["batch_attention/threshold"] = summary.threshold
            pl_module.log_dict(values, batch_size=1)

    # State -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state, for Lightning's checkpoints."""
        return self.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a checkpoint, if it is loaded for training.

        Raises:
            StateError: If the state has other options, or is damaged.
        """
        if self._loads_states:
            self.schedule.load_state_dict(state_dict)
            self._epochs_logged = self.schedule.epoch


class _Fit:
    """One ``Trainer.fit``: stands in for two methods of the trainer's strategy, training step and optimizer step.

    These are the strategy's and not the module's, so that the user's own ``optimizer_step`` runs once for each window.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, replay: Replay, samples: Callable[[Any], object]
    ) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._replay = replay
        self._samples = samples
        self._strategy: Any = trainer.strategy
        # The number, over all epochs, of the batch that was trained on last.
        self._batch: int | None = None
        self._training_step = self._strategy.training_step
        self._optimizer_step = self._strategy.optimizer_step
        self.installed = ExitStack()
        self.installed.enter_context(
            standing_in(self._strategy, training_step=self.training_step, optimizer_step=self.optimizer_step)
        )

    @property
    def is_at_last_batch(self) -> bool:
        """True while the current batch is the epoch's last."""
        trainer = self._trainer
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return bool(trainer.is_last_batch or ready == trainer.num_training_batches)

    @property
    def is_cut_short(self) -> bool:
        """True if the epoch ends because training does, before its last batch."""
        trainer = self._trainer
        is_over = trainer.should_stop or trainer.global_step >= trainer.max_steps != -1
        return bool(is_over) and not self.is_at_last_batch

    @property
    def _windows(self) -> int | None:
        """Windows in an epoch; None if Lightning does not know."""
        batches = self._trainer.num_training_batches
        return None if math.isinf(batches) else math.ceil(batches / self._trainer.accumulate_grad_batches)

    def warn_if_too_short(self) -> None:
        """Warn if training ends before any batch can be repeated."""
        trainer, windows = self._trainer, self._windows
        ends = [] if trainer.max_epochs in (None, -1) else [trainer.max_epochs]
        if windows and trainer.max_steps != -1:
            ends.append(trainer.max_steps / windows)
        if ends and not trainer.fast_dev_run:
            warn_of_too_few_epochs(self._replay.schedule, min(ends) - trainer.current_epoch, windows)

    def training_step(self, *args: Any) -> Any:
        """Make the first visit to a batch, in place of the strategy's method."""
        # Lightning recomputes BatchNorm's statistics for averaged weights: these batches lead to no update.
        if getattr(self._trainer.fit_loop, "_skip_backward", False):
            return self._training_step(*args)
        batch = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if batch == self._batch:
            raise several_visits(type(self._trainer.optimizers[0]).__name__)
        self._batch = batch
        if not self._replay.is_in_epoch:
            behind = self._trainer.fit_loop.epoch_loop.batch_idx // self._trainer.accumulate_grad_batches
            self._replay.begin_epoch(self._windows, at=behind)
        self._replay.hold(args)
        output = self._training_step(*args)
        self._note(output, args)
        return output

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Make the update of a window and those of its repeats, in place of the strategy's method."""
        output = self._optimizer_step(optimizer, closure, model, **kwargs)
        if not self._replay.is_in_window:
            return output
        with ExitStack() as stack:
            # What is logged of a window is logged once, at its first visit.
            for holder in (self._module, *self._trainer.callbacks):
                stack.enter_context(standing_in(holder, log=lambda *_, **__: None))
            for window in self._replay.repeats(is_last=self.is_at_last_batch):
                *others, last = (
                    partial(self._train_again, args, optimizer, is_first=index == 0)
                    for index, args in enumerate(window)
                )
                # As in Lightning, ranks exchange gradients with the last batch alone.
                with getattr(self._strategy, "block_backward_sync", nullcontext)():
                    for train_again in others:
                        train_again()
                self._optimizer_step(optimizer, last, model, **kwargs)
        return output

    def _train_again(self, args: tuple[Any, ...], optimizer: Any, *, is_first: bool) -> torch.Tensor | None:
        """Do what Lightning's closure does, without its counting and logging."""
        with torch.enable_grad():
            output = self._training_step(*args)
            loss = self._note(output, args)
            if is_first:
                self._zero_grad(optimizer)
            if loss is None:
                return None
            loss = loss / self._trainer.accumulate_grad_batches
            # A gradient scaler may scale the loss in place.
            value: torch.Tensor = loss.detach().clone()
            self._strategy.backward(loss, optimizer)
            return value

    def _zero_grad(self, optimizer: Any) -> None:
        trainer, module = self._trainer, self._module
        for callback in trainer.callbacks:
            callback.on_before_zero_grad(trainer, module, optimizer)
        module.on_before_zero_grad(optimizer)
        module.optimizer_zero_grad(trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, optimizer)

    def _note(self, output: Any, args: tuple[Any, ...]) -> torch.Tensor | None:
        loss: torch.Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
        if loss is not None:
            is_weighted = self._trainer.accumulate_grad_batches > 1 or self._trainer.world_size > 1
            self._replay.note(loss, self._samples(args[0]) if is_weighted else 1)
        return loss


def _check_module(trainer: Trainer, module: LightningModule) -> None:
    """Refuse modules and strategies that make updates themselves."""
    if not module.automatic_optimization:
        raise ProtocolError(
            f"{type(module).__name__} has automatic_optimization=False and makes its own updates, which cannot be "
            "repeated. Let Lightning optimize, or write the loop around schedule.attend(loader), schedule.decide(loss)"
        )
    if trainer.strategy.handles_gradient_accumulation:
        raise ProtocolError(
            f"{type(trainer.strategy).__name__} accumulates gradients and makes updates itself (as DeepSpeed does), "
            "so an update cannot be repeated. Use strategy='ddp' or 'fsdp'"
        )
