"""Saved states of a device loop: loaded whole, or a StateError and nothing changed."""

import contextlib
import copy
import math
import random
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSchedule, EqualComputeControl
from batch_sampler_attn.device import Augmentation, DeviceLoop, ResidentData, StagedData
from batch_sampler_attn.errors import DeviceLoopError, OptionError, ProtocolError, StateError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What is loaded may well be trained with to no good end.
    pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning"),
]

BATCHES = 5
MOST_VISITS = 3
DEALT = [[1, 2, 1, 3, 1]] * 3

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "radam": lambda parameters: torch.optim.RAdam(parameters, lr=0.01),
    "rate as a tensor": lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.01)),
}


def make_loop(optimizer="adam", *, staged=False, control=False, window=None, slots=3, width=3, **options):
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


def refused(loop, state):
    """Load a state that is not to be loaded; return what was said."""
    before = copy.deepcopy(loop.state_dict())
    with pytest.raises(StateError) as raised:
        loop.load_state_dict(state)
    assert same(loop.state_dict(), before)
    return str(raised.value)


def saved_in_mid_epoch(**options):
    loop = make_loop(**options)
    loop.run_epoch()
    loop.run_updates(2)
    return loop.state_dict()


# Mutations -------------------------------------------------------------------------------------------------

JUNK = [
    None,
    True,
    False,
    "",
    "1",
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**63 - 1,
    2**63,
    10**400,
    -(2**70),
    0.5,
    1e30,
    1e308,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    [],
    {},
    (),
    [1],
    {"a": 1},
    (0.9, 0.999),
    (0.9,),
    b"",
    1j,
    object(),
]


def places_in(value, path=()):
    """Every place in a nested state, as a path."""
    if path:
        yield path
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    else:
        return
    for key, child in children:
        yield from places_in(child, (*path, key))


def replaced(value, path, change):
    """A copy with what is at the path changed; ``change`` returns None to remove it."""
    key, *rest = path
    twin = list(value) if isinstance(value, (list, tuple)) else dict(value)
    new = (replaced(twin[key], rest, change),) if rest else change(twin[key])
    if new is None:
        del twin[key]
    else:
        twin[key] = new[0]
    return tuple(twin) if isinstance(value, tuple) else twin


def mutated_tensor(rng, tensor):
    flat = tensor.reshape(-1)
    choices = [
        lambda: flat[:-1].clone() if len(flat) else torch.zeros(3),
        lambda: tensor.unsqueeze(0).clone(),
        lambda: torch.zeros(2, 2),
        lambda: tensor.to(rng.choice([torch.int64, torch.bool, torch.complex64, torch.float64, torch.float16])),
        lambda: torch.full_like(tensor, rng.choice([0, 1, 255])),
        lambda: -tensor if tensor.dtype is not torch.bool else tensor,
        lambda: tensor.to("meta"),
        lambda: tensor.tolist(),
        lambda: torch.full(tensor.shape, rng.choice([math.nan, math.inf, -1.0, 1e38])),
    ]
    return rng.choice(choices)()


def mutate(rng, state, others):
    """A state with something wrong, most of the time."""
    if rng.random() < 0.1:
        part = rng.choice(list(state))
        return {**state, part: rng.choice(others)[part]}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(places_in(state))
        # A part is picked first: most places are in the generators' states and the optimizer's.
        part = rng.choice(list(state))
        path = rng.choice([place for place in places if place[0] == part])

        def change(value):
            chance = rng.random()
            if chance < 0.1:
                return None
            if isinstance(value, torch.Tensor) and chance < 0.7:
                return (mutated_tensor(rng, value),)
            if type(value) in (int, float) and chance < 0.4:
                return (rng.choice([value + 1, value - 1, -value, value * 2**62, value * 0.5]),)
            if isinstance(value, dict) and chance < 0.3:
                return ({**value, "more": 1},)
            return (rng.choice(JUNK),)

        state = replaced(state, path, change)
        if not state:
            break
    return state


