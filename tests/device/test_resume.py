"""A run that is saved and goes on, and what loading leaves where it is."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from tests.device.helpers import (
    CLASSES,
    add_noise,
    are_equal,
    loop_with,
    make_data,
    make_loop,
    make_small_loop,
    refused,
    same,
    without_reads,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def mid_epoch_loop(*, staged, has_generator):
    generator = torch.Generator().manual_seed(3) if has_generator else None
    inputs, targets = make_data(50)
    if not staged:
        return make_loop(inputs, targets, schedule=BatchAttentionSchedule(1.0))
    dataset = TensorDataset(inputs, targets)
    loader = DataLoader(dataset, 8, sampler=RandomSampler(dataset, generator=generator), generator=generator)
    return loop_with(data=StagedData(loader, 8, "cpu", slots=4), schedule=BatchAttentionSchedule(1.0))


@functools.cache
def uninterrupted(epochs, **options):
    loop = mid_epoch_loop(**options)
    return [without_reads(loop.run_epoch()) for _ in range(epochs)], loop.model


@pytest.mark.parametrize("data", [(False, True), (True, True), (True, False)], ids=["resident", "staged", "unseeded"])
@pytest.mark.parametrize(
    "stop_after_updates", [1, 7, 10, 31, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (3, 5, 13, 20))]
)
def test_a_run_saved_in_mid_epoch_goes_on_bit_for_bit(data, stop_after_updates):
    options = dict(zip(("staged", "has_generator"), data, strict=True))
    expected, model = uninterrupted(5, **options)
    stopped = mid_epoch_loop(**options)
    summaries = []
    while stopped.updates < stop_after_updates:
        summary = stopped.run_updates(stop_after_updates - stopped.updates)
        summaries += [] if summary is None else [without_reads(summary)]
    saved = copy.deepcopy(stopped.state_dict())
    stopped.run_epoch()  # what happens after saving does not matter
    resumed = mid_epoch_loop(**options)
    resumed.load_state_dict(saved)
    while len(summaries) < 5:
        summaries.append(without_reads(resumed.run_epoch()))
    assert summaries == expected
    assert are_equal(resumed.model, model)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "rate as a tensor"])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_training_that_goes_on_changes_nothing_in_the_state_that_was_saved_or_loaded(optimizer, is_fresh):
    loop = make_small_loop(optimizer)
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    kept = copy.deepcopy(saved)
    if is_fresh:
        loop = make_small_loop(optimizer)
        loop.load_state_dict(saved)
    for _ in range(2):
        loop.run_epoch()
    assert same(saved, kept)
    loop.load_state_dict(saved)
    assert same(loop.state_dict(), kept)


def test_loading_keeps_every_tensor_where_it_is():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    saved = loop.state_dict()
    loop.run_epoch()

    def addresses():
        optimizer = loop.parts.optimizer.state.values()
        tensors = [*loop.model.state_dict().values(), *(value for state in optimizer for value in state.values())]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    loop.load_state_dict(saved)
    assert addresses() == before


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


def test_options_of_the_step_stay_as_they_are_here():
    loop = make_small_loop("momentum")
    loop.run_epoch()
    saved = copy.deepcopy(loop.state_dict())
    saved["optimizer"]["param_groups"][0].update(foreach=True, lr=0.5)
    other = make_small_loop("momentum")
    other.load_state_dict(saved)
    (group,) = other.parts.optimizer.param_groups
    assert (group["foreach"], group["lr"]) == (None, 0.5)


def test_a_learning_rate_scheduler_may_be_there_or_not_yet():
    loop = make_small_loop()
    torch.optim.lr_scheduler.StepLR(loop.parts.optimizer, 1)
    loop.run_epoch()
    saved = loop.state_dict()
    other = make_small_loop()
    other.load_state_dict(saved)
    assert other.parts.optimizer.param_groups[0]["initial_lr"] == 0.01
    loop.load_state_dict(make_small_loop().state_dict())


def test_a_state_that_was_saved_before_rings_were_is_loaded():
    for staged in (False, True):
        whole = make_small_loop(staged=staged)
        whole.run_epoch()
        whole.run_updates(2)
        saved = copy.deepcopy(whole.state_dict())
        del saved["slots"]
        expected = whole.run_epoch()
        resumed = make_small_loop(staged=staged)
        resumed.load_state_dict(saved)
        assert resumed.run_epoch() == expected
        assert same(resumed.state_dict(), whole.state_dict())


def test_a_data_set_that_fails_while_a_state_is_loaded_leaves_the_loop_as_it_was():
    expected = make_small_loop(staged=True)
    expected.run_updates(2)
    loop = make_small_loop(staged=True)
    loop.run_updates(2)
    before = copy.deepcopy(loop.state_dict())
    other = make_small_loop(staged=True)
    other.run_epoch()
    other.run_updates(3)
    loader = loop.parts.data.loader
    dataset, failures = loader.dataset, [OSError("the disk is away")]
    tensors, getitem = dataset.tensors, TensorDataset.__getitem__

    class Failing(TensorDataset):
        def __getitem__(self, index):
            if failures:
                raise failures.pop()
            return getitem(self, index)

    loader.__dict__["dataset"] = Failing(*tensors)
    with pytest.raises(OSError, match="the disk is away"):
        loop.load_state_dict(other.state_dict())
    assert same(loop.state_dict(), before)
    assert loop.run_epoch() == expected.run_epoch()
    assert same(loop.state_dict(), expected.state_dict())


def test_numbers_for_augmentation_are_none_of_those_that_dropout_draws():
    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, CLASSES))
        data = StagedData(DataLoader(TensorDataset(*make_data(80)), 8), 8, "cpu", slots=4)
        augmentation = Augmentation(add_noise, draws=6)
        return loop_with(
            model=model, optimizer=torch.optim.Adam(model.parameters()), data=data, augmentation=augmentation
        )

    whole = make()
    whole.run_updates(5)
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert resumed.run_epoch() == whole.run_epoch()
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("staged", [False, True])
def test_a_model_that_cannot_take_a_state_leaves_the_loop_as_it_was(staged):
    """What it draws next included, in mid-epoch and between epochs."""

    class Choosy(nn.Linear):
        def load_state_dict(self, state_dict, *rest, **options):
            super().load_state_dict(state_dict, *rest, **options)
            if state_dict["bias"][0] == 100:
                raise ValueError("not with such a bias")

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Dropout(0.5), Choosy(6, CLASSES))
        model.load_state_dict = model[1].load_state_dict = lambda state, *rest, **options: Choosy.load_state_dict(
            model[1], {name[2:]: value for name, value in state.items()}
        )
        generator = torch.Generator().manual_seed(3)
        dataset = TensorDataset(*make_data(48))
        data = (
            StagedData(DataLoader(dataset, 8, sampler=RandomSampler(dataset, generator=generator)), 8, "cpu", slots=2)
            if staged
            else ResidentData(*dataset.tensors, 8, generator=generator)
        )
        augmentation = Augmentation(add_noise, draws=6)
        return loop_with(
            model=model, optimizer=torch.optim.Adam(model.parameters()), data=data, augmentation=augmentation
        )

    source = make()
    source.run_epoch()
    source.run_updates(3)
    refusable = copy.deepcopy(source.state_dict())
    refusable["model"]["1.bias"][0] = 100
    for updates in (2, 6):
        loop, expected = make(), make()
        for each in (loop, expected):
            each.run_updates(updates)
        assert "not with such a bias" in refused(loop, refusable)
        for _ in range(2):
            assert loop.run_epoch() == expected.run_epoch()
        assert same(loop.state_dict(), expected.state_dict())


def test_an_interrupt_while_a_state_is_loaded_leaves_the_loop_as_it_was():
    class Interrupted(TensorDataset):
        interrupts = ()

        def __getitem__(self, index):
            if self.interrupts:
                raise self.interrupts.pop()
            return super().__getitem__(index)

    def make():
        generator = torch.Generator().manual_seed(3)
        dataset = Interrupted(*make_data(48))
        loader = DataLoader(dataset, 8, sampler=RandomSampler(dataset, generator=generator))
        return loop_with(data=StagedData(loader, 8, "cpu", slots=4), schedule=BatchAttentionSchedule(1.0))

    source = make()
    source.run_epoch()
    source.run_updates(3)
    loop, expected = make(), make()
    for each in (loop, expected):
        each.run_updates(2)
    loop.parts.data.loader.dataset.interrupts = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        loop.load_state_dict(source.state_dict())
    assert loop.run_epoch() == expected.run_epoch()
    assert same(loop.state_dict(), expected.state_dict())


def test_a_recorder_that_raises_does_not_keep_a_state_from_being_loaded_whole():
    class Complaining:
        def on_visit(self, *visit):
            pass

        def on_epoch_end(self, summary):
            pass

        def on_state_loaded(self, epoch, visits):
            raise OSError("the disk is full")

        def flush(self):
            pass

    def make(*recorders):
        return make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0, recorders=list(recorders)))

    whole = make()
    whole.run_epoch()
    whole.run_updates(3)
    loop = make(Complaining())
    with pytest.raises(OSError, match="the disk is full"):
        loop.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert loop.run_epoch() == whole.run_epoch()
    assert same(loop.state_dict(), whole.state_dict())


def test_an_order_drawn_from_the_samplers_own_generator_goes_on_too():
    def make():
        dataset = TensorDataset(torch.arange(24.0).reshape(12, 2), torch.zeros(12, 1))
        sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(3))
        data = StagedData(DataLoader(dataset, 2, sampler=sampler), 2, "cpu", slots=2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        augmentation = Augmentation(add_noise, draws=2)
        return DeviceLoop(model, optimizer, nn.functional.mse_loss, data, augmentation=augmentation)

    whole = make()
    whole.run_epoch()
    whole.run_updates(2)
    saved = copy.deepcopy(whole.state_dict())
    whole.run_epoch()
    whole.run_epoch()
    resumed = make()
    resumed.load_state_dict(saved)
    resumed.run_epoch()
    resumed.run_epoch()
    assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("there", "here"), [(8, 2), (3, 2), (2, 8)])
def test_a_ring_of_another_size_is_refused_in_mid_epoch_and_taken_between_epochs(there, here):
    loop = make_small_loop(staged=True, slots=there)
    loop.run_epoch()
    between = copy.deepcopy(loop.state_dict())
    loop.run_updates(1)
    said = refused(make_small_loop(staged=True, slots=here), loop.state_dict())
    assert f"slots={there}" in said
    assert f"slots={here}" in said
    loop.run_epoch()
    other = make_small_loop(staged=True, slots=here)
    other.load_state_dict(between)
    other.run_epoch()
    assert same(other.state_dict()["model"], loop.state_dict()["model"])


def test_a_state_without_slots_is_refused_where_its_batches_do_not_fit():
    loop = make_small_loop(staged=True, slots=8)
    loop.run_updates(1)
    saved = loop.state_dict()
    del saved["slots"]
    assert "slots=unknown, and here slots=2" in refused(make_small_loop(staged=True, slots=2), saved)
