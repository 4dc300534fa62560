"""What the device loop refuses, restores and leaves alone."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import DeviceLoop, ResidentData, StagedData, run_interleaved
from batch_sampler_attn.device import randomness as randomness_module
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from tests.device.test_loop import CLASSES, are_equal, broken, make_data, make_loop, make_optimizer, without_reads

pytestmark = pytest.mark.usefixtures("one_thread")


def are_same(value, other):
    """Whether two states are the same, bit for bit."""
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(are_same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(are_same, value, other))
    return value == other


def staged_loop(with_generator):
    inputs, targets = make_data(50)
    dataset = TensorDataset(inputs, targets)
    generator = torch.Generator().manual_seed(3) if with_generator else None
    loader = DataLoader(dataset, 8, sampler=RandomSampler(dataset, generator=generator), generator=generator)
    return broken(data=StagedData(loader, 8, "cpu", slots=4), schedule=BatchAttentionSchedule(1.0))


@pytest.mark.parametrize("with_generator", [False, True])
@pytest.mark.parametrize("stop_after_updates", [1, 3, 5, 10])
def test_staged_data_goes_on_in_mid_epoch_with_and_without_a_generator(with_generator, stop_after_updates):
    whole = staged_loop(with_generator)
    expected = [without_reads(whole.run_epoch()) for _ in range(4)]
    stopped = staged_loop(with_generator)
    summaries = []
    while stopped.updates < stop_after_updates:
        summary = stopped.run_updates(stop_after_updates - stopped.updates)
        summaries += [] if summary is None else [without_reads(summary)]
    resumed = staged_loop(with_generator)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    while len(summaries) < 4:
        summaries.append(without_reads(resumed.run_epoch()))
    assert summaries == expected
    assert are_equal(resumed.model, whole.model)


def test_batches_are_loaded_after_updates_were_enqueued_so_that_the_device_trains_meanwhile():
    inputs, targets = make_data(64)
    events = []

    class Watched(Dataset):
        def __len__(self):
            return len(inputs)

        def __getitem__(self, index):
            if index % 8 == 0:
                events.append(("load", index // 8))
            return inputs[index], targets[index]

    def loss_fn(outputs, targets):
        events.append(("train", None))
        return nn.functional.cross_entropy(outputs, targets)

    loop = broken(data=StagedData(DataLoader(Watched(), 8), 8, "cpu", slots=4), loss_fn=loss_fn)
    events.clear()
    loop.run_epoch()
    order = "".join(what[0] for what, _ in events)
    assert order == "ll" + "tt" + "ll" + "tt" + "ll" + "tt" + "ll" + "tt"


def test_constructing_staged_data_draws_nothing_from_the_users_generator():
    class Noisy(Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            return torch.randn(6), 0

    before = torch.get_rng_state()
    StagedData(DataLoader(Noisy(), 8), 8, "cpu")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(OptionError, match=r"pass a torch\.utils\.data\.DataLoader"):
        StagedData([torch.zeros(2)], 8, "cpu")


def test_a_state_is_refused_while_updates_are_in_flight():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    loop.enqueue(3)
    with pytest.raises(ProtocolError, match=r"settle\(now=True\)"):
        loop.state_dict()
    assert loop.settle(now=True) is None
    assert loop.state_dict()["updates"] == loop.updates == 7 + 3


def test_a_state_with_anything_wrong_is_refused_and_nothing_is_loaded():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    generators = saved["randomness"]["loop"]
    wrong_optimizer = copy.deepcopy(saved["optimizer"])
    wrong_optimizer["state"][0]["exp_avg"] = torch.zeros(1)
    for wrong, message in (
        ({"updates": -1}, "updates"),
        ({"host_reads": "3"}, "host_reads"),
        ({"is_in_epoch": 1}, "True or False"),
        ({"cursor": 9, "staged": 9}, "batch 9"),
        ({"epoch_randomness": None}, "randomness"),
        ({"randomness": {"loop": generators}}, "randomness"),
        ({"randomness": {**saved["randomness"], "data": None}}, "generator in the data"),
        ({"randomness": {**saved["randomness"], "data": torch.zeros(3, dtype=torch.uint8)}}, "the data's generator"),
        ({"randomness": {**saved["randomness"], "loop": {**generators, "cuda": None}}}, "saved on a CUDA device"),
        ({"randomness": {**saved["randomness"], "loop": {**generators, "fresh": None}}}, "fresh"),
        ({"optimizer": wrong_optimizer}, "shape"),
    ):
        for other in (loop, make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))):
            if other is not loop and "optimizer" in wrong:
                continue
            before = other.state_dict()
            with pytest.raises(StateError, match=message):
                other.load_state_dict({**saved, **wrong})
            after = other.state_dict()
            assert are_same(after, before)


def test_any_early_error_leaves_everything_as_before_the_call():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise ZeroDivisionError
        return nn.functional.cross_entropy(outputs, targets)

    loop = broken(loss_fn=loss_fn)
    with torch.no_grad():
        next(loop.model.parameters()).add_(1.0)  # between construction and the call: this is to be kept
    before = loop.state_dict()
    with pytest.raises(ZeroDivisionError):
        loop.run_epoch()
    assert are_same(loop.state_dict(), before)
    assert loop.run_epoch().batches == 6


def test_an_interrupt_in_an_update_leaves_a_loop_that_can_go_on():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets)

    loop = broken(loss_fn=loss_fn, schedule=BatchAttentionSchedule())
    with pytest.raises(KeyboardInterrupt):
        loop.run_epoch()
    summary = loop.run_epoch()
    assert (summary.batches, summary.visits) == (6, 6)


def parts_for_two():
    inputs, targets = make_data(48)
    datas = [ResidentData(inputs, targets, 8, generator=torch.Generator().manual_seed(index)) for index in range(2)]
    models = [nn.Sequential(nn.Linear(6, CLASSES)) for _ in range(2)]
    return inputs, targets, datas, models


def test_loops_that_share_data_or_a_generator_are_refused():
    inputs, targets, datas, models = parts_for_two()

    def loops(first, second):
        return [
            broken(model=m, optimizer=make_optimizer(m), data=d) for m, d in zip(models, (first, second), strict=True)
        ]

    with pytest.raises(OptionError, match=r"share one data object.*with its own generator"):
        run_interleaved(loops(datas[0], datas[0]), 1)
    again = ResidentData(inputs, targets, 8, generator=datas[0].generator)
    with pytest.raises(OptionError, match="share one generator"):
        run_interleaved(loops(datas[0], again), 1)
    assert len(run_interleaved(loops(*datas), 1)) == 2


def test_loops_that_share_an_optimizer_are_refused():
    _, _, datas, _ = parts_for_two()
    weights = nn.Linear(6, CLASSES)
    models = [nn.Sequential(weights), nn.Sequential(weights)]
    optimizer = make_optimizer(weights)
    loops = [broken(model=model, optimizer=optimizer, data=data) for model, data in zip(models, datas, strict=True)]
    with pytest.raises(OptionError, match="share one optimizer"):
        run_interleaved(loops, 1)


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(OptionError, match="parameters that the model has not"):
        broken(optimizer=make_optimizer(nn.Linear(2, 2)))


def test_modules_that_were_in_evaluation_mode_stay_frozen():
    loop = make_loop(*make_data(50))
    frozen = copy.deepcopy(loop.model)
    frozen.train()
    frozen[1].eval()
    loop = broken(model=frozen, optimizer=make_optimizer(frozen))
    statistics = frozen[1].running_mean.clone()
    loop.run_epoch()
    frozen.eval()
    loop.run_epoch()
    frozen.train()
    loop.run_epoch()
    assert torch.equal(frozen[1].running_mean, statistics)
    assert frozen[3].training


def test_ignored_targets_may_stand_among_the_classes():
    inputs, targets = make_data(48)
    targets[::5] = -100
    loop = broken(data=ResidentData(inputs, targets, 8, generator=torch.Generator()))
    assert loop.run_epoch().batches == 6
    targets[1] = -1
    with pytest.raises(OptionError, match="targets are -1 to 2"):
        broken(data=ResidentData(inputs, targets, 8, generator=torch.Generator()))


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
        return [getattr(backend, name) for backend, name in randomness_module._precision_settings()]

    before = settings()
    with randomness_module.precision(torch.device("cuda"), False):
        assert settings() == (["ieee"] * 3 if is_new else [False] * 2)
    assert settings() == before
    with randomness_module.precision(torch.device("cuda"), True):
        assert settings() == (["tf32"] * 3 if is_new else [True] * 2)
    assert settings() == before


def test_a_learning_rate_tensor_is_loaded_in_place():
    model = nn.Linear(6, CLASSES)
    rate = torch.tensor(1e-2)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    data = ResidentData(*make_data(48), 8, generator=torch.Generator())
    loop = DeviceLoop(model, optimizer, nn.functional.cross_entropy, data)
    loop.run_epoch()
    saved = loop.state_dict()
    rate.mul_(0.5)
    loop.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(1e-2)
