"""Callbacks for attention to batches and to samples in Lightning, from either of its packages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch

from batch_sampler_attn.accumulation import refuse_own_loader, samples_in
from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.ranks import RanksOption, process_group_size
from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.trainers import replay

__all__ = ["BatchAttention", "SampleAttentionCallback"]


def _callback_class() -> type:
    """A subclass of ``Callback`` from each installed package, since a trainer does not accept the other's."""
    classes = []
    for name in ("lightning.pytorch", "pytorch_lightning"):
        with suppress(ImportError):
            classes.append(import_module(name).Callback)
    if not classes:
        with replay.importing("lightning"):
            import_module("lightning.pytorch")
    return type("Callback", tuple(classes), {})


if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    Callback = _callback_class()


class _StateKey:
    """The key in checkpoints. A Trainer reads it at construction, even from a class among its callbacks."""

    def __get__(self, callback: object, owner: type) -> str:
        if callback is None:
            raise OptionError(f"callbacks has the class {owner.__name__}; give an instance: {owner.__name__}(k=1.2)")
        return owner.__qualname__


class BatchAttention(Callback):
    """Repeats batches inside Lightning's optimizer step, without changes to the module and the loaders.

    With ``accumulate_grad_batches=n``, the n batches of one update are decided on and repeated together, by the mean of
    their losses over samples. The trainer's mixed precision, gradient scaler, clipping and hooks apply to every update.
    Lightning's counters (``global_step``, learning-rate schedules, batches, checkpoints every n steps) do not count
    repeats, and ``self.log`` logs first visits. Objects that ``training_step`` itself updates, such as BatchNorm and
    torchmetrics, are updated at each visit. Lightning's checkpoints contain the schedule's state.

    Args:
        k: As in ``BatchAttentionSchedule``.
        schedule: An existing schedule, instead of options; available as an attribute in either case.
        ranks: "auto" makes all ranks decide on the mean of their losses. Other values are those of
            ``BatchAttentionSchedule``.
        samples: Returns the number of samples in a batch, or the sum of their weights, by which batches of an update
            and ranks are weighted. None takes the length of the batch's first tensor.
        log: Whether to log ``batch_attention/repeats`` and ``batch_attention/threshold`` once an epoch.
        options: Further options of ``BatchAttentionSchedule``.

    Raises:
        OptionError: If an option has a value that is not allowed, or options are given together with a schedule.
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
        self.schedule = replay.schedule_from(schedule, {"k": k, **options})
        self._replay = replay.Replay(self.schedule)
        self._samples = samples or samples_in
        self._logs = log
        self._epochs_logged = 0
        # A checkpoint may be loaded to evaluate it; training then resumes from the present state.
        self._loads_states = True
        # The number, over all epochs, of the last batch trained on.
        self._batch: int | None = None
        self._installed = ExitStack()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what is unsupported, as far as it is known before any data is loaded."""
        self._loads_states = stage == "fit"
        is_manual = not pl_module.automatic_optimization
        if stage == "fit" and (is_manual or trainer.strategy.handles_gradient_accumulation):
            raise ProtocolError(
                f"{type(pl_module if is_manual else trainer.strategy).__name__} makes updates itself, which cannot be "
                "repeated. Use automatic optimization with strategy='ddp' or 'fsdp', or a loop of your own"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Install the repeats, once loaders and optimizers exist."""
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise replay.no_one_loss("LBFGS trains several times")
        windows = _windows_of(trainer)
        ends = [] if trainer.max_epochs in (None, -1) else [trainer.max_epochs]
        if windows and trainer.max_steps != -1:
            ends.append(trainer.max_steps / windows)
        if ends and not trainer.fast_dev_run:
            replay.warn_of_too_few_epochs(self.schedule, min(ends) - trainer.current_epoch, windows)
        self._batch = None
        # Methods of the strategy, not of the module, so that a user's own optimizer_step runs once for each window.
        train, update = trainer.strategy.training_step, trainer.strategy.optimizer_step
        first, updating = partial(self._visit_first, trainer, train), partial(self._update, trainer, train, update)
        self._installed.enter_context(
            replay.standing_in(trainer.strategy, training_step=first, optimizer_step=updating)
        )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Check the loaders, which Lightning may load again for any epoch."""
        for loader in trainer.fit_loop._combined_loader.flattened:
            refuse_own_loader(loader, "BatchAttention repeats them, as windows with accumulate_grad_batches=n")

    def on_exception(self, *_: Any) -> None:
        """Leave the trainer as it was; the epoch in progress sets no threshold."""
        self._replay.end_epoch(finished=False)
        self.teardown()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Leave the trainer as it was."""
        self._installed.close()
        self._loads_states = True

    def _visit_first(self, trainer: Any, train: Any, *args: Any) -> Any:
        """Make the first visit to a batch, in place of the strategy's ``training_step``."""
        loop = trainer.fit_loop.epoch_loop
        # Lightning recomputes BatchNorm's statistics for averaged weights, with batches that lead to no update.
        if getattr(trainer.fit_loop, "_skip_backward", False):
            return train(*args)
        if loop.batch_progress.total.ready == self._batch:
            raise replay.no_one_loss(f"{type(trainer.optimizers[0]).__name__} trains several times")
        self._batch = loop.batch_progress.total.ready
        if not self._replay.is_in_epoch:
            self._replay.begin_epoch(_windows_of(trainer), at=loop.batch_idx // trainer.accumulate_grad_batches)
        self._replay.hold(args)
        output, _ = self._visit(trainer, train, args)
        return output

    def _update(self, trainer: Any, train: Any, update: Any, optimizer: Any, closure: Any, **kwargs: Any) -> Any:
        """Make the update of a window and those of its repeats, in place of the strategy's ``optimizer_step``."""
        output = update(optimizer, closure, **kwargs)
        if not self._replay.is_in_window:
            return output
        with ExitStack() as stack:
            # A window is logged once, at its first visit.
            for holder in (trainer.lightning_module, *trainer.callbacks):
                stack.enter_context(replay.standing_in(holder, log=lambda *_, **__: None))
            for window in self._replay.repeats(is_last=_is_at_last_batch(trainer)):
                *others, last = (
                    partial(self._visit_again, trainer, train, batch, optimizer, is_first=index == 0)
                    for index, batch in enumerate(window)
                )
                # As in Lightning, ranks exchange gradients with the last batch alone.
                with getattr(trainer.strategy, "block_backward_sync", nullcontext)():
                    for visit_again in others:
                        visit_again()
                update(optimizer, last, **kwargs)
        return output

    def _visit_again(self, trainer: Any, train: Any, args: Any, optimizer: Any, *, is_first: bool) -> Any:
        """Do what Lightning's closure does, without its counting and logging."""
        module = trainer.lightning_module
        with torch.enable_grad():
            _, loss = self._visit(trainer, train, args)
            if is_first:
                for callback in trainer.callbacks:
                    callback.on_before_zero_grad(trainer, module, optimizer)
                module.on_before_zero_grad(optimizer)
                module.optimizer_zero_grad(trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, optimizer)
            if loss is None:
                return None
            loss = loss / trainer.accumulate_grad_batches
            # A gradient scaler may scale the loss in place.
            value = loss.detach().clone()
            trainer.strategy.backward(loss, optimizer)
            return value

    def _visit(self, trainer: Any, train: Any, args: Any) -> tuple[Any, Any]:
        """Call the user's step and note its loss; return the step's output and the loss."""
        is_weighted = trainer.accumulate_grad_batches > 1 or trainer.world_size > 1
        # Counted first: the step may take the batch apart.
        samples = self._samples(args[0]) if is_weighted else 1
        output = train(*args)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        self._replay.note(loss, samples)
        return output, loss

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Skip a window if the module's ``optimizer_step`` made no update for it."""
        is_last = _is_at_last_batch(trainer)
        if is_last or (args[-1] + 1) % trainer.accumulate_grad_batches == 0:
            self._replay.skip(is_last=is_last)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """End an epoch that did not end with its last window, and log."""
        is_stopped = trainer.should_stop or trainer.global_step >= trainer.max_steps != -1
        self._replay.end_epoch(finished=not is_stopped or _is_at_last_batch(trainer))
        if self._logs and self.schedule.epoch > self._epochs_logged:
            self._epochs_logged = self.schedule.epoch
            summary = self.schedule.last_summary
            values = {"batch_attention/repeats": float(summary.repeats)}
            if summary.threshold is not None:
                values["batch_attention/threshold"] = summary.threshold
            pl_module.log_dict(values, batch_size=1)

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


class SampleAttentionCallback(Callback):
    """Saves a ``SampleAttention`` in Lightning's checkpoints, logs it, and refuses epochs other than its own.

    ``fit`` takes ``attention.attend(loader)``, and ``training_step`` returns ``attention.weighted_mean(losses)``.

    Args:
        attention: For one trainer. On several ranks, each has its own, and checkpoints contain the states of all.

    Raises:
        ProtocolError: From ``Trainer.fit``, if a batch is not the attention's next one.
    """

    def __init__(self, attention: SampleAttention) -> None:
        super().__init__()
        self.attention = attention

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Refuse a batch that is not the attention's next one."""
        made, length, batches = self.attention.updates, len(self.attention), trainer.num_training_batches
        if batch_idx != made or batches not in (length, trainer.fast_dev_run):
            raise ProtocolError(
                f"the trainer is at batch {batch_idx} of {batches}, and SampleAttention at {made} of {length}. Give it "
                "attention.attend(loader), and updates=n in place of limit_train_batches=n. Resume from a checkpoint "
                "that was written after a step, with this callback; or start with a new SampleAttention"
            )

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Log the epoch."""
        for name in ("pruned", "extra_updates"):
            pl_module.log(f"sample_attention/{name}", float(getattr(self.attention.summary, name)), batch_size=1)

    def state_dict(self) -> dict[Any, Any]:
        """Return the states of all ranks, since Lightning saves only what the first rank returns."""
        states: list[Any] = [self.attention.state_dict()] * process_group_size()
        if len(states) > 1:
            torch.distributed.all_gather_object(states, states[0])
        return dict(enumerate(states))

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Resume, unless the checkpoint is loaded for an evaluation."""
        states = checkpoint["callbacks"].get(self.state_key)
        if states and trainer.state.fn == "fit":
            if len(states) != trainer.world_size:
                raise StateError(f"the checkpoint is from {len(states)} ranks, not {trainer.world_size}; use as many")
            self.attention.load_state_dict(states[trainer.global_rank])
            if self.attention.updates == len(self.attention):
                list(self.attention.attend())  # which ends the epoch; Lightning resumes with the next one


def _windows_of(trainer: Any) -> int | None:
    """The number of windows in an epoch; None if Lightning does not know."""
    batches = trainer.num_training_batches
    return None if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)


def _is_at_last_batch(trainer: Any) -> bool:
    """True while the current batch is the epoch's last."""
    ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return bool(trainer.is_last_batch or ready == trainer.num_training_batches)
