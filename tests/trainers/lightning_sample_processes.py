"""Attention to samples in processes of their own: killed, resumed from each checkpoint, and on two ranks.

    python -m tests.trainers.lightning_sample_processes FOLDER

Importing Lightning takes seconds, so one process imports it, and each training is a fork of it.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.parallel import DistributedDataParallel

from batch_sampler_attn.distributed import MeanOverRanks
from tests.trainers.forks import KILLED, RANKS, in_a_fork, on_ranks
from tests.trainers.lightning_processes import KillAfterCheckpoint, Randomness
from tests.trainers.lightning_samples import Case, by_hand, by_lightning

BOTH = {"k": 1.1, "max_visits": 3}
CASES = {
    "batches": Case(BOTH),
    "windows": Case({"weighted": False, "updates": 5}, workers=2, accumulation=2, trainer={"val_check_interval": 2}),
}
# The run is killed after so many steps, and resumed from every checkpoint that it has written.
KILLED_AFTER = {"batches": 9, "windows": 4}
# Of eight steps, in epochs of two, on ranks.
RANKS_RESUMED_AFTER = (3, 4)


def train(folder, case, at_step=None, resumed_from=None):
    """One training, to its end or to where it is killed."""
    callbacks = [Randomness()]
    if resumed_from is None:
        ends = ModelCheckpoint(folder, "end-{step:03d}", save_top_k=-1, save_on_train_epoch_end=True)
        steps = KillAfterCheckpoint(folder, "{step:03d}", every_n_train_steps=1, save_top_k=-1)
        steps.at_step = at_step
        callbacks += [steps, ends]
    case.trainer["enable_checkpointing"] = resumed_from is None
    return by_lightning(case, callbacks, resumed_from)[0]


def resume_each(folder):
    """Each killed run, and what follows from its checkpoints."""
    for name, case in CASES.items():
        torch.save(by_hand(case)[0], folder / f"{name}.pt")
        killed = in_a_fork(train, folder / name, case, at_step=KILLED_AFTER[name], result=folder / "none.pt")
        assert killed == KILLED, name
        for checkpoint in (folder / name).glob("*.ckpt"):
            result = folder / name / f"{checkpoint.stem}.pt"
            assert in_a_fork(train, None, case, resumed_from=str(checkpoint), result=result) == 0, checkpoint


def on_a_rank(rank, way, folder, resumed_from=None):
    """A rank's run."""
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="here")
    options = {**BOTH, "updates": 3, "rank": rank, "world_size": RANKS, "ranks": MeanOverRanks()}
    ddp = {"devices": RANKS, "strategy": "ddp", "use_distributed_sampler": way == "left to Lightning"}
    case = Case(options, accumulation=2, trainer=ddp)
    if way == "hand":
        torch.distributed.init_process_group("gloo")
        return by_hand(case, DistributedDataParallel)[0]
    return train(folder, case, resumed_from=resumed_from)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    resume_each(folder)
    checkpoints = folder / "ranks"
    on_ranks(on_a_rank, "hand", None, results=folder / "hand")
    on_ranks(on_a_rank, "Lightning", checkpoints, results=folder / "whole")
    for step in RANKS_RESUMED_AFTER:
        checkpoint = str(checkpoints / f"step={step:03d}.ckpt")
        on_ranks(on_a_rank, "left to Lightning", None, checkpoint, results=folder / str(step))
