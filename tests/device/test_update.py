"""What an update does to inputs and modules, and what it leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.device.randomness import precision, precision_settings
from tests.device.helpers import (
    CLASSES,
    ORDER_SEED,
    SEED,
    add_noise,
    are_equal,
    loop_with,
    make_data,
    make_loop,
    make_optimizer,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_a_repeat_sees_the_same_augmented_batch_or_a_fresh_one_as_asked(fresh, staged):
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, CLASSES)

        def forward(self, x):
            if self.training:
                seen.append(x.clone())
            return self.linear(x)

    inputs, targets = make_data(16)
    dataset = TensorDataset(inputs, targets)
    data = (
        StagedData(DataLoader(dataset, 8), 8, "cpu", slots=2)
        if staged
        else ResidentData(inputs, targets, 8, generator=torch.Generator().manual_seed(0))
    )
    model = Watched()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    augmentation = Augmentation(add_noise, draws=6, fresh=fresh)
    # No update changes anything, so with k = 0.5 every batch repeats up to the limit.
    schedule = BatchAttentionSchedule(0.5, max_visits=3)
    loop = DeviceLoop(model, optimizer, nn.functional.cross_entropy, data, schedule=schedule, augmentation=augmentation)
    loop.run_epoch()
    seen.clear()
    loop.run_epoch()
    assert len(seen) == 6
    for first, second, third in (seen[:3], seen[3:]):
        assert torch.equal(first, second) is not fresh
        assert torch.equal(second, third) is not fresh
    assert not torch.equal(seen[0], seen[3])


def test_bytes_are_scaled_and_normalized_on_the_device():
    images = torch.randint(0, 256, (16, 3, 4, 4), dtype=torch.uint8)
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(48, 2)

        def forward(self, x):
            seen.append(x)
            return self.linear(x.flatten(1))

    mean, deviation = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    model = Watched()
    data = ResidentData(images, torch.zeros(16, dtype=torch.int64), 16, generator=torch.Generator(), shuffle=False)
    loop = DeviceLoop(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.functional.cross_entropy,
        data,
        normalize=(mean, deviation),
        channels_last=True,
        autocast=torch.bfloat16,
    )
    loop.run_epoch()
    assert torch.allclose(seen[-1], (images.float() / 255 - 0.5) / 0.25)
    assert seen[-1].is_contiguous(memory_format=torch.channels_last)


def test_modules_that_were_in_evaluation_mode_stay_frozen():
    loop = make_loop(*make_data(50))
    frozen = copy.deepcopy(loop.model)
    frozen.train()
    frozen[1].eval()
    loop = loop_with(model=frozen, optimizer=make_optimizer(frozen))
    statistics = frozen[1].running_mean.clone()
    loop.run_epoch()
    frozen.eval()
    loop.run_epoch()
    frozen.train()
    loop.run_epoch()
    assert torch.equal(frozen[1].running_mean, statistics)
    assert frozen[3].training


def test_a_model_that_is_in_evaluation_mode_throughout_is_trained_throughout():
    """As one is that was evaluated just before."""
    inputs, targets = make_data(50)
    evaluated, expected = make_loop(inputs, targets).model, make_loop(inputs, targets)
    evaluated.eval()
    loop = loop_with(
        model=evaluated,
        optimizer=make_optimizer(evaluated),
        data=ResidentData(inputs, targets, 8, generator=torch.Generator().manual_seed(ORDER_SEED)),
        seed=SEED,
    )
    assert loop.run_epoch() == expected.run_epoch()
    assert all(module.training for module in evaluated.modules())
    assert are_equal(evaluated, expected.model)


class Setting:
    def __init__(self, **settings):
        vars(self).update(settings)


@pytest.mark.parametrize("is_new", [False, True])
def test_precision_is_set_and_put_back_through_the_setting_that_there_is(monkeypatch, is_new):
    if is_new:
        matmul = Setting(fp32_precision="none")
        cudnn = Setting(conv=Setting(fp32_precision="tf32"), rnn=Setting(fp32_precision="tf32"))
    else:
        matmul, cudnn = Setting(allow_tf32=False), Setting(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)

    def settings():
        return [getattr(backend, name) for backend, name in precision_settings()]

    before = settings()
    with precision(torch.device("cuda"), False):
        assert settings() == (["ieee"] * 3 if is_new else [False] * 2)
    assert settings() == before
    with precision(torch.device("cuda"), True):
        assert settings() == (["tf32"] * 3 if is_new else [True] * 2)
    assert settings() == before


def test_in_an_autocast_of_the_callers_no_weights_are_stale():
    """Its cache outlives an update, and has weights as they were cast first."""

    def new_loop():
        return make_loop(*make_data(50), autocast=torch.bfloat16, schedule=BatchAttentionSchedule(1.0))

    expected = new_loop()
    summaries = [expected.run_epoch() for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loop = new_loop()
        assert [loop.run_epoch() for _ in range(3)] == summaries
    assert are_equal(loop.model, expected.model)
