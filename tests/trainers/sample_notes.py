"""What trainings with attention to samples are compared by."""

from dataclasses import dataclass, field
from typing import Any

import torch

from batch_sampler_attn import SampleAttention


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


@dataclass
class SampleRun:
    """What a training came to."""

    batches: list[tuple]
    rates: list[float]
    weights: torch.Tensor
    last: dict[str, Any]
    logs: list[dict] = field(default_factory=list)

    def __eq__(self, other):
        mine = (self.batches, self.rates, self.last)
        return mine == (other.batches, other.rates, other.last) and torch.equal(self.weights, other.weights)


def finish(attention, rates, model, logs=()):
    weights = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    return SampleRun(attention.batches, rates, weights, attention.summary.as_dict(), list(logs))
