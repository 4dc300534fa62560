"""The loop that attention to samples is compared with, written by hand around ``weighted_mean``."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.distributed import MeanOverRanks
from tests.trainers.cases import EPOCHS, SAMPLES, Points, cross_entropy, make_network, make_optimizer
from tests.trainers.plain_loop import update, weights_of
from tests.trainers.ranks import RANKS


class Noted(SampleAttention):
    """Notes each batch: epoch, indices, weights, losses, and their mean or the weights that are returned for it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches = []

    def weighted_mean(self, losses):
        return self.note(super().weighted_mean, losses)

    def report(self, losses):
        return self.note(super().report, losses)

    def note(self, settle, losses):
        batch = self.epoch, self.indices, self.weights, losses.tolist()
        result = settle(losses)
        self.batches.append((*batch, result if isinstance(result, list) else result.item()))
        return result


def make_attention(size=8, samples=SAMPLES, **options):
    return Noted(samples, size, **{"ranks": None, "seed": 3, "epochs": EPOCHS, "weighted": True, **options})


@dataclass
class SampleRun:
    """The result of a training."""

    batches: list[tuple]  # those that Noted noted
    rates: list[float]  # of each update
    weights: list[float]  # all parameters and buffers, one after the other
    last: dict[str, Any]  # the summary of the last epoch
    doses: dict[str, Any]  # how often each sample was pruned, and pooled
    logs: Any = field(compare=False)  # the trainer's


def finish_samples(attention, rates, model, logs=()):
    last = attention.summary.as_dict()
    return SampleRun(attention.batches, list(rates), weights_of(model), last, attention.doses, logs)


def sample_loop(attention, model, losses_of, optimizers, loader, case, *, divisor, updates=None):
    """Train on the attention's batches; the divisor is that of a window's losses, from its length."""
    (optimizer, lr_scheduler), rates, scaler = optimizers, [], case.scaler()
    network = getattr(model, "module", model)
    for _ in range(EPOCHS):
        length = len(attention)
        for index, batch in enumerate(attention.attend(loader)):
            window = min(case.accumulation, length - index // case.accumulation * case.accumulation)
            is_last = (index + 1) % case.accumulation == 0 or index + 1 == length
            # Ranks exchange gradients with a window's last batch alone.
            with nullcontext() if is_last or model is network else model.no_sync():
                with case.autocast():
                    losses = losses_of(model, batch)
                scaler.scale(attention.weighted_mean(losses) / divisor(window)).backward()
            if not is_last:
                continue
            rates.append(update(network, optimizer, scaler, case))
            optimizer.zero_grad()
            lr_scheduler.step()
            if len(rates) == updates:
                return finish_samples(attention, rates, network)
    return finish_samples(attention, rates, network)


def check_sample_tail(whole, resumed, behind):
    """Check that a run which resumed after so many batches is the tail of the whole one."""
    assert resumed.batches == whole.batches[behind:]
    assert resumed.rates == whole.rates[-len(resumed.rates) :]
    assert resumed.weights == whole.weights
    assert (resumed.last, resumed.doses) == (whole.last, whole.doses)


def make_sample_loader(attention, case):
    """A loader with a generator of its own, so that it draws none of the random numbers of dropout."""
    return DataLoader(
        Points(),
        batch_sampler=attention,
        num_workers=case.workers,
        multiprocessing_context="fork" if case.workers else None,
        generator=torch.Generator(),
    )


def samples_by_hand(case, _=None, *, attention=None, is_on_ranks=False, wrap=lambda loader: loader):
    """The loop's run of the network, whose windows are divided by their full length."""
    attention, network = attention or make_attention(**case.options), make_network(case)
    optimizers = make_optimizer(network, case)
    model = DistributedDataParallel(network) if is_on_ranks else network
    loader = wrap(make_sample_loader(attention, case))

    def losses_of(model, batch):
        return cross_entropy(model, batch, "none")

    torch.manual_seed(6)
    return sample_loop(attention, model, losses_of, optimizers, loader, case, divisor=lambda _: case.accumulation)


def samples_on_a_rank(rank, trainer, case, folder, resumed_after):
    """A rank's whole run, the one that resumed after so many updates, and the loop by hand."""

    def attention():
        ranks = {"rank": rank, "world_size": RANKS, "ranks": MeanOverRanks(timeout_seconds=60)}
        return make_attention(4, **{**case.options, **ranks})

    case = replace(case, trainer=trainer.ON_RANKS)
    whole = trainer.train_samples(case, folder, attention=attention(), saves=True)
    checkpoint = trainer.checkpoint(folder, resumed_after)
    resumed = trainer.train_samples(case, folder, attention=attention(), resume=checkpoint)
    return whole, resumed, trainer.samples_by_hand(case, folder, attention=attention(), is_on_ranks=True)
