"""``SampleAttention`` in users' loops: over tensors, through DataLoaders with workers, and across a resume."""

import copy
import json
import pickle
import time
import timeit

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from batch_sampler_attn import SampleAttention, SeededDataset
from batch_sampler_attn.errors import LossError, OptionError, ProtocolError, StateError
from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.runs import LooksAhead

pytestmark = FORKING_IS_FINE

SAMPLES, BATCH_SIZE = 26, 4


class Numbered(Dataset):
    """Each item is its index."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.tensor(index)


def loss_of(index, epoch):
    return float((index * 7 % 11) + 1) / (1 + epoch)


def make(**options):
    return SampleAttention(
        SAMPLES, BATCH_SIZE, **{"k": 1.2, "prune_probability": 0.5, "weighted": True, "updates": 9, **options}
    )


def load(attention, workers=0, **options):
    context = "fork" if workers else None
    return DataLoader(
        Numbered(), batch_sampler=attention, num_workers=workers, multiprocessing_context=context, **options
    )


def run_epoch(attention, loader, seen=None):
    seen = [] if seen is None else seen
    for batch in attention.attend(loader):
        assert list(batch) == attention.indices
        losses = torch.tensor([loss_of(int(index), attention.epoch) for index in batch])
        seen.append((attention.indices, attention.weights))
        attention.weighted_mean(losses)
    return seen


def run_by_hand(attention, ahead, epochs):
    """What a loader that reads so many batches ahead amounts to, without one."""
    seen = []
    for _ in range(epochs):
        for indices in attention.attend(LooksAhead(attention, ahead)):
            seen.append((indices, attention.weights))
            attention.report([loss_of(index, attention.epoch) for index in indices])
    return seen


@pytest.mark.parametrize(
    ("workers", "persistent", "prefetch"), [(0, False, None), (1, False, 2), (2, True, 2), (2, False, 3), (4, True, 1)]
)
def test_batches_weights_and_losses_belong_together_with_any_number_of_workers(workers, persistent, prefetch):
    attention = make()
    loader = load(attention, workers, persistent_workers=persistent, prefetch_factor=prefetch)
    seen = []
    for epoch in range(4):
        assert attention.epoch == epoch
        run_epoch(attention, loader, seen)
        assert attention.last_summary.updates == len(attention) == 9
    # A worker is given its next batch as one of its own is asked for, before that is yielded.
    assert seen == run_by_hand(make(), workers * (prefetch or 0), 4)


def test_without_a_loader_the_indices_themselves_are_yielded():
    ours, theirs = make(), make()
    seen = []
    for _ in range(3):
        for indices in ours.attend():
            seen.append((indices, ours.weights))
            ours.report([loss_of(index, ours.epoch) for index in indices])
    assert seen == run_by_hand(theirs, 0, 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 3, 11, 17, 18, 26])
def test_a_run_that_is_resumed_goes_on_to_the_same_tail(workers, stop):
    expected = []
    whole = make()
    loader = load(whole, workers)
    for _ in range(4):
        run_epoch(whole, loader, expected)

    stopped, seen = make(), []
    loader = load(stopped, workers)
    state = stopped.state_dict()
    while len(seen) < stop:
        for batch in stopped.attend(loader):
            seen.append((stopped.indices, stopped.weights))
            stopped.report(torch.tensor([loss_of(int(index), stopped.epoch) for index in batch]))
            state = json.loads(json.dumps(stopped.state_dict(), allow_nan=False))
            if len(seen) == stop:
                break
    resumed = make()
    resumed.load_state_dict(state)
    tail = []
    while resumed.epoch < 4:
        run_epoch(resumed, load(resumed, workers), tail)
    assert seen + tail == expected


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [2, 5])
def test_a_stateful_loader_is_resumed_beside_it(workers, stop):
    context = "fork" if workers else None
    from torchdata.stateful_dataloader import StatefulDataLoader

    def load_statefully(attention):
        return StatefulDataLoader(
            Numbered(), batch_sampler=attention, num_workers=workers, multiprocessing_context=context
        )

    expected, whole = [], make()
    loader = load_statefully(whole)
    for _ in range(3):
        run_epoch(whole, loader, expected)
    stopped, seen = make(), []
    loader = load_statefully(stopped)
    run_epoch(stopped, loader, seen)
    for batch in stopped.attend(loader):
        seen.append((stopped.indices, stopped.weights))
        stopped.report([loss_of(int(index), stopped.epoch) for index in batch])
        if stopped.updates == stop:
            states = stopped.state_dict(), loader.state_dict()
            break
    assert len(json.dumps(states[1], default=str)) < 10_000
    alone = make()
    loader = load_statefully(alone)
    loader.load_state_dict(states[1])
    with pytest.raises(StateError, match="load both"):
        run_epoch(alone, loader)
    resumed, tail = make(), []
    resumed.load_state_dict(states[0])
    loader = load_statefully(resumed)
    loader.load_state_dict(states[1])
    while resumed.epoch < 3:
        run_epoch(resumed, loader, tail)
    assert seen + tail == expected


def test_a_batch_that_was_out_as_the_state_was_saved_comes_again():
    attention = make()
    batches = iter(attention.attend(load(attention)))
    first = next(batches)
    state = attention.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert torch.equal(next(iter(resumed.attend(load(resumed)))), first)


def test_a_loop_that_is_left_goes_on_with_the_batch_that_was_out():
    attention = make(prune_probability=0.0, k=None)
    loader = load(attention, 2)
    seen = []
    for batch in attention.attend(loader):
        if len(seen) == 3:
            break
        seen.append(batch.tolist())
        attention.report([1.0] * BATCH_SIZE)
    for batch in attention.attend(loader):
        seen.append(batch.tolist())
        attention.report([1.0] * BATCH_SIZE)
    assert attention.last_summary.updates == len(seen) == 9
    assert sorted([index for batch in seen for index in batch][:SAMPLES]) == list(range(SAMPLES))


def test_the_weighted_mean_is_of_the_losses_framework():
    for losses, kind in ((torch.ones(4, requires_grad=True), torch.Tensor), (numpy.ones(4), numpy.floating)):
        attention = make()
        for _ in range(2):
            for _ in attention.attend():
                weights = attention.weights
                mean = attention.weighted_mean(losses * 2)
                assert isinstance(mean, kind)
                assert mean.item() == pytest.approx(sum(weights) / 2)
    attention = make(weighted=False)
    batches = iter(attention.attend())
    next(batches)
    assert attention.weighted_mean(torch.tensor([1.0, 2.0, 3.0, 6.0])).item() == 3.0


def test_the_gradient_of_the_weighted_mean_is_weighted():
    attention = make()
    for _ in range(2):
        for _ in attention.attend():
            losses = torch.tensor([0.1, 0.2, 5.0, 6.0], requires_grad=True)
            weights = attention.weights
            attention.weighted_mean(losses).backward()
            assert losses.grad.tolist() == pytest.approx([weight / 4 for weight in weights])


def test_a_plain_pass_over_the_loader_sees_every_sample_once_and_changes_nothing():
    attention = make()
    loader = load(attention)
    before = attention.state_dict()
    assert sorted(int(index) for batch in loader for index in batch) == list(range(SAMPLES))
    assert attention.state_dict() == before


def test_a_sampler_of_the_users_gives_the_order_of_each_pass():
    sampler = DistributedSampler(Numbered(), num_replicas=1, rank=0, shuffle=True)
    attention = make(k=None, prune_probability=0.0, sampler=sampler, updates=13)
    seen = [int(index) for indices in run_epoch(attention, None) for index in indices[0]]
    for number in range(2):
        sampler.set_epoch(number)
        assert seen[number * SAMPLES : (number + 1) * SAMPLES] == list(sampler)


def test_a_copy_in_mid_epoch_goes_on_by_itself():
    attention = make()
    for copied in (copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))):
        twin = copied(attention)
        assert run_epoch(twin, load(twin)) == run_by_hand(make(), 0, 1)
    assert attention.updates == 0


# Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": 3}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"k": 0}, "k is 0"),
        ({"k": "1.2"}, "k is"),
        ({"max_visits": 0}, "max_visits"),
        ({"max_visits": 256}, "max_visits"),
        ({"prune_probability": 1.0}, "prune_probability"),
        ({"prune_probability": -0.1}, "prune_probability"),
        ({"prune_probability": True}, "prune_probability"),
        ({"updates": 0}, "updates"),
        ({"epochs": 0}, "epochs"),
        ({"final_full_share": 1.1}, "final_full_share"),
        ({"floor": float("nan")}, "floor"),
        ({"remember_loss": "first"}, "remember_loss"),
        ({"select": "best"}, "select"),
        ({"sampler": 3}, "sampler"),
        ({"sampler": iter([1])}, "sampler"),
    ],
)
def test_an_option_that_is_not_allowed_is_named(options, named):
    samples, batch_size = options.pop("samples", SAMPLES), options.pop("batch_size", BATCH_SIZE)
    with pytest.raises(OptionError, match=named):
        SampleAttention(samples, batch_size, **options)


@pytest.mark.parametrize(
    ("losses", "hint"),
    [
        (torch.tensor(1.0), 'reduction="none"'),
        (1.0, 'reduction="none"'),
        (torch.ones(3), "3 losses for a batch of 4"),
        (torch.ones(4, 2), "flatten"),
        ([1.0] * 5, "5 losses for a batch of 4"),
        (["a"] * 4, "a loss is one real number"),
        (None, "shape"),
    ],
)
def test_losses_that_are_not_one_a_sample_are_refused_and_the_batch_stays_out(losses, hint):
    attention = make()
    batches = iter(attention.attend())
    next(batches)
    with pytest.raises(LossError, match=hint):
        attention.report(losses)
    attention.report([1.0] * 4)
    next(batches)
    assert attention.updates == 1


def test_words_out_of_turn_are_refused():
    attention = make()
    with pytest.raises(ProtocolError, match="no current batch"):
        attention.report([1.0] * 4)
    with pytest.raises(ProtocolError, match="no current batch"):
        attention.weights  # noqa: B018
    with pytest.raises(ProtocolError, match="no epoch has ended"):
        attention.last_summary  # noqa: B018
    with pytest.raises(ProtocolError, match="the next batch was requested"):
        list(attention.attend())
    for _ in attention.attend():
        attention.report([1.0] * 4)
        with pytest.raises(ProtocolError, match="after its losses"):
            attention.report([1.0] * 4)


def test_an_iterator_of_another_pass_is_stale():
    attention = make()
    first = iter(attention.attend())
    next(first)
    next(iter(attention.attend()))
    with pytest.raises(ProtocolError, match="stale"):
        next(first)


def test_loaders_that_would_mix_samples_up_are_refused():
    attention = make()
    with pytest.raises(ProtocolError, match="in_order"):
        attention.attend(load(attention, 2, in_order=False))
    with pytest.raises(ProtocolError, match="has another batch sampler"):
        attention.attend(DataLoader(Numbered(), batch_size=4))
    with pytest.raises(ProtocolError, match="has another batch sampler"):
        attention.attend(load(make()))
    with pytest.raises(ProtocolError, match="did not take"):
        next(iter(attention.attend([torch.arange(4)])))


def test_a_wrapper_that_drops_batches_is_found_out():
    class Dropping:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            for number, batch in enumerate(self.loader):
                if number % 3 != 1:
                    yield batch

    attention = make()

    def train():
        for _ in attention.attend(Dropping(load(attention))):
            attention.report([1.0] * 4)

    with pytest.raises(ProtocolError, match="drops batches"):
        train()


@pytest.mark.parametrize("indices", [[], [0, SAMPLES], [-1, 2]])
def test_indices_that_are_none_of_the_data_set_are_refused(indices):
    attention = make(sampler=indices)
    with pytest.raises(OptionError, match=r"yields (0 indices|26|-1)"):
        next(iter(attention.attend()))


# Damaged states ----------------------------------------------------------------------------------------------


def saved_state():
    attention = make()
    loader = load(attention)
    for _ in range(2):
        run_epoch(attention, loader)
    for batch in attention.attend(loader):
        attention.report(batch.float())
        if attention.updates == 4:
            break
    return attention.state_dict()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 1),
        (("options", "k"), 1.3),
        (("options",), {}),
        (("epoch",), -1),
        (("mean_loss",), "1"),
        (("counts", "updates"), 9),
        (("counts", "handed_out"), 10),
        (("counts", "loss_sum"), float("inf")),
        (("losses",), "AAAA"),
        (("losses",), 3),
        (("losses",), None),
        (("visits",), "????"),
        (("stream", "order"), "AAA"),
        (("stream", "order"), "AAAAAAAAAAA="),
        (("stream", "order"), "/////w=="),
        (("stream", "scale"), 0.0),
        (("stream", "passes"), True),
        (("stream",), []),
        (("pool",), [1, 1]),
        (("pool",), [SAMPLES]),
        (("pool",), "1"),
        (("flight",), None),
        (("flight",), [{}]),
        (("flight",), [{"indices": [1, 2, 3, 99], "weights": [1.0] * 4, "is_extra": False}]),
        (("flight",), [{"indices": [1, 2], "weights": [1.0] * 4, "is_extra": False}]),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_is_assigned(path, value):
    state = saved_state()
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    attention = make()
    before = attention.state_dict()
    with pytest.raises(StateError):
        attention.load_state_dict(state)
    assert attention.state_dict() == before


def test_a_million_samples_take_a_few_megabytes_of_state():
    attention = SampleAttention(1_281_167, 256)
    next(iter(attention.attend()))
    assert len(json.dumps(attention.state_dict())) < 25_000_000


def test_a_step_costs_little_beside_one_of_training():
    attention = SampleAttention(5000, 64, k=1.2, weighted=True, updates=10**6)
    batches = iter(attention.attend())
    losses = torch.rand(64)

    def step():
        next(batches)
        attention.report(losses)

    # Of the processor: on a busy machine the clock runs on for others.
    assert min(timeit.repeat(step, timer=time.process_time, number=50, repeat=5)) / 50 < 3e-3


class Noisy(Numbered):
    def __getitem__(self, index):
        return torch.tensor(index), torch.rand(())


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_after_a_resume(workers):
    def run(attention, seen, end):
        loader = DataLoader(SeededDataset(Noisy(), seed=3), batch_sampler=attention, num_workers=workers)
        while len(seen) < end:
            for indices, draws in attention.attend(loader):
                seen.append((indices.tolist(), draws.tolist()))
                attention.report([loss_of(index, attention.epoch) for index in indices.tolist()])
                if len(seen) == end:
                    break
        return seen

    expected = run(make(), [], 27)
    assert len({draw for _, draws in expected for draw in draws}) == 27 * BATCH_SIZE
    for stop in (4, 9, 14):
        stopped, resumed = make(), make()
        seen = run(stopped, [], stop)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert run(resumed, seen, 27) == expected
