"""Attention in transformers: ``class MyTrainer(BatchAttentionMixin, Trainer)``, or ``SampleAttentionMixin``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset

from batch_sampler_attn.accumulation import refuse_own_loader, samples_in
from batch_sampler_attn.errors import ProtocolError, StateError, warn
from batch_sampler_attn.options import length_of
from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.schedule import BatchAttentionSchedule
from batch_sampler_attn.trainers import replay
from batch_sampler_attn.trainers.accelerate import check_updates

with replay.importing("transformers"):
    from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer
else:  # The class of the trainer comes after the mixin, and may be any subclass of Trainer.
    Trainer = object

_STATE_NAME = "batch_attention.json"
# Undocumented methods of the trainer, which another version may rename.
_UNDOCUMENTED = ("_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")
# Methods by which trainers of TRL make their batches inside the training step.
_GENERATING = ("_prepare_inputs", "generate_on_policy_outputs")
# A loader's options apart from its dataset and its order.
_LOADING = "collate_fn num_workers pin_memory worker_init_fn multiprocessing_context prefetch_factor persistent_workers"


class BatchAttentionMixin(Trainer):
    """Repeats batches inside the optimizer step of a ``transformers.Trainer``, or of a subclass such as SFTTrainer.

    With ``gradient_accumulation_steps=n``, the schedule decides on the n batches of one update. Their loss is the mean
    over ``num_items_in_batch`` (tokens) if the loss is divided by that number, and otherwise the mean over samples.

    The trainer's counters (``global_step``, the learning-rate schedule, epochs, tokens, steps between logs and
    checkpoints) do not count repeats. Its logs have the training loss of first visits, ``batch_attention/repeats``
    since the last log, and ``batch_attention/threshold``. Checkpoints have the schedule, in ``batch_attention.json``.

    Args:
        args: Arguments of the trainer.
        schedule: For this trainer only; also an attribute. None creates one. Ranks need ``ranks=MeanOverRanks()``.
        samples: Returns the number of samples in a batch, or the sum of their weights. It weights losses that are not
            divided by items, in windows and on ranks. None takes the length of the batch's first tensor.
        kwargs: Keyword arguments of the trainer.

    Raises:
        OptionError: If ``schedule`` is not a ``BatchAttentionSchedule``.
        ProtocolError: If the schedule belongs to a sampler, or no trainer comes after the mixin. From ``train``, before
            the first update, if the trainer works in a way that cannot be repeated.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(BatchAttentionMixin)]:
            if hasattr(base, _UNDOCUMENTED[0]) and not issubclass(base, BatchAttentionMixin):
                order = f"class {cls.__name__}(BatchAttentionMixin, {base.__name__})"
                raise ProtocolError(f"{base.__name__} before BatchAttentionMixin repeats nothing. Write {order}")

    def __init__(
        self, *args: Any, schedule: BatchAttentionSchedule | None = None, samples: Any = None, **kwargs: Any
    ) -> None:
        for name in _UNDOCUMENTED:
            if not hasattr(super(), name):
                raise ProtocolError(
                    f"no class after BatchAttentionMixin has {name}, which puts the schedule into checkpoints. Write "
                    "class MyTrainer(BatchAttentionMixin, Trainer); with a newer transformers, install an older one"
                )
        replay.refuse_own_callbacks(kwargs.get("callbacks") or [])
        self.schedule = replay.schedule_from(schedule, {})
        self._repeating = _Repeating(self, samples or samples_in)
        self._at_first = self.schedule.state_dict()
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with repeats. Arguments and result are the trainer's."""
        check_updates(self.accelerator, self.args.n_gpu)
        for base in type(self).__mro__:
            if base.__module__.partition(".")[0] == "trl" and not vars(base).keys().isdisjoint(_GENERATING):
                raise ProtocolError(
                    f"{base.__name__} makes its batches inside the training step, so they cannot be trained on again. "
                    "Use a trainer whose batches exist beforehand, such as SFTTrainer, DPOTrainer or RewardTrainer"
                )
        if self.model_init is not None and self.schedule.state_dict() != self._at_first:
            # The model is a new one, as in each trial of a hyperparameter search.
            self.schedule.load_state_dict(self._at_first)
        with self._repeating.installed():
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does, and add repeats and threshold to a training loss."""
        if "loss" in logs:
            logs = {**logs, "batch_attention/repeats": self._repeating.repeats}
            self._repeating.repeats = 0
            if self.schedule.threshold is not None:
                logs["batch_attention/threshold"] = self.schedule.threshold
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            Path(output_dir, _STATE_NAME).write_text(json.dumps(self.schedule.state_dict()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (path := Path(checkpoint, _STATE_NAME)).is_file():
            self.schedule.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
        elif checkpoint is not None:
            warn(f"the checkpoint has no {_STATE_NAME}: the schedule keeps its state, and this epoch sets no threshold")


class _Repeating(TrainerCallback):
    """Repeats a trainer's windows: after the update, and before the learning-rate schedule and all counters."""

    def __init__(self, trainer: Any, samples: Callable[[Any], object]) -> None:
        self._trainer = trainer
        self._replay = replay.Replay(trainer.schedule)
        self._samples = samples
        self.repeats = 0  # since the last log
        self._is_repeating = False
        # In this epoch: the number of windows, if it is known, and of finished windows.
        self._windows: int | None = None
        self._finished_windows = 0
        self._is_first_epoch = True
        # In this training: whether batches' losses are divided by the window's items, and add up to the window's loss.
        self._are_divided: bool | None = None
        # In this window: the model in its wrappers; losses that add up, and the weight of their sum between ranks.
        self._model: Any = None
        self._parts: list[Any] = []
        self._weight: object = 1
        # In this batch: the losses that compute_loss returned; None outside of a visit.
        self._losses: list[Any] | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the trainer call this object; at the end, restore the trainer, and leave an open epoch unfinished."""
        trainer = self._trainer
        # On the instance, they come before any override in a subclass.
        own = {name: getattr(self, name) for name in ("get_train_dataloader", "training_step", "compute_loss")}
        self._trainers = SimpleNamespace(**{name: getattr(trainer, name) for name in own})
        # After the user's callbacks, which see an update before its window is repeated.
        trainer.add_callback(self)
        try:
            with replay.standing_in(trainer, **own):
                yield
        finally:
            self._replay.end_epoch(finished=False)
            trainer.remove_callback(self)
            self._model = None

    def get_train_dataloader(self) -> Any:
        loader = self._trainers.get_train_dataloader()
        refuse_own_loader(loader, "BatchAttentionMixin repeats batches by itself")
        return loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Keep a batch, and make its first visit."""
        if not self._replay.is_in_epoch:
            self._replay.begin_epoch(self._windows, at=self._finished_windows)
        self._model = model
        self._replay.hold((inputs, num_items_in_batch))
        return self._visit(inputs, num_items_in_batch)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and keep it if the batch is trained on."""
        output = self._trainers.compute_loss(*args, **kwargs)
        if self._losses is not None:
            loss = output[0] if isinstance(output, tuple) else output
            # A copy: the training step may scale its loss in place.
            self._losses.append(loss.detach().clone() if isinstance(loss, torch.Tensor) else loss)
        return output

    def on_train_begin(self, args: Any, state: Any, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
        """Check the length of training."""
        batches = length_of(train_dataloader)
        windows = None if batches is None else max(1, math.ceil(batches / args.gradient_accumulation_steps))
        epochs = None if windows is None else (state.max_steps - state.global_step) / windows
        replay.warn_of_too_few_epochs(self._trainer.schedule, epochs, windows)
        self._windows = windows
        # The epoch of an attempt that failed: the trainer begins again with smaller batches.
        self._replay.end_epoch(finished=False)
        self._is_first_epoch = True
        self._is_repeating = False
        self.repeats = 0
        self._parts = []
        self._are_divided = getattr(self._trainer, "loss_is_scaled_for_ga", None)

    def on_epoch_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._finished_windows = 0
        if self._is_first_epoch and not args.ignore_data_skip:
            # To the trainer, all steps on a stream without a length belong to one epoch.
            self._finished_windows = state.global_step if self._windows is None else state.global_step % self._windows
        self._is_first_epoch = False

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After a window's update: decide, and repeat."""
        if self._is_repeating:
            return
        self._finished_windows += 1
        self._note_parts()
        self._is_repeating = True
        for window in self._replay.repeats(is_last=self._finished_windows == self._windows):
            self.repeats += 1
            self._train_again(window)
        self._is_repeating = False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._replay.is_in_window:
            raise ProtocolError(
                f"{type(self._trainer).__name__} ended a step without on_optimizer_step, in which batches repeat. Keep "
                "Trainer's training loop, or write the loop around schedule.attend(loader)"
            )

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """End an epoch of unknown length. One that ``max_steps`` cut short sets no threshold."""
        self._replay.end_epoch(finished=not self._trainer.control.should_training_stop)

    def _train_again(self, window: Iterable[Any]) -> None:
        """Make an update as the trainer does, without counting and logging it."""
        trainer, model = self._trainer, self._model
        args, accelerator, callbacks = trainer.args, trainer.accelerator, trainer.callback_handler
        does_sync_each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        model.zero_grad()
        *others, last = window
        for inputs, items in others:
            accelerator.sync_gradients = False
            with nullcontext() if does_sync_each else accelerator.no_sync(model=model):
                self._visit(inputs, items)
        accelerator.sync_gradients = True
        self._visit(*last)
        self._note_parts()
        # Even without a limit: this unscales gradients, as at the first visit, for callbacks that read them.
        limit = args.max_grad_norm if (args.max_grad_norm or 0) > 0 else math.inf
        accelerator.clip_grad_norm_(model.parameters(), limit)
        trainer.control = callbacks.on_pre_optimizer_step(args, trainer.state, trainer.control)
        trainer.optimizer.step()
        trainer.control = callbacks.on_optimizer_step(args, trainer.state, trainer.control)

    def _visit(self, inputs: Any, items: Any) -> Any:
        """Forward and backward pass of one batch, whose loss is added to the window's."""
        trainer, is_divided, asked = self._trainer, self._are_divided, None
        if is_divided is None:
            # As the trainer assumes. But many models receive the items and ignore them, which one visit shows.
            receives_items = trainer.model_accepts_loss_kwargs and items is not None
            is_divided = receives_items or trainer.compute_loss_func is not None
            is_of_one_batch = trainer.args.world_size == trainer.args.gradient_accumulation_steps == 1
            if is_divided and isinstance(items, torch.Tensor) and not is_of_one_batch:
                asked = items.detach().to(torch.float32).requires_grad_()
        # Weights come first: the step may take the batch apart.
        weight = self._weight_of(inputs, items, is_divided=is_divided)
        weight_of_mean = weight if asked is None else self._weight_of(inputs, items, is_divided=False)
        losses: list[Any] = []
        self._losses = losses
        output = self._trainers.training_step(self._model, inputs, items if asked is None else asked)
        self._losses = None
        if len(losses) != 1:
            raise replay.no_one_loss(f"{type(trainer).__name__}.training_step calls compute_loss {len(losses)} times")
        if asked is not None:
            # A loss that was divided by the items has a gradient with respect to them.
            is_divided = self._are_divided = asked.grad is not None
        if is_divided:
            self._parts.append(losses[0])
            self._weight = weight
        else:
            self._replay.note(losses[0], weight_of_mean)
        return output

    def _note_parts(self) -> None:
        """Note the loss of a window that is the sum of its batches' losses."""
        if self._parts:
            # A single loss is noted unchanged, bit for bit.
            loss, *others = self._parts
            for other in others:
                loss = float(loss) + float(other)
            self._replay.note(loss, self._weight)
            self._parts = []

    def _weight_of(self, inputs: Any, items: Any, *, is_divided: bool) -> object:
        """The weight of the loss: of a mean in its window and between ranks, of a sum between ranks only."""
        args = self._trainer.args
        if args.world_size == 1 and (is_divided or args.gradient_accumulation_steps == 1):
            return 1
        if is_divided and items is not None:
            # If losses are divided by the items of all ranks, their plain mean over ranks is that over all items.
            return 1 if args.average_tokens_across_devices else items
        return self._samples(inputs)


