"""Visits that the device counts and visits that are dealt to it, against a naive loop that counts every visit."""

import copy
import random

import pytest
import torch
from torch import nn

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import DeviceLoop, ResidentData
from batch_sampler_attn.errors import BatchAttentionWarning, ProtocolError, StateError
from tests.device.helpers import are_equal, make_data, make_loop, thinned, train_naively, without_reads

EPOCHS = 4

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIONS = {
    "warmup_epochs": [1, 2],
    "epoch_loss": ["first", "last", "all"],
    "max_visits": [2, 3, 10, None],
    "staged": [False, True],
    "drop_last": [False, True],
}


@pytest.mark.parametrize("case", thinned(OPTIONS))
def test_the_visits_that_a_loop_counts_are_those_that_a_naive_loop_makes(case):
    number, options = case
    data_options = {name: options.pop(name) for name in ("staged", "drop_last")}
    options["k"] = random.Random(number).uniform(0.8, 1.5)
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(**options), count_visits=True, **data_options)
    counted = []
    for _ in range(EPOCHS):
        loop.run_epoch()
        counted.append(loop.visit_counts)
    expected = train_naively(BatchAttentionSchedule(**options), *make_data(50), EPOCHS, **data_options)
    assert counted == expected.visits
    assert are_equal(loop.model, expected.model)


@pytest.mark.parametrize("seed", range(4))
def test_the_control_trains_on_the_device_as_in_a_naive_loop(seed):
    rng = random.Random(seed)
    dealt = [[rng.choice([1, 1, 1, 2, 5]) for _ in range(7)] for _ in range(EPOCHS)]
    schedule = EqualComputeControl(dealt, seed=seed)
    loop = make_loop(*make_data(50), schedule=schedule, count_visits=True)
    summaries, counted = [], []
    for _ in range(EPOCHS):
        summaries.append(loop.run_epoch())
        counted.append(loop.visit_counts)
    expected = train_naively(EqualComputeControl(dealt, seed=seed), *make_data(50), EPOCHS)
    assert counted == expected.visits
    assert [sorted(visits) for visits in counted] == [sorted(visits) for visits in dealt]
    assert list(map(without_reads, summaries)) == list(map(without_reads, expected.summaries))
    assert are_equal(loop.model, expected.model)


def test_the_control_repeats_a_batch_whose_loss_is_not_finite_as_often_as_planned():
    inputs = torch.tensor([[1.0], [float("nan")], [2.0]])

    def make_control():
        return EqualComputeControl([[2, 2, 2]])

    data = ResidentData(inputs, torch.zeros(3), 1, generator=torch.Generator(), shuffle=False)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0)

    def loss_fn(outputs, targets):
        # The weights stay what they are, whatever the loss is.
        return outputs.detach().abs().sum() + 0 * model.weight.sum()

    loop = DeviceLoop(model, optimizer, loss_fn, data, schedule=make_control(), count_visits=True)
    summary = loop.run_epoch()
    on_host = make_control()
    losses = iter([model(sample).abs().item() for sample in inputs for _ in range(2)])

    def train_on_host():
        for _ in on_host.attend(inputs):
            on_host.decide(next(losses))

    with pytest.warns(BatchAttentionWarning, match="nan"):
        train_on_host()
    assert loop.visit_counts == [2, 2, 2]
    assert summary.nonfinite_losses == 2
    assert without_reads(summary) == without_reads(on_host.last_summary)


def test_dealt_repeats_leave_no_threshold_behind():
    """Neither on the device nor on a host that goes on with the schedule."""
    schedule = EqualComputeControl([[2, 3, 2, 2, 2, 2, 4]] * 3)
    loop = make_loop(*make_data(50), schedule=schedule)
    loop.run_updates(4)
    assert (schedule.summary.repeats > 0, schedule.threshold, schedule.summary.threshold) == (True, None, None)
    assert (loop.run_epoch().threshold, schedule.threshold) == (None, None)
    for _ in schedule.attend(range(7)):
        schedule.decide(1.0)
        assert schedule.threshold is None
    assert schedule.last_summary.threshold is None


def test_a_run_saved_in_mid_epoch_goes_on_with_its_visits_and_with_those_dealt():
    inputs, targets = make_data(50)
    dealt = [[3, 1, 2, 1, 1, 4, 1]] * 3

    def make():
        return make_loop(inputs, targets, schedule=EqualComputeControl(dealt, seed=3), count_visits=True)

    whole, stopped, resumed = make(), make(), make()
    for _ in range(2):
        whole.run_epoch()
    stopped.run_epoch()
    stopped.run_updates(6)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert resumed.run_epoch() is not None
    assert resumed.visit_counts == whole.visit_counts
    assert resumed.updates == whole.updates
    assert are_equal(resumed.model, whole.model)


def test_a_state_with_visits_of_other_batches_is_refused():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets, count_visits=True)
    loop.run_epoch()
    for broken in ([1, 2], [1.5] * 7, "seven"):
        with pytest.raises(StateError, match="visit"):
            loop.load_state_dict({**loop.state_dict(), "visit_counts": broken})
    loop.load_state_dict(loop.state_dict())


def test_a_control_of_other_data_or_of_fewer_epochs_is_refused_before_anything_is_trained():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets, schedule=EqualComputeControl([[1] * 6]))
    before = copy.deepcopy(loop.model)
    with pytest.raises(ProtocolError, match="6 batches, and there are 7"):
        loop.run_epoch()
    assert are_equal(loop.model, before)
    loop = make_loop(inputs, targets, schedule=EqualComputeControl([[1] * 7]))
    loop.run_epoch()
    before = copy.deepcopy(loop.model)
    with pytest.raises(ProtocolError, match="epoch 1 was begun"):
        loop.run_epoch()
    assert are_equal(loop.model, before)


def test_visits_that_are_not_counted_are_not_made_up():
    loop = make_loop(*make_data(50))
    with pytest.raises(ProtocolError, match="count_visits=True"):
        _ = loop.visit_counts
    counting = make_loop(*make_data(50), count_visits=True)
    counting.enqueue(2)
    with pytest.raises(ProtocolError, match="in flight"):
        _ = counting.visit_counts


def test_the_order_says_which_samples_were_in_which_batch():
    inputs, targets = make_data(50)
    seen = []
    loop = make_loop(inputs, targets)
    hook = loop.model.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    loop.run_epoch()
    hook.remove()
    assert torch.equal(torch.cat(seen), inputs[loop.order])
    with pytest.raises(ProtocolError, match="DataLoader"):
        _ = make_loop(inputs, targets, staged=True).order


def test_the_summary_in_mid_epoch_is_of_the_updates_up_to_there():
    loop = make_loop(*make_data(50))
    loop.run_updates(3)
    assert (loop.summary.batches, loop.summary.visits) == (3, 3)