KINDS = [
    {},
    {"optimizer": "momentum", "staged": True},
    {"optimizer": "rmsprop", "control": True},
    {"optimizer": "amsgrad", "window": 3},
    {"optimizer": "sgd", "staged": True, "control": True},
    {"optimizer": "adafactor"},
    {"optimizer": "rate as a tensor"},
    {"optimizer": "rprop"},
    {"optimizer": "nadam"},
]


def fuzz(kind, mutations, seed):
    """Load mutated states; return how many were refused."""
    rng = random.Random(seed)
    saved = []
    loop = make_loop(**kind)
    saved.append(loop.state_dict())
    for updates in (1, 2, 3, 30):
        loop.run_updates(updates)
        saved.append(copy.deepcopy(loop.state_dict()))
    others = [saved_in_mid_epoch(optimizer=name) for name in ("adam", "momentum", "rmsprop")]
    refusals = 0
    for _ in range(mutations):
        loop = make_loop(**kind)
        if rng.random() < 0.5:
            loop.load_state_dict(rng.choice(saved[1:-1]))
        state = mutate(rng, rng.choice(saved), others)
        before, mutated = copy.deepcopy(loop.state_dict()), state
        with at_most(60):
            try:
                loop.load_state_dict(mutated)
            except StateError:
                refusals += 1
                assert same(loop.state_dict(), before)
                continue
            epoch = loop._bookkeeping.epoch
            if isinstance(loop._bookkeeping, EqualComputeControl) and epoch == len(DEALT):
                with pytest.raises(ProtocolError):
                    loop.run_epoch()
                continue
            loop.run_epoch()
            assert loop._progress.cursor == BATCHES
    return refusals


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="nothing here stops what hangs")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_mutated_state_is_refused_with_nothing_changed_or_trains_to_the_end_of_its_epoch(kind):
    assert fuzz(kind, 60, seed=0) > 20


# What each kind of wrong state is told ------------------------------------------------------------------------


@pytest.mark.parametrize("here", OPTIMIZERS)
@pytest.mark.parametrize("trained", [False, True])
def test_a_state_loads_into_the_optimizer_that_it_is_of_and_into_no_other(here, trained):
    for there in OPTIMIZERS:
        if {here, there} == {"adam", "rate as a tensor"}:
            continue  # the same optimizer
        saved = saved_in_mid_epoch(optimizer=there)
        loop = make_loop(optimizer=here)
        if trained:
            loop.run_updates(1)
        if here == there:
            loop.load_state_dict(saved)
            assert same(loop.state_dict(), saved)
            loop.run_epoch()
        else:
            assert "optimizer" in refused(loop, saved)


def test_moments_of_another_shape_or_type_are_refused_by_name():
    saved = saved_in_mid_epoch()
    for trained in (False, True):
        for wrong, message in (
            (torch.zeros(1), r"shape (1,)"),
            (torch.zeros(3, 3, dtype=torch.int64), "torch.int64"),
            ("moments", "str"),
            (torch.zeros(3, 3, device="meta"), "with data"),
        ):
            loop = make_loop()
            if trained:
                loop.run_updates(1)
            state = copy.deepcopy(saved)
            state["optimizer"]["state"][0]["exp_avg"] = wrong
            said = refused(loop, state)
            assert message in said
            assert "exp_avg for parameter 0" in said
        state = copy.deepcopy(saved)
        state["optimizer"]["state"][0]["step"] = torch.tensor(-1.0)
        assert "counts steps" in refused(make_loop(), state)


def test_a_loop_that_is_elsewhere_than_its_schedule_is_refused():
    saved = saved_in_mid_epoch()
    at_end = make_loop()
    at_end.run_epoch()
    at_end = at_end.state_dict()
    assert "does not go with is_in_epoch" in refused(make_loop(), {**saved, "cursor": BATCHES, "staged": BATCHES})
    assert "does not go with is_in_epoch" in refused(make_loop(), {**at_end, "cursor": 2})
    assert "its schedule at batch" in refused(make_loop(), {**saved, "cursor": saved["cursor"] + 1})
    assert "its schedule at batch" in refused(make_loop(), {**at_end, "schedule": saved["schedule"]})
    assert "its schedule at batch" in refused(make_loop(), {**saved, "schedule": at_end["schedule"]})


