"""A state that was saved in the middle of an epoch goes on over the data that it is of, and over no other."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from tests.device.helpers import add_noise, make_data, make_model, make_optimizer, refused, same

pytestmark = pytest.mark.usefixtures("one_thread")


def make_loop(samples=44, batch_size=8, *, staged=False, shuffle=True, drop_last=False, labels=0, slots=3, seed=5):
    inputs, targets = make_data(samples)[0], make_data(samples, labels)[1]
    generator = torch.Generator().manual_seed(seed)
    if staged:
        dataset = TensorDataset(inputs, targets)
        sampler = RandomSampler(dataset, generator=generator) if shuffle else None
        loader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last, generator=generator)
        data = StagedData(loader, batch_size, "cpu", slots=slots)
    else:
        data = ResidentData(inputs, targets, batch_size, generator=generator, shuffle=shuffle, drop_last=drop_last)
    model = make_model()
    loss_fn = nn.functional.cross_entropy
    return DeviceLoop(model, make_optimizer(model), loss_fn, data, schedule=BatchAttentionSchedule(1.0), seed=1)


def saved_in_mid_epoch(**options):
    loop = make_loop(**options)
    loop.run_epoch()
    loop.run_updates(3)
    return loop.state_dict()


# Each with as many batches as the data that the state is of.
OTHERS = {
    "a sample less": ({"samples": 43}, "samples (saved 44, here 43)"),
    "a sample more, in no batch": ({"samples": 45, "drop_last": True}, "samples (saved 44, here 45)"),
    "another batch size": ({"samples": 33, "batch_size": 6}, "batch_size (saved 8, here 6)"),
    "without an order": ({"shuffle": False}, "(saved "),
    "other targets": ({"labels": 1}, "targets (saved "),
    "in another place": ({"staged": True}, "slots=None"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("staged", [False, True])
def test_a_state_over_other_data_is_refused_in_mid_epoch_and_nothing_is_loaded(other, staged):
    changes, message = OTHERS[other]
    drop_last = changes.get("drop_last", False)
    if "staged" in changes:
        changes, message = {"staged": not staged}, "slots=3" if staged else message
    saved = saved_in_mid_epoch(staged=staged, drop_last=drop_last)
    fresh, begun = (make_loop(**{"staged": staged, **changes}) for _ in range(2))
    begun.run_updates(2)
    for loop in (fresh, begun):
        expected = copy.deepcopy(begun.state_dict()) if loop is begun else None
        assert message in refused(loop, copy.deepcopy(saved))
        if expected is not None:
            assert same(begun.state_dict(), expected)


def test_another_order_is_told_by_itself_where_all_targets_are_alike():
    loops = [make_loop(), make_loop(), make_loop(shuffle=False)]
    for loop in loops:
        loop.parts.data.targets.zero_()
    source, alike, other = loops
    source.run_updates(3)
    assert "order (saved " in refused(other, source.state_dict())
    alike.load_state_dict(source.state_dict())


@pytest.mark.parametrize("sample", [0, 9, 23])
def test_a_single_other_target_is_told_in_whichever_batch_it_came(sample):
    source, other = (make_loop(staged=True, shuffle=False) for _ in range(2))
    source.run_updates(3)
    targets = other.parts.data.loader.dataset.tensors[1]
    targets[sample] = (targets[sample] + 1) % 3
    assert "targets (saved " in refused(other, source.state_dict())


def test_a_state_of_other_data_leaves_the_order_of_the_epoch_that_is_over():
    loop = make_loop(labels=1)
    loop.run_epoch()
    order = loop.order.clone()
    refused(loop, saved_in_mid_epoch())
    assert torch.equal(loop.order, order)


@pytest.mark.parametrize("staged", [False, True])
def test_a_loop_that_refused_a_state_of_other_data_goes_on_as_if_it_had_not(staged):
    saved = saved_in_mid_epoch(staged=staged)
    expected, loop = make_loop(labels=1, staged=staged), make_loop(labels=1, staged=staged)
    for each in (expected, loop):
        each.run_updates(2)
    refused(loop, saved)
    for _ in range(2):
        assert loop.run_epoch() == expected.run_epoch()
    assert same(loop.state_dict(), expected.state_dict())


@pytest.mark.parametrize("staged", [False, True])
def test_the_order_comes_from_the_state_whatever_generator_is_here(staged):
    saved = saved_in_mid_epoch(staged=staged)
    loop, other = make_loop(staged=staged), make_loop(staged=staged, seed=6)
    for each in (loop, other):
        each.load_state_dict(copy.deepcopy(saved))
        each.run_epoch()
    assert same(loop.state_dict(), other.state_dict())


@pytest.mark.parametrize("staged", [False, True])
def test_a_state_that_says_nothing_of_its_data_is_loaded(staged):
    saved = saved_in_mid_epoch(staged=staged)
    del saved["data"]
    loop = make_loop(staged=staged)
    loop.load_state_dict(saved)
    assert loop.run_epoch().batches == 6


def test_a_state_whose_word_about_its_data_was_changed_is_refused():
    saved = saved_in_mid_epoch()
    for changed in (1, {}, {**saved["data"], "samples": True}, {**saved["data"], "order": torch.zeros(2)}):
        refused(make_loop(), {**saved, "data": changed})
    for slots in (torch.zeros(2), "3", 0):
        assert "slots" in refused(make_loop(), {**saved, "slots": slots})
    for ahead in (torch.zeros(2), "3", None, -1):
        assert "read_ahead" in refused(make_loop(), {**saved, "read_ahead": ahead})
    staged = saved_in_mid_epoch(staged=True)
    for slots in (torch.zeros(2), 3.0, None):
        assert "slots" in refused(make_loop(staged=True), {**staged, "slots": slots})


@pytest.mark.parametrize("staged", [False, True])
def test_images_that_are_augmented_otherwise_are_no_other_data(staged):
    class Augmented(TensorDataset):
        draws = torch.Generator()

        def __getitem__(self, index):
            inputs, targets = super().__getitem__(index)
            return inputs + torch.rand(inputs.shape, generator=self.draws), targets

    saved = saved_in_mid_epoch(staged=staged)
    loop = make_loop(staged=staged)
    if staged:
        loader = loop.parts.data.loader
        loader.__dict__["dataset"] = Augmented(*loader.dataset.tensors)
    else:
        loop.parts.data.inputs.add_(1.0)
    loop.load_state_dict(saved)
    assert loop.run_epoch().batches == 6


def test_targets_that_a_data_set_makes_up_afresh_are_told_of_but_do_not_stand_in_the_way_of_an_undo():
    class Moody(TensorDataset):
        draws = torch.Generator()

        def __getitem__(self, index):
            inputs, _ = super().__getitem__(index)
            return inputs, torch.randint(0, 3, (), generator=self.draws)

    def make(fails_at=None):
        dataset, calls = Moody(*make_data(44)), []

        def loss_fn(outputs, targets):
            calls.append(targets)
            if len(calls) == fails_at:
                raise ZeroDivisionError
            return nn.functional.cross_entropy(outputs, targets)

        model = make_model()
        data = StagedData(DataLoader(dataset, 8), 8, "cpu", slots=3)
        return DeviceLoop(model, make_optimizer(model), loss_fn, data)

    loop = make()
    loop.run_updates(2)
    saved = loop.state_dict()
    assert "targets (saved " in refused(make(), saved)
    # Loaded without being asked, the loop is in mid-epoch as its first call fails.
    del saved["data"]
    failing = make(fails_at=1)
    failing.load_state_dict(saved)
    with pytest.raises(ZeroDivisionError):
        failing.run_epoch()
    assert (failing.updates, failing.parts.progress.cursor) == (2, 2)
    assert failing.run_epoch().batches == 6


@pytest.mark.parametrize("staged", [False, True])
def test_a_resumed_epoch_has_the_numbers_for_its_augmentation_that_it_had(staged):
    def make():
        inputs, targets = make_data(44)
        if staged:
            dataset = TensorDataset(inputs, targets)
            loader = DataLoader(dataset, 8, generator=torch.Generator().manual_seed(5))
            data = StagedData(loader, 8, "cpu", slots=4)
        else:
            data = ResidentData(inputs, targets, 8, generator=torch.Generator().manual_seed(5))
        model = make_model()
        augmentation = Augmentation(add_noise, draws=6)
        return DeviceLoop(model, make_optimizer(model), nn.functional.cross_entropy, data, augmentation=augmentation)

    whole = make()
    whole.run_epoch()
    whole.run_updates(3)
    saved = copy.deepcopy(whole.state_dict())
    resumed = make()
    resumed.load_state_dict(saved)
    for _ in range(2):
        assert whole.run_epoch() == resumed.run_epoch()
    assert same(resumed.state_dict(), whole.state_dict())
