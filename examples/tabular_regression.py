"""Regression on a table: does attention help with a few rows that follow another function?

Ten columns, uniform in 0 to 1. The target is Friedman's function of the first five (scikit-learn's ``make_friedman1``)
with noise. In one row of twenty, those with the last column above 0.95, the five are in reverse order. The network
predicts a normal distribution, and its loss is the negative log-likelihood (NLL). That can be negative, so "K times the
mean" needs a floor. The predicted standard deviation is at least 0.1, so log 0.1 is a lower bound of the loss (without
its constant).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from examples.paired_arms import Task, compare
else:
    from paired_arms import Task, compare

COLUMNS = 10
LEAST_DEVIATION = 0.1


def friedman(rows: torch.Tensor) -> torch.Tensor:
    """(n,) for (n, 5)."""
    a, b, c, d, e = rows.unbind(dim=1)
    target: torch.Tensor = 10 * torch.sin(math.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e
    return target


def draw(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The table (n, COLUMNS), the target (n,) with mean 0 and standard deviation 1, and which rows are rare."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(rows, COLUMNS, generator=generator)
    is_rare = table[:, -1] > 0.95
    target = torch.where(is_rare, friedman(table[:, :5].flip(1)), friedman(table[:, :5]))
    target += torch.randn(rows, generator=generator)
    # The mean and the standard deviation of Friedman's function with this noise, over the cube.
    return table, (target - 14.4) / 5, is_rare


def make_model() -> nn.Module:
    """Mean and raw standard deviation of the target."""
    return nn.Sequential(nn.Linear(COLUMNS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def negative_log_likelihood(model: nn.Module, table: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(n,), without the constant log(2 pi) / 2; at least log LEAST_DEVIATION."""
    outputs: torch.Tensor = model(table)
    mean, raw = outputs.unbind(dim=1)
    deviation = LEAST_DEVIATION + nn.functional.softplus(raw)
    return deviation.log() + ((target - mean) / deviation) ** 2 / 2


def main() -> None:
    table, target, _ = draw(4096, seed=0)
    test_table, test_target, is_rare = draw(4000, seed=1)

    def in_scores(losses: torch.Tensor) -> tuple[float, float]:
        return losses.mean().item(), losses[is_rare].mean().item()

    @torch.no_grad()
    def test(model: nn.Module) -> tuple[float, float]:
        return in_scores(negative_log_likelihood(model, test_table, test_target))

    task = Task(
        samples=len(table),
        make_model=make_model,
        losses=lambda model, indices: negative_log_likelihood(model, table[indices], target[indices]),
        test=test,
        scores=("NLL", "NLL of rare rows"),
        constant=in_scores(target.std().log() + ((test_target - target.mean()) / target.std()) ** 2 / 2),
        floor=math.log(LEAST_DEVIATION),
    )
    compare(task, __doc__, seeds=16, epochs=10)


if __name__ == "__main__":
    main()
