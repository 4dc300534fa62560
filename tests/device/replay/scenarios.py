"""Trainings whose outcome is the same with captured and with eager updates, on a GPU or on what stands in for one."""

import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.errors import DeviceLoopError
from tests.device import helpers
from tests.device.helpers import take_turns, without_reads

# Three full batches and a shorter one.
SAMPLES, BATCH_SIZE = 14, 4


def shift(inputs):
    """Draws in every visit."""
    return inputs + torch.rand(len(inputs), 1, device=inputs.device)


class Scale:
    """Depends on the epoch."""

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __call__(self, inputs):
        return inputs * (1 + 0.1 * self.epoch)


def moved(model):
    """A model whose parameters and buffers are put on the device, in place."""
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(parameter.detach().cuda()))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, buffer.cuda())
    return model


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def make_loop(index=0, *, optimizer=momentum, schedule=None, **options):
    """A loop and its optimizer, which ``optimizer`` makes of parameters."""
    torch.cuda.manual_seed_all(index)
    model = moved(helpers.make_model(index))
    made, schedule = optimizer(model.parameters()), schedule or BatchAttentionSchedule(1.0, max_visits=4)
    data = [each.cuda() for each in helpers.make_data(SAMPLES, index)]
    generator = torch.Generator().manual_seed(index)
    options = {"model": model, "optimizer": lambda _: made, "schedule": schedule, "generator": generator, **options}
    return helpers.make_loop(*data, BATCH_SIZE, **options), made


def weights_of(loop):
    """As a caller copies them to the host, from the caller's stream."""
    return {name: value.cpu() for name, value in loop.model.state_dict().items()}


def run(loop, epochs):
    return [without_reads(loop.run_epoch()) for _ in range(epochs)]


def trained(loop, epochs):
    for _ in range(epochs):
        yield run(loop, 1)
        yield loop.visit_counts
    yield weights_of(loop)


# Each yields what is compared.


def visited(**options):
    """With numbers drawn in every visit, and another learning rate from the fifth epoch on."""
    loop, optimizer = make_loop(prepare=shift, **options)
    yield from trained(loop, 4)
    optimizer.param_groups[0]["lr"] *= 0.3
    yield from trained(loop, 2)
    yield loop.order.cpu()


def rate_as_a_tensor(**options):
    """With Adam, and a learning rate on the device, which the caller changes in place, while drawing numbers too."""
    rate = torch.tensor(0.05, device="cuda")

    def adam(parameters):
        return torch.optim.Adam(parameters, lr=rate, capturable=True)

    loop, _ = make_loop(optimizer=adam, prepare=Scale(), **options)
    for _ in range(4):
        yield run(loop, 1)
        yield weights_of(loop)
        yield torch.rand(2, device="cuda").cpu()
        rate.mul_(0.5)


def resumed(**options):
    """A state of mid-epoch, loaded by the loop that trained on after it."""
    loop, _ = make_loop(prepare=shift, schedule=BatchAttentionSchedule(1.0, max_visits=2), **options)
    yield run(loop, 3)
    yield loop.run_updates(3)
    state = loop.state_dict()
    yield run(loop, 2)
    loop.load_state_dict(state)
    yield weights_of(loop)
    yield from trained(loop, 4)


def replaced(**options):
    """A buffer that the caller replaces, and a parameter that is frozen, and thawed."""
    loop, _ = make_loop(schedule=BatchAttentionSchedule(1.0, max_visits=2), **options)
    for change in range(4):
        yield run(loop, 2)
        if change == 0:
            loop.model[1].running_mean = loop.model[1].running_mean * 0.5
        else:
            loop.model[4].bias.requires_grad_(change == 2)
        yield weights_of(loop)
    yield run(loop, 1)
    yield weights_of(loop)


def random(**options):
    """Repeats that are drawn, other ones in each epoch."""
    visits = [[1, 3, 1, 2], [2, 1, 1, 4], [1, 1, 3, 1], [3, 1, 1, 2], [1, 2, 4, 1], [1, 1, 1, 3]]
    loop, _ = make_loop(schedule=EqualComputeControl(visits), **options)
    yield from trained(loop, len(visits))


def budgeted(**options):
    """Epochs of a fixed length that end in mid-epoch of the data, a budget, and a floor."""
    schedule = BatchAttentionSchedule(0.8, budget=0.5, floor=0.3, epoch_length=6)
    loop, _ = make_loop(schedule=schedule, **options)
    yield from trained(loop, 10)
    yield schedule.threshold


class Asking:
    """Reads a value on the host in batches of more than ``most`` samples, and fewer than ``least``."""

    least, most = 0, SAMPLES

    def __call__(self, inputs):
        shifted, is_asking = shift(inputs), not self.least <= len(inputs) <= self.most
        return shifted * 2 if is_asking and shifted.sum().item() > 1e9 else shifted


def mended(**options):
    """Captures that fail, and work once what was wrong is mended: at first, of the shorter batch, after a new rate."""
    asking = Asking()
    loop, optimizer = make_loop(prepare=asking, **options)
    breaks, failed = {0: {"most": 0}, 2: {"least": BATCH_SIZE}, 6: {"most": 0}}, 0
    for epoch in range(9):
        vars(asking).update(breaks.get(epoch, {}))
        if epoch == 6:
            optimizer.param_groups[0]["lr"] *= 0.5
        try:
            yield run(loop, 1)
        except DeviceLoopError:
            failed += 1
            asking.least, asking.most = 0, SAMPLES
            yield run(loop, 1)
    assert failed == (0 if options else 3)
    yield weights_of(loop)


def by_turns(**options):
    """Two loops that take turns, as in the guide, if they are captured; otherwise each trains alone."""
    loops = [make_loop(1, prepare=shift, **options)[0], make_loop(2, **options)[0]]
    yield [run(loop, 4) for loop in loops] if options else take_turns(loops, 4, most=2)
    yield from map(weights_of, loops)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (visited, rate_as_a_tensor, resumed, replaced, random, budgeted, mended, by_turns)
}
