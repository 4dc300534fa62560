"""Small loops and their naive twins, for the tests of this folder."""

import itertools

import pytest
import torch
from torch import nn

from batch_sampler_attn.device import DeviceLoop

DROPOUT_SEED = 7
ORDER_SEED = 5
CLASSES = 3


def make_data(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(0, CLASSES, (samples,), generator=generator)


def make_model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES))


def make_adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def make_loop(
    inputs, targets, batch_size=8, *, model=None, optimizer=make_adam, loss_fn=nn.functional.cross_entropy, **options
):
    """A loop whose optimizer is made of parameters by ``optimizer``."""
    model = make_model() if model is None else model
    options = {"generator": torch.Generator().manual_seed(ORDER_SEED), **options}
    return DeviceLoop(model, optimizer(model.parameters()), loss_fn, inputs, targets, batch_size, **options)


def train(loop, epochs):
    """The summary of each epoch, and the visits to each batch."""
    torch.manual_seed(DROPOUT_SEED)
    return [(without_reads(loop.run_epoch()), loop.visit_counts) for _ in range(epochs)]


def train_naively(schedule, inputs, targets, epochs, *, optimizer=make_adam, prepare=None, autocast=None, scaler=None):
    """What ``train`` returns for ``make_loop``, all losses, and the model, of a hand-written loop."""
    torch.manual_seed(DROPOUT_SEED)
    model = make_model()
    optimizer = optimizer(model.parameters())
    generator = torch.Generator().manual_seed(ORDER_SEED)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    trained, losses = [], []
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        batches = [(inputs[batch], targets[batch]) for batch in order.split(8)]
        visits = [0] * len(batches)
        for x, y in schedule.attend(batches):
            prepared = x if prepare is None else prepare(x)
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = nn.functional.cross_entropy(model(prepared), y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            visits[schedule.batch_index] += 1
            schedule.decide(losses[-1])
        trained.append((without_reads(schedule.last_summary if schedule.epoch else schedule.summary), visits))
    return trained, losses, model


def take_turns(loops, epochs, most):
    """The summaries of each loop; as in the guide, all loops have work before one of them is waited for."""
    summaries = {loop: [] for loop in loops}
    while running := [loop for loop in loops if len(summaries[loop]) < epochs]:
        for loop in [loop for loop in running if loop.enqueue(most) < most]:
            if (summary := loop.synchronize()) is not None:
                summaries[loop].append(without_reads(summary))
    return list(summaries.values())


def thinned(options):
    """Cases with each pair of two options' values, and the rest of the product as slow ones; each with its number."""
    names, remaining = list(options), list(itertools.product(*options.values()))
    pairs_left = {pair for case in remaining for pair in itertools.combinations(enumerate(case), 2)}
    chosen = []
    while pairs_left:
        best = max(remaining, key=lambda case: len(pairs_left.intersection(itertools.combinations(enumerate(case), 2))))
        remaining.remove(best)
        pairs_left.difference_update(itertools.combinations(enumerate(best), 2))
        chosen.append(best)
    return [
        pytest.param(
            (number, dict(zip(names, case, strict=True))),
            marks=[pytest.mark.slow] if number >= len(chosen) else [],
            id="-".join(map(str, case)),
        )
        for number, case in enumerate([*chosen, *remaining])
    ]


# Comparing ------------------------------------------------------------------------------------------------------


def without_reads(summary):
    """A summary without how often the host waited, which a naive loop does at every update."""
    return {**summary.as_dict(), "host_reads": None}


def are_equal(model, other):
    return same([*model.state_dict().values()], [*other.state_dict().values()])


def same(value, other):
    """Whether two outcomes or states are the same bit for bit, NaN included."""
    if isinstance(value, torch.Tensor):
        is_alike = isinstance(other, torch.Tensor) and value.dtype == other.dtype and value.shape == other.shape
        return is_alike and value.cpu().numpy().tobytes() == other.cpu().numpy().tobytes()
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    return type(value) is type(other) and repr(value) == repr(other)
