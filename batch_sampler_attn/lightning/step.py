"""Repeats inside Lightning's optimizer step, as Lightning makes it: precision, scaler, clipping, hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from batch_sampler_attn.lightning.packages import LightningModule, Trainer
from batch_sampler_attn.lightning.refusals import several_visits
from batch_sampler_attn.trainers.replay import Replay

_STEPS = ("training_step", "optimizer_step")


class RepeatingStep:
    """Stands in for two methods of one trainer's strategy: the training step and the optimizer step.

    It is the strategy's, and not the module's, so that a user's own ``optimizer_step`` is called once for each window,
    and copies of the module have nothing of it.

    Args:
        trainer: Whose strategy it is.
        module: That is trained.
        replay: Keeps the window under way.
        samples: How many there are in a batch.
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
        # What was set on the instance by others, and is to be put back.
        self._before = {name: vars(self._strategy)[name] for name in _STEPS if name in vars(self._strategy)}
        self._training_step = self._strategy.training_step
        self._optimizer_step = self._strategy.optimizer_step

    def attach(self) -> None:
        """Have the strategy call this."""
        for name in _STEPS:
            setattr(self._strategy, name, getattr(self, name))

    def detach(self) -> None:
        """Leave the strategy as it was."""
        for name in _STEPS:
            vars(self._strategy).pop(name, None)
        vars(self._strategy).update(self._before)

    @property
    def is_at_last_batch(self) -> bool:
        """Whether the batch that is out is the epoch's last."""
        trainer = self._trainer
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return bool(trainer.is_last_batch or ready == trainer.num_training_batches)

    @property
    def is_cut_short(self) -> bool:
        """Whether the epoch is over because training is, and neither at its last batch nor where the module ends it."""
        trainer = self._trainer
        is_over = trainer.should_stop or trainer.global_step >= trainer.max_steps != -1
        return bool(is_over) and not self.is_at_last_batch

    def training_step(self, *args: Any) -> Any:
        """The first visit to a batch.

        Args:
            args: What Lightning gives the user's ``training_step``: the batch, and its index if it is wanted.

        Returns:
            What that returns.

        Raises:
            ProtocolError: If the optimizer trains on the batch a second time within its step.
        """
        # Where statistics of BatchNorm are gathered anew, as for averaged weights, batches come to no update.
        if getattr(self._trainer.fit_loop, "_skip_backward", False):
            return self._training_step(*args)
        batch = self._trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if batch == self._batch:
            raise several_visits(type(self._trainer.optimizers[0]).__name__)
        self._batch = batch
        if not self._replay.is_in_epoch:
            self._begin_epoch()
        self._replay.hold(args)
        output = self._training_step(*args)
        self._note(output, args)
        return output

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """The update of a window, and those of its repeats.

        Args:
            optimizer: As a strategy takes it.
            closure: Likewise: trains on the window's last batch.
            model: Likewise.
            kwargs: Likewise.

        Returns:
            What the first update returns.
        """
        output = self._optimizer_step(optimizer, closure, model, **kwargs)
        if self._replay.is_in_window:
            with _unlogged(self._trainer, self._module):
                for window in self._replay.repeats(is_last=self.is_at_last_batch):
                    *others, last = (
                        partial(self._train_again, args, optimizer, is_first=index == 0)
                        for index, args in enumerate(window)
                    )
                    # Ranks exchange gradients with the last batch's, as Lightning has it.
                    with getattr(self._strategy, "block_backward_sync", nullcontext)():
                        for train_again in others:
                            train_again()
                    self._optimizer_step(optimizer, last, model, **kwargs)
        return output

    def _begin_epoch(self) -> None:
        trainer = self._trainer
        accumulated, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
        windows = None if math.isinf(batches) else math.ceil(batches / accumulated)
        self._replay.begin_epoch(windows, at=trainer.fit_loop.epoch_loop.batch_idx // accumulated)

    def _train_again(self, args: tuple[Any, ...], optimizer: Any, *, is_first: bool) -> torch.Tensor | None:
        """What Lightning's closure does, but for what it counts and logs."""
        with torch.enable_grad():
            output = self._training_step(*args)
            loss = self._note(output, args)
            if is_first:
                self._zero_grad(optimizer)
            if loss is None:
                return None
            loss = loss / self._trainer.accumulate_grad_batches
            # Scaled in what follows, and perhaps in place.
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
            is_weighed = self._trainer.accumulate_grad_batches > 1 or self._trainer.world_size > 1
            self._replay.note(loss, self._samples(args[0]) if is_weighed else 1)
        return loss


@contextmanager
def _unlogged(trainer: Any, module: LightningModule) -> Iterator[None]:
    """``self.log`` does nothing: what is logged of a window is logged once, of its first visit, as without repeats."""
    holders = [vars(holder) for holder in (module, *trainer.callbacks)]
    before = [holder.get("log") for holder in holders]
    for holder in holders:
        holder["log"] = _log_nothing
    try:
        yield
    finally:
        for holder, log in zip(holders, before, strict=True):
            if log is None:
                del holder["log"]
            else:
                holder["log"] = log


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass
