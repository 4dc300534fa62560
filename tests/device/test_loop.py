"""The device loop against a naive loop around ``decide``, bit for bit; on the CPU, where both run eagerly."""

import copy
import math
import random
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData, run_interleaved
from batch_sampler_attn.device.counters import DeviceCounters
from batch_sampler_attn.errors import (
    BatchAttentionWarning,
    DeviceLoopError,
    OptionError,
    ProtocolError,
    StateError,
)
from batch_sampler_attn.rule import Options, State, visit

SEED = 7
ORDER_SEED = 5
CLASSES = 3


pytestmark = pytest.mark.usefixtures("one_thread")


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


def train_naively(schedule, inputs, targets, epochs, batch_size=8, *, staged=False, drop_last=False):
    """The same training in a hand-written loop; returns summaries, losses and the final model."""
    model = make_model()
    optimizer = make_optimizer(model)
    generator = torch.Generator().manual_seed(ORDER_SEED)
    dataset = TensorDataset(inputs, targets)
    summaries, losses = [], []
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
            for x, y in schedule.attend(batches):
                loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                schedule.decide(losses[-1])
            summaries.append(schedule.last_summary if schedule.epoch else schedule.summary)
    return summaries, losses, model


def without_reads(summary):
    return {**summary.as_dict(), "host_reads": None}


def are_equal(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def random_options(rng):
    return {
        "k": rng.uniform(0.8, 1.5),
        "warmup_epochs": rng.choice([1, 1, 2]),
        "epoch_loss": rng.choice(["first", "last", "all"]),
        "max_visits": rng.choice([2, 3, 10, None]),
        "window": rng.choice([None, None, None, 5]),
    }


@pytest.mark.parametrize("seed", range(24))
def test_losses_thresholds_summaries_and_weights_equal_those_of_a_naive_loop(seed):
    rng = random.Random(seed)
    options, staged, drop_last = random_options(rng), rng.random() < 0.5, rng.random() < 0.5
    inputs, targets = make_data(rng.choice([48, 50, 53]), seed)
    losses = []
    schedule = BatchAttentionSchedule(**options)
    loop = make_loop(inputs, targets, staged=staged, drop_last=drop_last, losses=losses, schedule=schedule)
    summaries = [loop.run_epoch() for _ in range(5)]
    naive = BatchAttentionSchedule(**options)
    expected, expected_losses, model = train_naively(naive, inputs, targets, 5, staged=staged, drop_last=drop_last)
    assert losses == expected_losses
    assert [without_reads(summary) for summary in summaries] == [without_reads(summary) for summary in expected]
    assert schedule.threshold == naive.threshold
    assert are_equal(loop.model, model)


def test_without_a_schedule_it_is_plain_training():
    inputs, targets = make_data(50)
    loop = make_loop(inputs, targets)
    summaries = [loop.run_epoch() for _ in range(3)]
    expected, _, model = train_naively(BatchAttentionSchedule(max_visits=1), inputs, targets, 3)
    assert are_equal(loop.model, model)
    assert [summary.mean_loss for summary in summaries] == [summary.mean_loss for summary in expected]
    assert all(summary.repeats == 0 and summary.threshold is None for summary in summaries)


def random_loss(rng):
    return rng.choice([math.nan, math.inf, -math.inf]) if rng.random() < 0.1 else rng.lognormvariate(0.0, 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_the_counters_equal_the_rule_after_every_visit(seed):
    rng = random.Random(seed)
    options = Options(epoch_loss=rng.choice(["first", "last", "all"]), max_visits=rng.choice([None, 1, 2, 5]))
    state = State()
    state.epoch, state.threshold = 3, rng.choice([None, 1.0])
    counters = DeviceCounters(options, torch.device("cpu"))
    counters.write(state, cursor=0)
    for _ in range(100):
        # As losses are on a device: in single precision.
        loss = torch.tensor(random_loss(rng), dtype=torch.float32)
        visit(options, state, loss.item())
        counters.visit(loss)
        assert counters.read() == (state, state.batches)


def test_the_counters_take_as_much_memory_after_any_number_of_visits():
    counters = DeviceCounters(Options(), torch.device("cpu"))
    addresses = [tensor.data_ptr() for tensor in (counters._floats, counters._integers)]
    for _ in range(1000):
        counters.visit(torch.tensor(1.0))
    assert [tensor.data_ptr() for tensor in (counters._floats, counters._integers)] == addresses
    assert counters._floats.nbytes + counters._integers.nbytes == 80


def test_a_run_may_begin_on_the_host_go_on_on_the_device_and_end_on_the_host():
    inputs, targets = make_data(48)
    whole = BatchAttentionSchedule(1.0)
    expected, _, _ = train_naively(whole, inputs, targets, 4)

    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(inputs, targets, schedule=schedule)
    summaries = [loop.run_epoch(), loop.run_epoch()]
    successor = BatchAttentionSchedule(1.0)
    successor.load_state_dict(schedule.state_dict())
    assert successor.threshold == expected[1].mean_loss
    assert [without_reads(summary) for summary in summaries] == [without_reads(summary) for summary in expected[:2]]
    for _ in successor.attend(range(6)):
        successor.decide(0.1)
    assert successor.epoch == 3


def test_a_schedule_in_mid_epoch_is_refused():
    schedule = BatchAttentionSchedule()
    schedule.decide(1.0)
    loop = make_loop(*make_data(48), schedule=schedule)
    with pytest.raises(ProtocolError, match="middle of an epoch"):
        loop.run_epoch()


class ScriptedLoss(nn.Module):
    """Losses from a script, one for each visit, that still have gradients."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def forward(self, outputs, targets):
        if not outputs.requires_grad:
            return outputs.sum()
        return outputs.sum() * 0.0 + next(self.losses)


def scripted_loop(losses, batches, **options):
    model = nn.Linear(2, 1)
    data = ResidentData(torch.randn(2 * batches, 2), torch.zeros(2 * batches), 2, generator=torch.Generator())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return DeviceLoop(model, optimizer, ScriptedLoss(losses), data, schedule=BatchAttentionSchedule(1.0, **options))


def reads_by_the_rule(repeated):
    """How often the cursor is read, if visit i of the epoch is answered by REPEAT where ``repeated[i]``."""
    batches, cursor, visit_number, reads = repeated.count(False), 0, 0, 0
    while cursor < batches:
        enqueued = repeated[visit_number : visit_number + batches - cursor]
        visit_number += len(enqueued)
        cursor += enqueued.count(False)
        reads += 1
    return reads


@pytest.mark.parametrize("share", [0.02, 0.15, 0.3, 0.5])
def test_host_reads_grow_with_the_logarithm_of_the_batches(share):
    batches = 1563
    rng = random.Random(0)
    repeated = []
    while repeated.count(False) < batches:
        repeated.append(rng.random() < share)
    losses = [1.0] * batches + [2.0 if again else 0.5 for again in repeated]
    loop = scripted_loop(losses, batches, max_visits=None)
    loop.run_epoch()
    summary = loop.run_epoch()
    assert summary.repeats == repeated.count(True)
    assert summary.host_reads == reads_by_the_rule(repeated)
    assert summary.host_reads <= 3 * math.log(batches) / math.log(1 / share) + 5


def test_a_batch_that_takes_a_thousand_visits_is_warned_of_once():
    losses = [1.0] * 3 + [0.5, 0.5] + [2.0] * 2500 + [0.5]
    loop = scripted_loop(losses, 3, max_visits=None)
    loop.run_epoch()
    with pytest.warns(BatchAttentionWarning, match="1000 visits") as warned:
        summary = loop.run_epoch()
    assert len(warned) == 1
    assert summary.most_visits == 2501


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_nonfinite_losses_advance_and_are_counted():
    loop = scripted_loop([1.0, 1.0, math.nan, math.inf], 2)
    loop.run_epoch()
    summary = loop.run_epoch()
    assert (summary.nonfinite_losses, summary.mean_loss, summary.repeats) == (2, None, 0)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("stop_after_updates", [1, 5, 7, 13, 20, 31])
def test_a_run_saved_in_mid_epoch_goes_on_bit_for_bit(staged, stop_after_updates):
    inputs, targets = make_data(50)

    def new_loop():
        return make_loop(inputs, targets, staged=staged, schedule=BatchAttentionSchedule(1.0))

    whole = new_loop()
    expected = [whole.run_epoch() for _ in range(6)]
    stopped = new_loop()
    summaries = []
    while stopped.updates < stop_after_updates:
        summary = stopped.run_updates(stop_after_updates - stopped.updates)
        summaries += [] if summary is None else [summary]
    saved = copy.deepcopy(stopped.state_dict())
    stopped.run_epoch()  # what happens after saving does not matter
    resumed = new_loop()
    resumed.load_state_dict(saved)
    while len(summaries) < 6:
        summaries.append(resumed.run_epoch())
    assert [without_reads(summary) for summary in summaries] == [without_reads(summary) for summary in expected]
    assert are_equal(resumed.model, whole.model)


def test_loading_keeps_every_tensor_where_it_is():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    saved = loop.state_dict()
    loop.run_epoch()

    def addresses():
        optimizer = loop._optimizer.state.values()
        tensors = [*loop.model.state_dict().values(), *(value for state in optimizer for value in state.values())]
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    loop.load_state_dict(saved)
    assert addresses() == before


def test_a_state_of_another_kind_is_refused_and_nothing_is_loaded():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    loop.run_epoch()
    saved = loop.state_dict()
    for wrong in (
        {},
        {**saved, "version": 0},
        {**saved, "schedule": BatchAttentionSchedule(1.3).state_dict()},
        {**saved, "model": nn.Linear(1, 1).state_dict()},
        {**saved, "scaler": {}},
        {**saved, "cursor": -1},
    ):
        other = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
        weights = copy.deepcopy(other.model)
        with pytest.raises(StateError):
            other.load_state_dict(wrong)
        assert are_equal(other.model, weights)


@pytest.mark.parametrize("turns", [2, 3])
def test_loops_that_take_turns_have_the_results_that_each_has_alone(turns):
    def new_loop(index):
        inputs, targets = make_data(50, index)
        return make_loop(inputs, targets, schedule=BatchAttentionSchedule(1.0), order_seed=index)

    alone = [new_loop(index) for index in range(turns)]
    expected = [[loop.run_epoch() for _ in range(3)] for loop in alone]
    together = [new_loop(index) for index in range(turns)]
    summaries = run_interleaved(together, 3)
    assert [list(map(without_reads, done)) for done in summaries] == [
        list(map(without_reads, done)) for done in expected
    ]
    for ours, theirs in zip(together, alone, strict=True):
        assert are_equal(ours.model, theirs.model)


def test_loops_that_share_a_model_are_refused():
    loop = make_loop(*make_data(48))
    with pytest.raises(OptionError, match="share one model"):
        run_interleaved([loop, loop], 1)


def test_training_leaves_the_users_random_numbers_alone():
    loop = make_loop(*make_data(50), schedule=BatchAttentionSchedule(1.0))
    before = torch.get_rng_state()
    loop.run_epoch()
    assert torch.equal(torch.get_rng_state(), before)


def add_noise(inputs, uniforms):
    return inputs + uniforms


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


def broken(**changes):
    inputs, targets = make_data(48)
    model = make_model()
    parts = {
        "model": model,
        "optimizer": make_optimizer(model),
        "loss_fn": nn.functional.cross_entropy,
        "data": ResidentData(inputs, targets, 8, generator=torch.Generator()),
        **changes,
    }
    named = {name: parts.pop(name) for name in list(parts) if name not in ("model", "optimizer", "loss_fn", "data")}
    return DeviceLoop(*parts.values(), **named)


def test_parts_that_do_not_fit_are_refused_with_what_to_do():
    inputs, targets = make_data(48)
    with pytest.raises(OptionError, match="48 inputs and 47 targets"):
        ResidentData(inputs, targets[:-1], 8, generator=torch.Generator())
    with pytest.raises(OptionError, match="batch_size is 49, but there are 48 samples"):
        ResidentData(inputs, targets, 49, generator=torch.Generator())
    with pytest.raises(OptionError, match="batch_size is 0"):
        ResidentData(inputs, targets, 0, generator=torch.Generator())
    with pytest.raises(OptionError, match=r"targets are 0 to 3.*3 outputs"):
        broken(data=ResidentData(inputs, torch.where(targets == 1, 3, targets), 8, generator=torch.Generator()))
    with pytest.raises(OptionError, match="move both to one device"):
        ResidentData(inputs, targets.to("meta"), 8, generator=torch.Generator())
    with pytest.raises(OptionError, match="the data is on meta and the model on cpu"):
        broken(data=ResidentData(inputs.to("meta"), targets.to("meta"), 8, generator=torch.Generator()))
    with pytest.raises(OptionError, match="LBFGS"):
        broken(optimizer=torch.optim.LBFGS(make_model().parameters()))
    with pytest.raises(OptionError, match="graph=True needs a CUDA device"):
        broken(graph=True)
    with pytest.raises(OptionError, match="one number a batch"):
        broken(loss_fn=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(OptionError, match="nothing to train"):
        broken(model=nn.ReLU())
    with pytest.raises(OptionError, match="nonfinite is 'raise'"):
        broken(schedule=BatchAttentionSchedule(nonfinite="raise"))
    with pytest.raises(OptionError, match="pass a BatchAttentionSchedule"):
        broken(schedule="schedule")
    with pytest.raises(OptionError, match="scales for nothing"):
        broken(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(OptionError, match="at least 1 draw"):
        broken(augmentation=Augmentation(add_noise, draws=0))


def test_constructing_a_loop_changes_nothing_in_the_model():
    model = make_model()
    model.eval()
    before = copy.deepcopy(model)
    broken(model=model, optimizer=make_optimizer(model))
    assert are_equal(model, before)
    assert not any(module.training for module in model.modules())


def test_running_out_of_memory_is_said_and_leaves_the_weights_as_they_were():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(outputs)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return nn.functional.cross_entropy(outputs, targets)

    model = make_model()
    before = copy.deepcopy(model)
    loop = broken(model=model, optimizer=make_optimizer(model), loss_fn=loss_fn)
    with pytest.raises(DeviceLoopError, match="smaller batch"):
        loop.run_epoch()
    assert are_equal(model, before)
    assert loop.run_epoch().batches == 6


def test_a_loader_that_yields_less_than_it_says_is_refused():
    class Short(DataLoader):
        def __iter__(self):
            return iter(list(super().__iter__())[:-1])

    inputs, targets = make_data(48)
    loop = broken(data=StagedData(Short(TensorDataset(inputs, targets), 8), 8, "cpu"))
    with pytest.raises(DeviceLoopError, match="ended after 5 batches"):
        loop.run_epoch()


def test_no_decision_leaves_a_repeat_for_later():
    """The naive loop's decisions, seen through the schedule that the device loop keeps up to date."""
    inputs, targets = make_data(50)
    schedule = BatchAttentionSchedule(1.0)
    loop = make_loop(inputs, targets, schedule=schedule)
    loop.run_epoch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = loop.run_epoch()
    assert schedule.last_summary is summary
    assert schedule.visits == 0
    assert schedule.decide(0.0) is Decision.ADVANCE
