"""Attention to samples in processes of their own: killed, resumed, and on two ranks.

    python -m tests.trainers.sample_processes FOLDER

Importing transformers takes seconds, so one process imports it, and each training is a fork of it.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from torch.utils.data import Subset
from transformers import TrainerCallback

from batch_sampler_attn.distributed import MeanOverRanks
from tests.trainers.forks import KILLED, RANKS, in_a_fork, on_ranks
from tests.trainers.sample_notes import Noted
from tests.trainers.sample_runs import by_hand, by_trainer, mean_loss
from tests.trainers.transformers_runs import EPOCHS, SAMPLES, Case, make_dataset

CASE = Case("gpt2", 2, options={"k": 1.1})
WORKERS = Case("gpt2", 2, options={"k": 1.1}, arguments={"dataloader_num_workers": 2})
WINDOWS = 4
# After so many windows, of which an epoch has four.
KILLS = {"mid-epoch": (CASE, WINDOWS + 2), "last-step": (CASE, 2 * WINDOWS), "workers": (WORKERS, 2 * WINDOWS + 3)}


class KillAfterCheckpoint(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            os._exit(KILLED)


def train(case, folder, at_step=None, resume=None):
    """One training, with a checkpoint after each step, to its end or to where it is killed."""
    return by_trainer(
        case, folder, resume=resume, callbacks=[KillAfterCheckpoint(at_step)], save_strategy="steps", save_steps=1
    )[0]


def resume_each(folder):
    """For each kill, the resumed run's part."""
    for name, (case, step) in KILLS.items():
        assert in_a_fork(train, case, folder / name, step, result=folder / "none.pt") == KILLED, name
        assert in_a_fork(train, case, folder / name, resume=True, result=folder / f"{name}.pt") == 0, name


def attention_of(rank):
    ranks = MeanOverRanks(timeout_seconds=60)
    return Noted(SAMPLES, 4, k=1.1, seed=3, epochs=EPOCHS, rank=rank, world_size=RANKS, ranks=ranks)


def on_a_rank(rank, folder):
    """A whole run, one that is resumed from its checkpoint in mid-epoch, the loop by hand, and an evaluation twice."""
    arguments = {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": WINDOWS + 2}
    place, checkpoint = folder / "ranks", folder / "ranks" / f"checkpoint-{WINDOWS + 2}"
    whole, trainer = by_trainer(CASE, place, attention_of(rank), **arguments)
    # As many as there are in full batches of both ranks.
    evaluated = trainer.evaluate(Subset(make_dataset("gpt2"), range(48)))["eval_loss"], mean_loss(trainer.model, 48)
    resumed, _ = by_trainer(CASE, place, attention_of(rank), resume=checkpoint, **arguments)
    return whole, resumed, by_hand(CASE, folder / "by-hand", attention_of(rank), ranks=RANKS), evaluated


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    root = Path(sys.argv[1])
    resume_each(root)
    on_ranks(on_a_rank, root, results=root / "samples")
