"""The loop that attention to samples is compared with, written by hand around ``weighted_mean``."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from batch_sampler_attn import SampleAttention
from tests.trainers.cases import EPOCHS, SAMPLES
from tests.trainers.plain_loop import weights_of


class Noted(SampleAttention):
    """Notes each batch: epoch, indices, weights, losses, and their mean."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches = []

    def weighted_mean(self, losses):
        batch = self.epoch, self.indices, self.weights, losses.tolist()
        mean = super().weighted_mean(losses)
        self.batches.append((*batch, mean.item()))
        return mean


def make_attention(size=8, **options):
    return Noted(SAMPLES, size, **{"ranks": None, "seed": 3, "epochs": EPOCHS, "weighted": True, **options})


@dataclass
class SampleRun:
    """The result of a training.

    Attributes:
        batches: Those that ``Noted`` noted.
        rates: The learning rate of each update.
        weights: All parameters and buffers, one after the other.
        last: The summary of the last epoch.
        doses: How often each sample was pruned, and pooled.
        logs: The trainer's; not compared.
    """

    batches: list[tuple]
    rates: list[float]
    weights: torch.Tensor
    last: dict[str, Any]
    doses: dict[str, Any]
    logs: Any = field(default_factory=list)

    def __eq__(self, other):
        mine = (self.batches, self.rates, self.last, self.doses)
        return mine == (other.batches, other.rates, other.last, other.doses) and torch.equal(
            self.weights, other.weights
        )


def finish_samples(attention, rates, model, logs=()):
    last = attention.summary.as_dict()
    return SampleRun(attention.batches, list(rates), weights_of(model), last, attention.doses, logs)


def sample_loop(attention, model, losses_of, optimizer, lr_scheduler, loader, case, *, divisor, updates=None):
    """Train on the attention's batches; the divisor is that of a window's losses, from its length."""
    rates, scaler = [], case.scaler()
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
            scaler.unscale_(optimizer)
            if case.clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), case.clip)
            rates.append(optimizer.param_groups[0]["lr"])
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            lr_scheduler.step()
            if len(rates) == updates:
                return finish_samples(attention, rates, network)
    return finish_samples(attention, rates, network)


def check_sample_tail(whole, resumed, behind):
    """Check that a run which resumed after so many batches is the tail of the whole one."""
    assert resumed.batches == whole.batches[behind:]
    assert resumed.rates == whole.rates[-len(resumed.rates) :]
    assert torch.equal(resumed.weights, whole.weights)
    assert (resumed.last, resumed.doses) == (whole.last, whole.doses)
