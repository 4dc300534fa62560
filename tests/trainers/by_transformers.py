"""Trainings in transformers' Trainer, and the same by hand."""

import logging
from functools import partial
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers import TrainerCallback as Callback

from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.trainers.transformers import BatchAttentionMixin, SampleAttentionMixin, sequence_losses
from tests.trainers.cases import SAMPLES, Points, make_network
from tests.trainers.plain_loop import finish, make_schedule, plain_loop
from tests.trainers.ranks import RANKS
from tests.trainers.sample_loop import finish_samples, make_attention, sample_loop

logging.getLogger("transformers").setLevel(logging.ERROR)


class NamedPoints(Points):
    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": self.targets[index]}


class Texts(Dataset):
    """Lines of tokens, of which a part of each is to be predicted."""

    def __init__(self, samples=SAMPLES):
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(0, 24, (samples, 6), generator=generator)
        begins = torch.randint(0, 4, (samples, 1), generator=generator)
        self.labels = self.tokens.masked_fill(torch.arange(6) < begins, -100)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A user's module, which receives none of the trainer's counts."""

    # Looked at for what kind of problem it is.
    config = SimpleNamespace()

    def __init__(self, case):
        super().__init__()
        self.layers = make_network(case)

    def forward(self, inputs, labels=None):
        logits = self.layers(inputs)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class Counted(Classifier):
    """A module that receives the window's items, and takes the mean over the batch all the same."""

    def forward(self, inputs, labels=None, num_items_in_batch=None, **_):
        return super().forward(inputs, labels)


def make_model(case):
    torch.manual_seed(5)
    if case.model != "gpt2":
        return (Counted if case.model == "counted" else Classifier)(case)
    config = GPT2Config(
        vocab_size=24, n_positions=8, n_embd=16, n_layer=1, n_head=2, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    # Which GPT-2's class does not say, so that the trainer would count the first token of each row, too.
    model.loss_type = "ForCausalLM"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = min(module.p, case.dropout)
    return model


def make_dataset(case, samples=SAMPLES, dtype=torch.float32):
    return Texts(samples) if case.model == "gpt2" else NamedPoints(samples, dtype)


def make_arguments(case, folder, arguments_class=TrainingArguments, **arguments):
    return arguments_class(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": case.accumulation,
            "num_train_epochs": case.epochs,
            "max_grad_norm": case.clip or 0.0,
            "bf16": case.precision == "bf16",
            "optim": {"adam": "adamw_torch", "sgd": "sgd"}[case.optimizer],
            "learning_rate": {"adam": 0.01, "sgd": 0.1}[case.optimizer],
            # Does not depend on the length of training.
            "lr_scheduler_type": "inverse_sqrt",
            "weight_decay": 0.01,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "dataloader_num_workers": case.workers,
            "seed": 7,
            "data_seed": 7,
            **case.trainer,
            **arguments,
        }
    )