class SampleAttentionMixin(Trainer):
    """Trains a ``transformers.Trainer``, or a subclass such as SFTTrainer, on the batches of a ``SampleAttention``.

    An update uses the weighted mean of its samples' losses, over ``gradient_accumulation_steps`` batches. Logs have
    ``sample_attention/pruned`` and ``/extra_updates`` of the epoch so far. Checkpoints have each rank's state.

    Args:
        args: Arguments of the trainer.
        attention: For ``train_dataset``, with ``per_device_train_batch_size``; also an attribute.
        kwargs: Keyword arguments of the trainer. ``compute_loss_func``, or your own ``compute_loss``, must return the
            loss of each sample, of shape (batch,): see ``sequence_losses``. SFTTrainer needs neither.

    Raises:
        ProtocolError: From ``train``, if the trainer's batches have another order or size.
        LossError: From ``train``, if there is not one loss for each sample.
    """

    loss_is_scaled_for_ga = False  # so the trainer divides by the number of batches of the update

    def __init__(self, *args: Any, attention: SampleAttention, **kwargs: Any) -> None:
        if isinstance(self, BatchAttentionMixin):
            raise ProtocolError("BatchAttentionMixin repeats the batches of other loaders; leave one mixin out")
        self.attention = attention
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train on the attention's batches. Arguments and result are the trainer's."""
        self._batches = self._draw(())
        try:
            return super().train(*args, **kwargs)
        finally:
            self._batches.close()

    def get_train_dataloader(self) -> Any:
        """A loader of the trainer's dataset in the attention's order."""
        check_updates(self.accelerator, self.args.n_gpu)
        loader, attention = super().get_train_dataloader(), self.attention
        batches = getattr(loader.batch_sampler, "batch_sampler", loader.batch_sampler)
        size, order = getattr(batches, "batch_size", None), getattr(batches, "sampler", batches)
        needed, smoothing = attention.batch_size, self.args.label_smoothing_factor
        if size != needed or not isinstance(order, RandomSampler) or smoothing:
            raise ProtocolError(
                f"SampleAttention needs per_device_train_batch_size={needed} (it is {size}), no order but its own "
                f"sampler= (there is a {type(order).__name__}), and label_smoothing_factor=0 (it is {smoothing})"
            )
        options = {name: getattr(loader, name) for name in _LOADING.split()}
        loader = DataLoader(loader.dataset, batch_sampler=attention, **options)
        self._batches = self._draw(attention.attend(loader))
        # The attention resumes by itself, so what a resumed trainer skips are mere numbers.
        numbers, generator = [[0]] * len(attention), torch.Generator()
        return DataLoader(_Next(self._batches), batch_sampler=numbers, collate_fn=itemgetter(0), generator=generator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, *_: Any, **__: Any) -> Any:
        """The batches of an update, each drawn after the losses of the previous one have arrived."""
        return Subset(_Next(epoch_iterator), range(num_batches)), None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, *_: Any, **__: Any) -> Any:
        """In training, report the losses of samples and return their weighted mean."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        outputs: list[Any] = [None]
        with model.register_forward_hook(lambda *call: outputs.append(call[-1])):
            losses: Any = super().compute_loss(model, inputs)
        if not losses.ndim and hasattr(outputs[-1], "label_mask"):
            # SFTTrainer's mean over tokens, unless it uses another loss.
            sums, tokens = -outputs[-1].log_probs.sum(1), outputs[-1].label_mask.sum(1)
            if torch.allclose(losses, sums.sum() / tokens.sum().clamp(min=1), rtol=1e-4):
                losses = sums / tokens.clamp(min=1)
        loss = self.attention.weighted_mean(losses)
        return (loss, outputs[-1]) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the trainer does, and add the attention's counts to a training loss."""
        if "loss" in logs:
            for name in ("pruned", "extra_updates"):
                logs[f"sample_attention/{name}"] = getattr(self.attention.summary, name)
        super().log(logs, *args, **kwargs)

    def _draw(self, attended: Any) -> Generator[Any]:
        while True:
            # In mid-epoch, the random number for workers was drawn before the checkpoint.
            attended.generator = torch.Generator() if self.attention.updates else None
            yield from attended

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # another rank may make it later
        path = Path(output_dir, f"sample_attention_{self.args.process_index}.json")
        path.write_text(json.dumps(self.attention.state_dict()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            path = Path(checkpoint, f"sample_attention_{self.args.process_index}.json")
            if not path.is_file():
                raise StateError(
                    f"{checkpoint} has no {path.name}, the state of attention on this rank. Resume from a checkpoint "
                    "that this mixin wrote, on as many ranks; or train without resume_from_checkpoint"
                )
            self.attention.load_state_dict(json.loads(path.read_text(encoding="utf-8")))


class _Next(Dataset[Any]):
    """A dataset that returns the next item of an iterator, whatever the index."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator

    def __getitem__(self, index: int) -> Any:
        return next(self.iterator)


def sequence_losses(outputs: Any, labels: Any, *, shift: bool = True, **_: Any) -> torch.Tensor:
    """The cross-entropy of each sample, (batch,): a ``compute_loss_func`` for language models and classification.

    Args:
        outputs: Logits, (batch, tokens, vocabulary) or (batch, classes), or a model's outputs that have them.
        labels: (batch,), or (batch, tokens): then the loss is the mean over labels other than -100, 0 without any.
        shift: Whether a token's logits predict the next token's label, as in causal language models.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    labels = functional.pad(labels[:, 1:], (0, 1), value=-100) if shift and labels.ndim > 1 else labels
    losses = functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="none")
    losses, labels = losses.view(len(labels), -1), labels.view(len(labels), -1)
    return losses.sum(1) / (labels != -100).sum(1).clamp(min=1)  # type: ignore[no-any-return]
