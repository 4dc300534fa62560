"""Trainings that have to come to the same, captured on a late device and eager on one that does all at once."""

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from tests.device.replay.modes import moved

# Three full batches and a shorter one.
SAMPLES, FEATURES, CLASSES, BATCH_SIZE = 14, 5, 3, 4


def shift(inputs, uniforms):
    return inputs + uniforms[:, :1]


def make_model(index):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(index)
        layers = nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, CLASSES)
        return nn.Sequential(*layers)


def make_loop(
    package,
    index=0,
    *,
    adam=False,
    lr=0.1,
    staged=False,
    augmented=None,
    schedule=None,
    model=None,
    loss_fn=nn.functional.cross_entropy,
    **options,
):
    """A loop of the package, which may be a changed copy; ``augmented`` is "afresh", "by position" or None."""
    generator = torch.Generator().manual_seed(index)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    targets = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    model = moved(make_model(index) if model is None else model)
    if adam:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, capturable=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if staged:
        dataset = TensorDataset(inputs, targets)
        sampler = RandomSampler(dataset, generator=generator)
        loader = DataLoader(dataset, BATCH_SIZE, sampler=sampler, generator=generator)
        data = package.StagedData(loader, BATCH_SIZE, "cuda:1", slots=2)
    else:
        data = package.ResidentData(inputs.cuda(), targets.cuda(), BATCH_SIZE, generator=generator)
    return package.DeviceLoop(
        model,
        optimizer,
        loss_fn,
        data,
        schedule=schedule or package.BatchAttentionSchedule(1.0, max_visits=4),
        augmentation=None if augmented is None else package.Augmentation(shift, 1, fresh=augmented == "afresh"),
        seed=index,
        **options,
    )


def weights_of(loop):
    """As a caller copies them to the host, from the caller's stream."""
    return {name: value.cpu() for name, value in loop.model.state_dict().items()}


def without_reads(summary):
    return {**summary.as_dict(), "host_reads": None}


def run(loop, epochs):
    return [without_reads(loop.run_epoch()) for _ in range(epochs)]


# Each yields what is compared.


def resident(package, **options):
    """With numbers drawn in every visit, visits counted, and another learning rate from the fifth epoch on."""
    loop = make_loop(package, augmented="afresh", count_visits=True, **options)
    for epoch in range(6):
        if epoch == 4:
            for group in loop.parts.optimizer.param_groups:
                group["lr"] *= 0.3
        yield run(loop, 1)
        yield loop.visit_counts
        yield loop.order.cpu()
    yield weights_of(loop)


def staged(package, **options):
    """A ring of two for four batches, with numbers drawn for each position."""
    loop = make_loop(package, staged=True, augmented="by position", **options)
    for _ in range(5):
        yield run(loop, 1)
        yield weights_of(loop)


def resident_by_position(package, **options):
    """With Adam, and a learning rate on the device, which the caller changes in place, while drawing numbers too."""
    rate = torch.tensor(0.05, device="cuda:1")
    loop = make_loop(package, adam=True, lr=rate, augmented="by position", **options)
    for _ in range(4):
        yield run(loop, 1)
        yield weights_of(loop)
        yield torch.rand(2, device="cuda:1").cpu()
        rate.mul_(0.5)


def resumed(package, **options):
    """A state of mid-epoch, loaded by the loop that went on from it."""
    loop = make_loop(package, augmented="afresh", count_visits=True, **options)
    yield run(loop, 3)
    yield loop.run_updates(3)
    state = loop.state_dict()
    yield run(loop, 2)
    loop.load_state_dict(state)
    yield weights_of(loop)
    yield run(loop, 2)
    yield loop.visit_counts
    yield weights_of(loop)


def resumed_staged(package, **options):
    """The same with a ring."""
    loop = make_loop(package, staged=True, **options)
    yield run(loop, 3)
    yield loop.run_updates(3)
    state = loop.state_dict()
    yield run(loop, 2)
    loop.load_state_dict(state)
    yield run(loop, 2)
    yield weights_of(loop)


def begun_again(package, **options):
    """A state from before the first update: the optimizer's tensors are others afterwards."""
    loop = make_loop(package, adam=True, lr=0.05, **options)
    state = loop.state_dict()
    yield run(loop, 3)
    loop.load_state_dict(state)
    yield run(loop, 3)
    yield weights_of(loop)


def replaced(package, **options):
    """A buffer in whose place the caller puts another one."""
    loop = make_loop(package, **options)
    for _ in range(4):
        yield run(loop, 2)
        loop.model[1].running_mean = loop.model[1].running_mean * 0.5
        yield weights_of(loop)


def dealt(package, **options):
    """Repeats that are dealt, other ones in each epoch."""
    visits = [[1, 3, 1, 2], [2, 1, 1, 4], [1, 1, 3, 1], [3, 1, 1, 2]]
    loop = make_loop(package, schedule=package.EqualComputeControl(visits), count_visits=True, **options)
    for _ in range(4):
        yield run(loop, 1)
        yield loop.visit_counts
    yield weights_of(loop)


def by_turns(package, **options):
    """Two loops that take turns, one with a ring."""
    loops = [
        make_loop(package, 1, augmented="afresh", **options),
        make_loop(package, 2, staged=True, **options),
    ]
    yield [[without_reads(summary) for summary in each] for each in package.run_interleaved(loops, 4)]
    yield from map(weights_of, loops)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        resident,
        staged,
        resident_by_position,
        resumed,
        resumed_staged,
        begun_again,
        replaced,
        dealt,
        by_turns,
    )
}


def are_same(ours, theirs):
    """Whether two outcomes are the same bit for bit."""
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.numpy().tobytes() == theirs.numpy().tobytes()
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(are_same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(are_same, ours, theirs))
    return repr(ours) == repr(theirs)