@pytest.mark.parametrize("number", [2**62, 2**63, 10**400])
def test_numbers_that_a_device_cannot_count_to_are_refused(number):
    saved = saved_in_mid_epoch()
    for name in ("updates", "host_reads", "cursor", "staged"):
        refused(make_loop(), {**saved, name: number})
    refused(make_loop(), {**saved, "visit_counts": [number] * BATCHES})
    for name in ("batches", "visits", "repeats", "most_visits", "loss_count", "nonfinite_losses"):
        schedule = saved["schedule"]
        refused(make_loop(), {**saved, "schedule": {**schedule, "state": {**schedule["state"], name: number}}})


def test_an_epoch_or_a_visit_that_was_not_dealt_is_refused():
    loop = make_loop(control=True)
    loop.run_epoch()
    loop.run_updates(2)
    saved = loop.state_dict()
    for name, number in (("epoch", 3), ("epoch", 1000), ("visits", 3)):
        schedule = saved["schedule"]
        refused(
            make_loop(control=True), {**saved, "schedule": {**schedule, "state": {**schedule["state"], name: number}}}
        )
    make_loop(control=True).load_state_dict(saved)


def test_an_option_that_may_be_none_is_a_number_or_none():
    saved = saved_in_mid_epoch(optimizer="adafactor")
    for eps, is_right in (((None, 1e-3), True), ((1e-8, 1e-3), True), (((1,), 1e-3), False), ((True, 1e-3), False)):
        state = copy.deepcopy(saved)
        state["optimizer"]["param_groups"][0]["eps"] = eps
        if is_right:
            make_loop("adafactor").load_state_dict(state)
        else:
            assert "eps of Adafactor" in refused(make_loop("adafactor"), state)


def test_options_of_the_step_stay_as_they_are_here():
    loop = make_loop("momentum")
    loop.run_epoch()
    saved = copy.deepcopy(loop.state_dict())
    saved["optimizer"]["param_groups"][0].update(foreach=True, lr=0.5)
    other = make_loop("momentum")
    other.load_state_dict(saved)
    (group,) = other._optimizer.param_groups
    assert (group["foreach"], group["lr"]) == (None, 0.5)


def test_a_learning_rate_scheduler_may_be_there_or_not_yet():
    loop = make_loop()
    torch.optim.lr_scheduler.StepLR(loop._optimizer, 1)
    loop.run_epoch()
    saved = loop.state_dict()
    other = make_loop()
    other.load_state_dict(saved)
    assert other._optimizer.param_groups[0]["initial_lr"] == 0.01
    loop.load_state_dict(make_loop().state_dict())


def test_a_state_that_was_saved_before_rings_were_is_loaded():
    for staged in (False, True):
        whole = make_loop(staged=staged)
        whole.run_epoch()
        whole.run_updates(2)
        saved = copy.deepcopy(whole.state_dict())
        del saved["slots"]
        expected = whole.run_epoch()
        resumed = make_loop(staged=staged)
        resumed.load_state_dict(saved)
        assert resumed.run_epoch() == expected
        assert same(resumed.state_dict(), whole.state_dict())


def test_a_data_set_that_fails_while_a_state_is_loaded_leaves_the_loop_as_it_was():
    expected = make_loop(staged=True)
    expected.run_updates(2)
    loop = make_loop(staged=True)
    loop.run_updates(2)
    before = copy.deepcopy(loop.state_dict())
    other = make_loop(staged=True)
    other.run_epoch()
    other.run_updates(3)
    dataset, failures = loop._data._loader.dataset, [OSError("the disk is away")]
    tensors, getitem = dataset.tensors, TensorDataset.__getitem__

    class Failing(TensorDataset):
        def __getitem__(self, index):
            if failures:
                raise failures.pop()
            return getitem(self, index)

    loop._data._loader.__dict__["dataset"] = Failing(*tensors)
    with pytest.raises(OSError, match="the disk is away"):
        loop.load_state_dict(other.state_dict())
    assert same(loop.state_dict(), before)
    assert loop.run_epoch() == expected.run_epoch()
    assert same(loop.state_dict(), expected.state_dict())