class NotesRates:
    """A user's trainer, which notes the learning rate of each update, and which may have a gradient scaler."""

    def create_optimizer(self, *args, **kwargs):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            self.rates = []
            optimizer.register_step_pre_hook(lambda *_: self.rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        if hasattr(self.args, "scaler"):
            # Which accelerate has on a GPU alone.
            self.accelerator.scaler = self.args.scaler
            self.accelerator.native_amp = True
            self.accelerator.state._mixed_precision = "fp16"


class MyTrainer(NotesRates, BatchAttentionMixin, Trainer):
    step = loader = None

    def get_train_dataloader(self):
        return super().get_train_dataloader() if self.loader is None else self.loader

    def training_step(self, model, inputs, *args, **kwargs):
        return super().training_step(model, self.step(inputs) if self.step else inputs, *args, **kwargs)


class Stop(Callback):
    """Ends the training, or the epoch, after so many windows."""

    def __init__(self, at, what):
        self.at, self.what = at, what

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.at:
            setattr(control, self.what, True)


def make_trainer(case, folder, trainer_class=MyTrainer, arguments=None, **options):
    options = {"model": make_model(case), "train_dataset": make_dataset(case), **options}
    arguments = make_arguments(case, folder, **(arguments or {}))
    if case.precision == "scaler":
        arguments.scaler = case.scaler()
    return trainer_class(args=arguments, **options)


def train(
    case,
    folder,
    trainer_class=MyTrainer,
    *,
    step=None,
    loader=None,
    end_epoch_at=None,
    stop_at=None,
    resume=None,
    saves=0,
    schedule=None,
    callbacks=(),
    options=None,
    **arguments,
):
    """The run, and the trainer, which saves every so many steps."""
    schedule, recorder = schedule or make_schedule(**case.options)
    if saves:
        arguments.update(save_strategy="steps", save_steps=saves)
    trainer = make_trainer(case, folder, trainer_class, arguments, schedule=schedule, **(options or {}))
    trainer.step, trainer.loader = step, loader
    stops = {"should_training_stop": stop_at, "should_epoch_stop": end_epoch_at}
    for callback in [*callbacks, *(Stop(at, what) for what, at in stops.items() if at)]:
        trainer.add_callback(callback)
    torch.manual_seed(6)
    trainer.train(resume_from_checkpoint=resume)
    return finish(schedule, recorder, trainer.model, getattr(trainer, "rates", ())), trainer


def checkpoint(folder, steps):
    return folder / f"checkpoint-{steps}"


def given(case, folder, model=None):
    """A model, and the trainer's own loader, optimizer and learning-rate schedule, without a mixin."""
    arguments = make_arguments(case, folder)
    trainer = Trainer(model=model or make_model(case), args=arguments, train_dataset=make_dataset(case))
    trainer.create_optimizer_and_scheduler(case.trainer.get("max_steps", int(case.epochs * case.windows)))
    return trainer.model.train(), trainer.get_train_dataloader(), (trainer.optimizer, trainer.lr_scheduler)


def tokens_in(batch):
    return (batch["labels"][..., 1:] != -100).sum()


def by_hand(case, folder, loss_of=None, *, loader=None, model=None, step=None, is_resumable=False, **options):
    """The plain loop's; by default GPT-2's losses are divided by the tokens of the window."""
    model, own, optimizers = given(case, folder, model)
    if loss_of is None and case.model == "gpt2":
        options["items_of"] = tokens_in
    if loss_of is None:

        def loss_of(model, batch, items=None):
            named = {} if items is None else {"num_items_in_batch": items}
            return model(**(step(batch) if step else batch), **named)["loss"]

    options["samples_of"] = lambda batch: len(batch["labels"])
    loader = own if loader is None else loader
    torch.manual_seed(6)
    return plain_loop(model, partial(loss_of, model), optimizers, loader, case, **options)


def is_left_as_it_was(trainer):
    own = {"get_train_dataloader", "training_step", "compute_loss"}
    return not own & set(vars(trainer)) and "_Repeating" not in trainer.callback_handler.callback_list


# On two ranks


def on_a_rank(rank, case, folder):
    schedule = make_schedule(**case.options, ranks=MeanOverRanks(timeout_seconds=60))
    arguments = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    options = {"model": make_model(case).double(), "train_dataset": make_dataset(case, 56, torch.float64)}
    run, trainer = train(case, folder / str(rank), schedule=schedule, options=options, **arguments)
    assert trainer.args.world_size == RANKS
    return run


def in_one_process(case, folder):
    """By hand, on the batches that the ranks have between them."""
    loader = list(DataLoader(make_dataset(case, 56, torch.float64), 8))
    return by_hand(case, folder, loader=loader, model=make_model(case).double())


# Attention to samples

ON_RANKS = {"per_device_train_batch_size": 4}


class MySampleTrainer(NotesRates, SampleAttentionMixin, Trainer):
    pass


def train_samples(case, folder, *, attention=None, resume=None, saves=False, options=None, **arguments):
    attention = attention or make_attention(**case.options)
    if saves:
        arguments.update(save_strategy="steps", save_steps=1)
    arguments = {"logging_strategy": "steps", "logging_steps": 1, **arguments}
    options = {"compute_loss_func": sequence_losses, "attention": attention, **(options or {})}
    trainer = make_trainer(case, folder, MySampleTrainer, arguments, **options)
    torch.manual_seed(6)
    trainer.train(resume_from_checkpoint=resume)
    return finish_samples(attention, trainer.rates, trainer.model, trainer.state.log_history)


def samples_by_hand(case, folder, *, attention=None, is_on_ranks=False):
    attention, (model, _, optimizers) = attention or make_attention(**case.options), given(case, folder)
    model = DistributedDataParallel(model) if is_on_ranks else model

    def losses_of(model, batch):
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        return sequence_losses(outputs["logits"].float(), batch["labels"])

    loader = DataLoader(make_dataset(case), batch_sampler=attention, num_workers=case.workers)
    torch.manual_seed(6)
    options = {"divisor": lambda window: window, "updates": case.trainer.get("max_steps")}
    return sample_loop(attention, model, losses_of, optimizers, loader, case, **options)
