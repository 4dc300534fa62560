"""Small loops and their naive twins, for the tests of this folder."""

import contextlib
import copy
import itertools
import math
import signal
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.errors import StateError

SEED = 7
ORDER_SEED = 5
CLASSES = 3


# A classifier with dropout, and the same in a hand-written loop ------------------------------------------------


def make_data(samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 6, generator=generator), torch.randint(0, CLASSES, (samples,), generator=generator)


def make_model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, CLASSES))


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def make_loop(
    inputs, targets, batch_size=8, *, staged=False, drop_last=False, losses=None, order_seed=ORDER_SEED, **options
):
    model = make_model()
    generator = torch.Generator().manual_seed(order_seed)
    if staged:
        dataset = TensorDataset(inputs, targets)
        sampler = RandomSampler(dataset, generator=generator)
        loader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, generator=generator)
        data = StagedData(loader, batch_size, "cpu", slots=3)
    else:
        data = ResidentData(inputs, targets, batch_size, generator=generator, drop_last=drop_last)

    def loss_fn(outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        if losses is not None and model.training:
            losses.append(loss.item())
        return loss

    return DeviceLoop(model, make_optimizer(model), loss_fn, data, seed=SEED, **options)


def loop_with(**changes):
    """A loop over 6 batches, with some of its parts replaced."""
    model = make_model()
    parts = {
        "model": model,
        "optimizer": make_optimizer(model),
        "loss_fn": nn.functional.cross_entropy,
        "data": ResidentData(*make_data(48), 8, generator=torch.Generator()),
        **changes,
    }
    positional = [parts.pop(name) for name in ("model", "optimizer", "loss_fn", "data")]
    return DeviceLoop(*positional, **parts)


class Trained(NamedTuple):
    """What came of a hand-written loop; ``visits`` are those to each batch, by epoch."""

    summaries: list
    losses: list
    visits: list
    model: nn.Module


def train_naively(schedule, inputs, targets, epochs, batch_size=8, *, staged=False, drop_last=False):
    """The training of ``make_loop`` in a hand-written loop."""
    model = make_model()
    optimizer = make_optimizer(model)
    generator = torch.Generator().manual_seed(ORDER_SEED)
    dataset = TensorDataset(inputs, targets)
    trained = Trained([], [], [], model)
    with torch.random.fork_rng(devices=[]):
        # Where the loop's own stream of random numbers begins.
        torch.manual_seed(SEED + 2)
        for _ in range(epochs):
            if staged:
                sampler = RandomSampler(dataset, generator=generator)
                batches = DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, generator=generator)
            else:
                order = torch.randperm(len(inputs), generator=generator)
                batches = [(inputs[batch], targets[batch]) for batch in order.split(batch_size)]
                if drop_last and len(order) % batch_size:
                    batches.pop()
            visits = [0] * len(batches)
            for x, y in schedule.attend(batches):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                trained.losses.append(loss.item())
                visits[schedule.batch_index] += 1
                schedule.decide(trained.losses[-1])
            trained.visits.append(visits)
            trained.summaries.append(schedule.last_summary if schedule.epoch else schedule.summary)
    return trained


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


def random_loss(rng):
    """A loss around a threshold of 1, at times just there, or not finite."""
    if rng.random() < 0.2:
        return rng.choice([math.nan, math.inf, -math.inf, 1.0, 1.0])
    return rng.lognormvariate(0.0, 0.5)


def add_noise(inputs, uniforms):
    return inputs + uniforms


# A very small one, with any optimizer, for saved states ---------------------------------------------------------

BATCHES = 5
MOST_VISITS = 3
DEALT = [[1, 2, 1, 3, 1]] * 3

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    "centered": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, centered=True),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=0.01),
    "rate as a tensor": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
}


def make_small_loop(optimizer="adam", *, staged=False, control=False, window=None, slots=3, width=3, **options):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(9, 3, generator=generator), torch.randn(9, width, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    if staged:
        dataset = TensorDataset(inputs, targets)
        loader = DataLoader(dataset, 2, sampler=RandomSampler(dataset, generator=generator), generator=generator)
        data = StagedData(loader, 2, "cpu", slots=slots)
    else:
        data = ResidentData(inputs, targets, 2, generator=generator)
    if control:
        schedule = EqualComputeControl(DEALT)
    else:
        schedule = BatchAttentionSchedule(1.0, max_visits=MOST_VISITS, window=window)
    model[1].eval()  # one sample has no variance
    made = OPTIMIZERS[optimizer](model.parameters())
    return DeviceLoop(model, made, nn.functional.mse_loss, data, schedule=schedule, count_visits=True, **options)


def make_scaled(optimizer, **options):
    model = nn.Linear(3, 1)
    data = ResidentData(torch.randn(8, 3), torch.randn(8, 1), 2, generator=torch.Generator())
    made = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    options = {"autocast": torch.bfloat16, "scaler": scaler, **options}
    return DeviceLoop(model, made, nn.functional.mse_loss, data, **options)


def saved_in_mid_epoch(**options):
    loop = make_small_loop(**options)
    loop.run_epoch()
    loop.run_updates(2)
    return loop.state_dict()


def refused(loop, state):
    """Load a state that is not to be loaded; return what was said."""
    before = copy.deepcopy(loop.state_dict())
    with pytest.raises(StateError) as raised:
        loop.load_state_dict(state)
    assert same(loop.state_dict(), before)
    return str(raised.value)


# Comparing ------------------------------------------------------------------------------------------------------


def without_reads(summary):
    """A summary less how often the host waited, which a naive loop does at every update."""
    return {**summary.as_dict(), "host_reads": None}


def are_equal(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def same(value, other):
    """Whether two states are the same bit for bit, NaN included."""
    if isinstance(value, torch.Tensor):
        is_alike = isinstance(other, torch.Tensor) and value.dtype == other.dtype and value.shape == other.shape
        return is_alike and value.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    return type(value) is type(other) and repr(value) == repr(other)


@contextlib.contextmanager
def at_most(seconds):
    def stop(number, frame):
        raise AssertionError(f"not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
