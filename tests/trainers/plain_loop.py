"""The loop that a trainer is compared with: written by hand, around ``decide``; nothing of it is the package's."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.recorders import MemoryRecorder


@dataclass
class Run:
    """What a training came to.

    Attributes:
        visits: Each: epoch, position of the window, visit, loss, decision.
        weights: All parameters and buffers, one after the other.
        threshold: In force at the end.
        epochs: Repeats and threshold of each.
        rates: The learning rate of each update, if they were noted.
    """

    visits: list[tuple]
    weights: torch.Tensor
    threshold: float | None
    epochs: list[tuple]
    rates: list[float] = field(default_factory=list)

    def __eq__(self, other):
        mine = (self.visits, self.threshold, self.epochs, self.rates)
        return mine == (other.visits, other.threshold, other.epochs, other.rates) and torch.equal(
            self.weights, other.weights
        )

    @property
    def repeats(self):
        return sum(repeats for repeats, _ in self.epochs)


def make_schedule(**options) -> tuple[BatchAttentionSchedule, MemoryRecorder]:
    """A schedule that repeats often, and what it was told."""
    recorder = MemoryRecorder()
    options = {"k": 0.97, "max_visits": 4, "ranks": None, **options}
    return BatchAttentionSchedule(**options, recorders=[recorder]), recorder


def finish(schedule, recorder, model, rates=()) -> Run:
    """The run, once it is over."""
    visits = [tuple(visit[:5]) for visit in recorder.visits]
    weights = torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    epochs = [(summary.repeats, summary.threshold) for summary in recorder.summaries]
    return Run(visits, weights, schedule.threshold, epochs, list(rates))


def plain_loop(
    model: torch.nn.Module,
    loss_of: Callable[[Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    lr_scheduler: Any,
    loader: Iterable[Any],
    *,
    epochs: int,
    accumulation: int = 1,
    autocast: Callable[[], Any] = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
    clip: float | None = None,
    divisor: Callable[[list[Any]], float] | None = None,
    samples_of: Callable[[Any], int] = lambda batch: len(batch[0]),
    max_windows: int | None = None,
    **options: Any,
) -> Run:
    """Train as trainers do, and repeat each window while the decision is REPEAT.

    Args:
        model: In training mode.
        loss_of: The mean loss of a batch.
        optimizer: Its.
        lr_scheduler: Stepped once a window; None for none.
        loader: Gone through once an epoch.
        epochs: How many.
        accumulation: Batches in a window; the last window of an epoch may have fewer.
        autocast: Around the forward pass.
        scaler: Of gradients.
        clip: The gradients' greatest norm.
        divisor: What a window's losses are divided by; None for ``accumulation``.
        samples_of: How many samples a batch has.
        max_windows: Stop after so many in all, without ending the epoch.
        options: Of the schedule.
    """
    schedule, recorder = make_schedule(**options)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    rates, windows = [], 0
    for _ in range(epochs):
        batches = list(loader)
        for begin in range(0, len(batches), accumulation):
            window = batches[begin : begin + accumulation]
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                losses = []
                optimizer.zero_grad()
                for batch in window:
                    with autocast():
                        loss = loss_of(batch)
                    losses.append((loss.item(), samples_of(batch)))
                    scaler.scale(loss / (divisor(window) if divisor else accumulation)).backward()
                scaler.unscale_(optimizer)
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                rates.append(optimizer.param_groups[0]["lr"])
                scaler.step(optimizer)
                scaler.update()
                decision = schedule.decide(mean_of(losses))
            if lr_scheduler is not None:
                lr_scheduler.step()
            windows += 1
            if windows == max_windows:
                return finish(schedule, recorder, model, rates)
        schedule.end_epoch()
    return finish(schedule, recorder, model, rates)


def mean_of(losses: list[tuple[float, int]]) -> float:
    """Over samples, in double precision, in order."""
    if len(losses) == 1:
        return losses[0][0]
    total = samples = 0.0
    for loss, weight in losses:
        total += loss * weight
        samples += weight
    return total / samples
