"""Trainings in processes of their own: killed, resumed, and on two ranks.

    python -m tests.trainers.lightning_processes FOLDER

Importing Lightning takes seconds, so one process imports it, and each training is a fork of it.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from batch_sampler_attn.schedule import passes_of
from batch_sampler_attn.trainers.lightning import BatchAttention
from tests.trainers.forks import KILLED, RANKS, KillAtVisit, in_a_fork, on_ranks
from tests.trainers.lightning_runs import EPOCHS, Case, loss_of, make_loader, make_network, make_trainer, module_class
from tests.trainers.plain_loop import finish, make_schedule, plain_loop

CASE = Case(accumulation=2)
WINDOWS = 4

# After so many windows, of which an epoch has four; at the second visit to a window, which is to be repeated.
KILLS = {
    "mid-epoch": {"at_step": WINDOWS + 2},
    "last-step": {"at_step": 2 * WINDOWS},
    "repeats": {"at_visit": (2, 2, 2)},
}


class ResumableLoader:
    """Goes on where its state was saved, as torchdata's does; the order follows from the epoch."""

    def __init__(self):
        self.batches = make_loader().dataset.tensors
        self.sampler = self
        self.epoch = self.position = 0
        self.is_resumed = False

    def __len__(self):
        return -(-len(self.batches[0]) // 8)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        first = self.position % len(self) if self.is_resumed else 0
        self.is_resumed = False
        order = torch.randperm(len(self.batches[0]), generator=torch.Generator().manual_seed(self.epoch))
        for position, indices in enumerate(order.split(8)):
            if position >= first:
                self.position = position + 1
                yield [values[indices] for values in self.batches]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position, self.is_resumed = state["position"], True


class Randomness(Callback):
    """Saves what dropout is drawn from, which is the user's to save."""

    state = None

    def state_dict(self):
        return {"state": torch.get_rng_state()}

    def load_state_dict(self, state_dict):
        self.state = state_dict["state"]

    def on_train_start(self, *_):
        if self.state is not None:
            torch.set_rng_state(self.state)


class KillAfterCheckpoint(ModelCheckpoint):
    """Writes a checkpoint after each step, and after one of them its process ends."""

    at_step = None

    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        # With the step's checkpoint, and not in the window after it.
        if trainer.global_step == self.at_step and list(Path(self.dirpath).glob(f"*{self.at_step}.ckpt")):
            os._exit(KILLED)


def train(folder, at_step=None, at_visit=None, resumed_from=None):
    """One training, to its end or to where it is killed."""
    checkpoint = KillAfterCheckpoint(folder, "{step:03d}", every_n_train_steps=1, save_top_k=-1)
    checkpoint.at_step = at_step
    schedule, recorder = make_schedule()
    if at_visit is not None:
        passes_of(schedule).recorders += (KillAtVisit(*at_visit),)
    module = module_class("lightning.pytorch")()
    trainer = make_trainer(
        accumulate_grad_batches=CASE.accumulation,
        enable_checkpointing=True,
        callbacks=[BatchAttention(schedule=schedule), Randomness(), checkpoint],
    )
    torch.manual_seed(6)
    trainer.fit(module, ResumableLoader(), ckpt_path=resumed_from)
    return finish(schedule, recorder, module.network, module.rates), trainer.global_step


def resume_each(folder):
    """The whole run, and for each kill the resumed run's part of it."""
    whole = in_a_fork(train, folder / "whole", result=folder / "whole.pt")
    assert whole == 0
    for name, kill in KILLS.items():
        assert in_a_fork(train, folder / name, result=folder / "none.pt", **kill) == KILLED, name
        last = str(max((folder / name).glob("*.ckpt")))
        assert in_a_fork(train, folder / name / "on", resumed_from=last, result=folder / f"{name}.pt") == 0, name


def on_a_rank(rank, accumulation):
    """A rank's run in Lightning, with a callback that is told nothing of ranks."""
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="here")
    recorder = make_schedule()[1]
    callback = BatchAttention(k=0.97, max_visits=4, recorders=[recorder])
    module = module_class("lightning.pytorch")("sgd")
    module.network[2].p = 0.0
    trainer = make_trainer(
        devices=RANKS,
        strategy="ddp",
        precision="64-true",
        accumulate_grad_batches=accumulation,
        callbacks=[callback],
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(dataset(), 4, sampler=shard(rank)))
    return finish(callback.schedule, recorder, module.network, module.rates)


def on_a_rank_of_its_own_size(rank):
    """What was decided on, and the losses of this rank, whose batches are of 4 samples or of 2."""
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="here")
    losses = []

    class Telling(module_class("lightning.pytorch")):
        def training_step(self, batch, batch_idx):
            losses.append(super().training_step(batch, batch_idx))
            return losses[-1]

    recorder = make_schedule()[1]
    trainer = make_trainer(
        max_epochs=2,
        devices=RANKS,
        strategy="ddp",
        callbacks=[BatchAttention(k=0.9, max_visits=2, recorders=[recorder])],
        use_distributed_sampler=False,
    )
    size = 4 - 2 * rank
    part = TensorDataset(*(values[: 5 * size] for values in make_loader().dataset.tensors))
    trainer.fit(Telling("sgd"), DataLoader(part, size))
    return [visit.loss for visit in recorder.visits], [loss.item() for loss in losses]


def dataset():
    return TensorDataset(*make_loader(samples=56).dataset.tensors)


def shard(rank):
    return DistributedSampler(dataset(), RANKS, rank, seed=7)


class JoinedLoader:
    """In one process, the batches that the ranks have between them."""

    def __init__(self):
        self.epoch = -1

    def __iter__(self):
        self.epoch += 1
        orders = []
        for rank in range(RANKS):
            sampler = shard(rank)
            sampler.set_epoch(self.epoch)
            orders.append(list(sampler))
        inputs, targets = dataset().tensors
        for begin in range(0, len(orders[0]), 4):
            indices = [index for order in orders for index in order[begin : begin + 4]]
            yield inputs[indices].double(), targets[indices]


def in_one_process(accumulation):
    network = make_network().double()
    network[2].p = 0.0
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    return plain_loop(
        network,
        lambda batch: loss_of(network, batch),
        optimizer,
        lr_scheduler,
        JoinedLoader(),
        epochs=EPOCHS,
        accumulation=accumulation,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    resume_each(folder)
    for accumulation in (1, 2):
        on_ranks(on_a_rank, accumulation, results=folder / str(accumulation))
    on_ranks(on_a_rank_of_its_own_size, results=folder / "sizes")
