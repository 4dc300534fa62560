"""Trainings in processes of their own: killed, resumed, and on two ranks.

    python -m tests.trainers.transformers_processes FOLDER

Importing transformers takes seconds, so one process imports it, and each training is a fork of it.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from batch_sampler_attn.distributed import MeanOverRanks
from batch_sampler_attn.schedule import passes_of
from tests.trainers.forks import KILLED, RANKS, KillAtVisit, in_a_fork, on_ranks
from tests.trainers.plain_loop import finish, make_schedule
from tests.trainers.transformers_runs import (
    Case,
    MyTrainer,
    by_hand,
    by_items,
    by_trainer,
    make_arguments,
    make_dataset,
    make_model,
)

CASE = Case(accumulation=2)
WINDOWS = 4

# After so many windows, of which an epoch has four; at the second visit to a window, which is to be repeated.
KILLS = {
    "mid-epoch": {"at_step": WINDOWS + 2},
    "last-step": {"at_step": 2 * WINDOWS},
    "repeats": {"at_visit": (2, 1, 2)},
}


class KillAfterCheckpoint(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            os._exit(KILLED)


def train(folder, at_step=None, at_visit=None, resume=None):
    """One training, with a checkpoint after each step, to its end or to where it is killed."""

    class Killed(MyTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if at_visit is not None:
                passes_of(self.schedule).recorders += (KillAtVisit(*at_visit),)

    run, trainer = by_trainer(
        CASE,
        folder,
        Killed,
        resume=resume,
        options={"callbacks": [KillAfterCheckpoint(at_step)]},
        save_strategy="steps",
        save_steps=1,
    )
    return run, trainer.state.global_step


def resume_each(folder):
    """The whole run, and for each kill the resumed run's part of it."""
    assert in_a_fork(train, folder / "whole", result=folder / "whole.pt") == 0
    for name, kill in KILLS.items():
        assert in_a_fork(train, folder / name, result=folder / "none.pt", **kill) == KILLED, name
        assert in_a_fork(train, folder / name, resume=True, result=folder / f"{name}.pt") == 0, name


class Doubled(Dataset):
    """In double precision, and with as many samples as ranks share alike."""

    def __init__(self, model):
        self.samples = [make_dataset(model)[index % 52] for index in range(56)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {name: as_double(value) for name, value in self.samples[index].items()}


def as_double(values):
    return values.double() if values.is_floating_point() else values


def undropped(model):
    model = make_model(model).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def rank_case(model, accumulation):
    return Case(model, accumulation, arguments={"optim": "sgd", "learning_rate": 0.1})


def on_a_rank(rank, model, accumulation, folder, averages=True):
    """A rank's run; without ``averages``, each rank divides by its own tokens alone."""
    schedule, recorder = make_schedule(ranks=MeanOverRanks(timeout_seconds=60))
    arguments = {
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": averages,
    }
    trainer = MyTrainer(
        model=undropped(model),
        args=make_arguments(rank_case(model, accumulation), folder / f"rank{rank}", **arguments),
        train_dataset=Doubled(model),
        schedule=schedule,
    )
    assert trainer.args.world_size == RANKS
    trainer.train()
    return finish(schedule, recorder, trainer.model, trainer.rates)


def in_one_process(model, accumulation, folder):
    """By hand, on the batches that the ranks have between them."""
    dataset = Doubled(model)
    batches = [
        {name: torch.stack([dataset[index][name] for index in range(begin, begin + 8)]) for name in dataset[0]}
        for begin in range(0, 56, 8)
    ]
    by_it = by_items if model == "gpt2" else by_hand
    return by_it(rank_case(model, accumulation), folder, loader=batches, model=undropped(model))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    resume_each(folder)
    for model, accumulation in (("classifier", 2), ("gpt2", 1)):
        on_ranks(on_a_rank, model, accumulation, folder, results=folder / f"{model}-{accumulation}")
    on_ranks(on_a_rank, "gpt2", 1, folder, False, results=folder / "apart")