# The ring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "here"), [(8, 2), (3, 2), (2, 8)])
def test_a_ring_of_another_size_is_refused_in_mid_epoch_and_taken_between_epochs(there, here):
    loop = make_loop(staged=True, slots=there)
    loop.run_epoch()
    between = copy.deepcopy(loop.state_dict())
    loop.run_updates(1)
    said = refused(make_loop(staged=True, slots=here), loop.state_dict())
    assert f"slots={there}" in said
    assert f"slots={here}" in said
    loop.run_epoch()
    other = make_loop(staged=True, slots=here)
    other.load_state_dict(between)
    other.run_epoch()
    assert same(other.state_dict()["model"], loop.state_dict()["model"])


def test_a_state_without_slots_is_refused_where_its_batches_do_not_fit():
    loop = make_loop(staged=True, slots=8)
    loop.run_updates(1)
    saved = loop.state_dict()
    del saved["slots"]
    assert "slots=unknown, and here slots=2" in refused(make_loop(staged=True, slots=2), saved)


# Scalers --------------------------------------------------------------------------------------------------


def make_scaled(optimizer, **options):
    model = nn.Linear(3, 1)
    data = ResidentData(torch.randn(8, 3), torch.randn(8, 1), 2, generator=torch.Generator())
    made = optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    options = {"autocast": torch.bfloat16, "scaler": scaler, **options}
    return DeviceLoop(model, made, nn.functional.mse_loss, data, **options)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_scaler_with_an_optimizer_that_is_not_fused_is_refused_at_construction(kind):
    with pytest.raises(OptionError, match="construct it with fused=True"):
        make_scaled(lambda parameters: kind(parameters, lr=0.1))
    # The host may be asked, if that is wanted; and a scaler that is switched off asks nothing.
    assert make_scaled(lambda parameters: kind(parameters, lr=0.1), graph=False).run_epoch().batches == 4
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert make_scaled(lambda parameters: kind(parameters, lr=0.1), scaler=off).run_epoch().batches == 4


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_fused_optimizer_is_taken_with_a_scaler_if_all_its_groups_are_fused(kind):
    loop = make_scaled(lambda parameters: kind(parameters, lr=0.1, fused=True))
    assert loop.run_epoch().batches == 4

    def half_fused(parameters):
        weight, bias = parameters
        return kind([{"params": [weight]}, {"params": [bias], "fused": False}], lr=0.1, fused=True)

    with pytest.raises(OptionError, match="construct it with fused=True"):
        make_scaled(half_fused)


def test_a_scaler_that_was_changed_is_refused():
    loop = make_scaled(lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True))
    loop.run_epoch()
    saved = loop.state_dict()
    for name, wrong in (
        ("scale", 0.0),
        ("scale", math.nan),
        ("scale", "16"),
        ("growth_factor", 1.0),
        ("backoff_factor", 1.5),
        ("growth_interval", 2**31),
        ("_growth_tracker", -1),
        ("_growth_tracker", 0.5),
    ):
        assert name in refused(loop, {**saved, "scaler": {**saved["scaler"], name: wrong}})
    loop.load_state_dict(saved)


def test_an_epoch_that_the_schedule_was_taken_away_from_does_not_spin():
    loop = make_loop(window=3)
    loop.run_updates(1)
    loop.schedule._state.batches = 3
    with at_most(60), pytest.raises(DeviceLoopError, match="Leave it alone"):
        loop.run_epoch()


def add_noise(inputs, uniforms):
    return inputs + uniforms


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
