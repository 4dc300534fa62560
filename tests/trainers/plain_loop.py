"""The loop that a trainer is compared with: written by hand, around ``decide``; nothing of it is the package's."""

import itertools
import math
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import ProtocolError
from batch_sampler_attn.recorders import MemoryRecorder
from tests.trainers.cases import cross_entropy, make_network, make_optimizer


@dataclass
class Run:
    """The result of a training."""

    visits: list[tuple]  # of each: epoch, position of the window, visit, loss, decision
    weights: list[float]  # all parameters and buffers, one after the other
    threshold: float | None  # in force at the end
    epochs: list[tuple]  # repeats and threshold of each
    rates: list[float]  # of each update

    @property
    def repeats(self):
        return sum(repeats for repeats, _ in self.epochs)

    @property
    def first_losses(self):
        """The losses of first visits."""
        return [visit[3] for visit in self.visits if visit[2] == 1]

    def positions(self, epoch):
        """The windows that were trained on in an epoch."""
        return sorted({visit[1] for visit in self.visits if visit[0] == epoch})


def make_schedule(**options):
    """A schedule that repeats often, and its recorder."""
    recorder = MemoryRecorder()
    options = {"k": 0.97, "max_visits": 4, "ranks": None, **options}
    return BatchAttentionSchedule(**options, recorders=[recorder]), recorder


def weights_of(model):
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()]).tolist()


def failing(at, error):
    """A user's step, of which the one with that number fails."""
    numbers = itertools.count(1)

    def step(batch):
        if next(numbers) == at:
            raise error
        return batch

    return step


@contextmanager
def refused(words, model):
    """What is refused before an update, so that the weights are as they were."""
    before = weights_of(model)
    with pytest.raises(ProtocolError, match=words):
        yield
    assert weights_of(model) == before


def finish(schedule, recorder, model, rates=(), weights_of=weights_of):
    visits = [tuple(visit[:5]) for visit in recorder.visits]
    epochs = [(summary.repeats, summary.threshold) for summary in recorder.summaries]
    return Run(visits, weights_of(model), schedule.threshold, epochs, list(rates))


def plain_loop(
    model,
    loss_of,  # the mean loss of a batch; with items_of, it also receives the window's items and divides by them
    optimizers,  # and the learning-rate schedule, which is stepped once a window
    loader,
    case,
    *,
    divisor=len,  # what a window's losses are divided by
    samples_of=lambda batch: len(batch[0]),
    items_of=None,  # how many items a batch has, if the window's loss is the sum of its batches'
    max_windows=None,  # stop after so many in all, without ending the epoch
):
    """Train as trainers do, and repeat each window while the decision is REPEAT."""
    schedule, recorder = make_schedule(**case.options)
    (optimizer, lr_scheduler), scaler, rates, windows = optimizers, case.scaler(), [], 0
    if case.epochs % 1:
        max_windows = int(case.epochs * case.windows)
    for epoch in range(math.ceil(case.epochs)):
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        batches = list(loader)
        for begin in range(0, len(batches), case.accumulation):
            window = batches[begin : begin + case.accumulation]
            items = () if items_of is None else (sum(map(items_of, window)),)
            decision = Decision.REPEAT
            while decision is Decision.REPEAT:
                losses = []
                optimizer.zero_grad()
                for batch in window:
                    with case.autocast():
                        loss = loss_of(batch, *items)
                    losses.append((loss.item(), samples_of(batch)))
                    scaler.scale(loss if items else loss / divisor(window)).backward()
                rates.append(update(model, optimizer, scaler, case))
                decision = schedule.decide(sum(loss for loss, _ in losses) if items else mean_of(losses))
            lr_scheduler.step()
            windows += 1
            if windows == max_windows:
                return finish(schedule, recorder, model, rates)
        schedule.end_epoch()
    return finish(schedule, recorder, model, rates)


def update(model, optimizer, scaler, case):
    """Update as trainers do; the learning rate."""
    scaler.unscale_(optimizer)
    if case.clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip)
    scaler.step(optimizer)
    scaler.update()
    return optimizer.param_groups[0]["lr"]


def mean_of(losses):
    """Over samples, in double precision, in order."""
    if len(losses) == 1:
        return losses[0][0]
    total = samples = 0.0
    for loss, weight in losses:
        total += loss * weight
        samples += weight
    return total / samples


def check_tail(whole, resumed, where):
    """Check that a run which resumed at an epoch, a window and a visit is the tail of the whole one."""
    tail = len(resumed.visits)
    assert 0 < tail < len(whole.visits)
    assert resumed.visits == whole.visits[-tail:]
    assert resumed.visits[0][: len(where)] == where
    assert resumed.rates == whole.rates[-tail:]
    assert resumed.threshold == whole.threshold
    assert resumed.epochs == whole.epochs[-len(resumed.epochs) :]
    assert resumed.weights == whole.weights


def by_hand(case, loader, *, step=None, dtype=None, **options):
    """The plain loop's run of the network; ``step`` is what a user's step does to a batch."""
    network = make_network(case).to(dtype)
    optimizers = make_optimizer(network, case)

    def loss_of(batch):
        return cross_entropy(network, step(batch) if step else batch)

    torch.manual_seed(6)
    return plain_loop(network, loss_of, optimizers, loader, case, **options)
