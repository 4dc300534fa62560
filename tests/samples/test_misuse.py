"""What goes wrong in a loop of an expert's, and would in silence: each is refused, said or made right."""

import itertools
import json
import math
import queue
import random
import sys
import threading
from collections import Counter

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import BatchAttentionWarning, LossError, OptionError, ProtocolError, StateError
from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.runs import LooksAhead

pytestmark = FORKING_IS_FINE

SAMPLES, BATCH_SIZE = 22, 4


def make(samples=SAMPLES, **options):
    return SampleAttention(samples, BATCH_SIZE, **{"k": 1.1, "prune_probability": 0.5, "weighted": True, **options})


def load(attention, dataset=range(SAMPLES), **options):
    context = "fork" if options.get("num_workers") else None
    return DataLoader(dataset, batch_sampler=attention, multiprocessing_context=context, **options)


def run_epoch(attention, loader=None, loss=lambda index: 0.2 + index % 3):
    seen = []
    for batch in attention.attend(loader):
        seen.append([int(index) for index in batch])
        attention.report([loss(index) for index in seen[-1]])
    return seen


# Losses ------------------------------------------------------------------------------------------------------


def test_a_report_that_is_left_out_on_the_last_batch_of_an_epoch_is_found_out():
    attention = make()

    def train():
        for _ in attention.attend(load(attention)):
            if attention.updates < len(attention) - 1:
                attention.report([1.0] * BATCH_SIZE)

    with pytest.raises(ProtocolError, match="the next batch was requested"):
        train()
    assert (attention.epoch, attention.updates) == (0, len(attention) - 1)


def test_a_loop_over_the_loader_itself_is_told_of_attend():
    attention = make()
    for _ in load(attention):
        with pytest.raises(ProtocolError, match=r"attention\.attend"):
            attention.weighted_mean(torch.ones(BATCH_SIZE))
        break


class LikeJax(list):
    """As arrays of JAX are, which have a mean but take no list of weights."""

    shape = (BATCH_SIZE,)

    def mean(self):
        return sum(self) / len(self)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("losses", "hint"),
    [
        ([1.0] * 4, "type list"),
        ((1.0,) * 4, "type tuple"),
        (LikeJax([1.0] * 4), "type LikeJax"),
        (torch.ones(4, dtype=torch.int64), "int64"),
        (torch.ones(4, dtype=torch.bool), "one real number"),
        (torch.ones(3), "3 losses for a batch of 4"),
        (numpy.ones(5), "5 losses for a batch of 4"),
        (torch.ones(4, 1), r"shape \(4, 1\)"),
        (torch.ones(4, 7), r"shape \(4, 7\)"),
        (numpy.ones((4, 1)), r"shape \(4, 1\)"),
        (numpy.ma.array([1.0, 2.0, 3.0, 4.0], mask=[0, 1, 0, 0]), "masked.*NaN"),
        (None, "NoneType"),
    ],
)
def test_a_weighted_mean_is_refused_before_anything_is_weighted_and_the_batch_stays_out(losses, hint, weighted):
    attention = make(weighted=weighted)
    batches = iter(attention.attend())
    next(batches)
    with pytest.raises(LossError, match=hint):
        attention.weighted_mean(losses)
    assert attention.updates == 0
    attention.weighted_mean(torch.ones(4))
    assert attention.updates == 1


def test_losses_in_half_precision_are_weighted_without_an_overflow():
    attention = make(samples=8, k=None)
    for _ in range(4):
        for indices in attention.attend():
            largest = max(attention.weights)
            # One is large, where the weight is; the others are well fitted.
            values = [60_000.0 if weight == largest else 1.0 for weight in attention.weights]
            values = [value if values.index(60_000.0) == number else 1.0 for number, value in enumerate(values)]
            losses = torch.tensor(values, dtype=torch.float16, requires_grad=True)
            expected = sum(weight * value for weight, value in zip(attention.weights, values, strict=True)) / 4
            mean = attention.weighted_mean(losses)
            assert mean.item() == pytest.approx(expected, rel=1e-3)
            mean.backward()
            assert torch.isfinite(losses.grad).all()
            assert len(indices) == BATCH_SIZE
    assert largest > 1.1


def test_a_mean_over_a_batch_of_one_is_no_loss_of_a_sample():
    attention = SampleAttention(3, 1)
    batches = iter(attention.attend())
    next(batches)
    logits, label = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(LossError, match='reduction="none"'):
        attention.weighted_mean(nn.functional.cross_entropy(logits, label))
    attention.weighted_mean(nn.functional.cross_entropy(logits, label, reduction="none"))


def test_losses_that_are_not_finite_are_warned_of_once_an_epoch_and_said_in_the_summary():
    attention = make(k=0.1, prune_probability=0.5)
    for epoch in range(2):
        with pytest.warns(BatchAttentionWarning, match=f"in epoch {epoch} is not finite") as said:
            run_epoch(attention, loss=lambda index: math.nan if index < 3 else 1.0)
        assert len(said) == 1
        assert said[0].filename == __file__
        number = attention.last_summary.nonfinite_losses
        assert number >= 2
        assert str(attention.last_summary).endswith(f", mean loss 1.000, {number} losses not finite")
    assert math.isnan(attention.loss_of(0))


def test_losses_too_large_to_be_added_up_leave_a_state_that_is_plain_json():
    attention = make(samples=8, prune_probability=0.0, k=None)
    with pytest.warns(BatchAttentionWarning, match="too large to be averaged"):
        run_epoch(attention, loss=lambda _: 1.2e308)
    assert attention.last_summary.mean_loss == 1.2e308
    assert attention.last_summary.nonfinite_losses == 7
    json.dumps(attention.state_dict(), allow_nan=False)
    twin = make(samples=8, prune_probability=0.0, k=None)
    twin.load_state_dict(attention.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_mean_has_at_least_single_precision_and_what_is_remembered_the_losses_values(dtype):
    attention = make()
    for _ in range(3):
        for indices in attention.attend():
            values = [0.5 + index % 4 for index in indices]
            weights = attention.weights
            losses = torch.tensor(values, dtype=dtype, requires_grad=True)
            mean = attention.weighted_mean(losses)
            assert mean.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            mean.backward()
            assert losses.grad.tolist() == pytest.approx([weight / BATCH_SIZE for weight in weights], rel=1e-2)
    assert all(attention.loss_of(index) == 0.5 + index % 4 for index in range(SAMPLES))


def test_gradients_that_are_accumulated_are_those_of_plain_training():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 3), torch.randn(24))
    models = nn.Linear(3, 1), nn.Linear(3, 1)
    models[1].load_state_dict(models[0].state_dict())
    # Every second batch is an update, so that an epoch has an even number of them.
    attention = SampleAttention(len(data), 4, prune_probability=0.0, updates=6, seed=1)
    accumulated, order = [], []
    for x, y in attention.attend(load(attention, data)):
        order += attention.indices
        loss = attention.weighted_mean((models[0](x)[:, 0] - y) ** 2)
        (loss / 2).backward()
        if attention.updates % 2 == 0:
            accumulated.append(models[0].weight.grad.clone())
            models[0].zero_grad()
    assert len(accumulated) == 3
    for number, gradient in enumerate(accumulated):
        x, y = data[order[number * 8 : number * 8 + 8]]
        models[1].zero_grad()
        ((models[1](x)[:, 0] - y) ** 2).mean().backward()
        torch.testing.assert_close(models[1].weight.grad, gradient)


# Options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prune_probability", "final_full_share"])
@pytest.mark.parametrize("value", [20, 1.5, -0.1, math.nan, "0.5", True])
def test_a_share_that_is_none_is_refused_and_a_percentage_is_recognized(name, value):
    with pytest.raises(OptionError, match=f"{name} is .*{'0.2 is 20 %' if value == 20 else 'must be a number'}"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"epochs": 2}, "final_full_share=0 prunes"),
        ({"epochs": 1}, "updates="),
        ({"epochs": 3, "final_full_share": 0.6}, "0 pr"),
    ],
)
def test_epochs_in_which_nothing_would_ever_be_pruned_are_said_at_the_start(options, advice):
    with pytest.warns(BatchAttentionWarning, match=f"no epoch prunes or pools.*{advice}") as warned:
        attention = make(**options)
    assert warned[0].filename == __file__
    for _ in range(options["epochs"]):
        run_epoch(attention, loss=lambda index: 0.1 + index)
    assert sum(attention.doses["pruned"]) == sum(attention.doses["pooled"]) == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{"epochs": 2, "final_full_share": 0}, {"epochs": 3}, {"epochs": None}])
def test_epochs_in_which_samples_are_pruned_need_no_word(options):
    attention = make(k=None, **options)
    for _ in range(options["epochs"] or 2):
        run_epoch(attention, loss=lambda index: 0.1 + index)
    assert sum(attention.doses["pruned"]) > 0
    make(k=None, prune_probability=0.0, epochs=2)


def test_training_past_the_last_epoch_is_said_once():
    attention = make(epochs=3)
    for _ in range(3):
        run_epoch(attention)
    with pytest.warns(BatchAttentionWarning, match=r"epochs=3 is the whole training.*final_full_share=0"):
        run_epoch(attention)
    for _ in range(2):
        run_epoch(attention)


# Data --------------------------------------------------------------------------------------------------------


def test_a_data_set_of_another_length_is_refused():
    attention = make()
    with pytest.raises(ProtocolError, match="dataset has 30 samples, not 22"):
        attention.attend(load(attention, range(30)))
    grows = [*range(SAMPLES)]
    loader = load(attention, grows)
    run_epoch(attention, loader)
    grows.append(0)
    with pytest.raises(ProtocolError, match="dataset has 23 samples"):
        attention.attend(loader)


def test_samples_of_a_subset_are_numbered_as_in_the_subset():
    subset = Subset(range(100, 200), [*range(50, 50 + SAMPLES)])
    attention = make()
    for batch in attention.attend(load(attention, subset)):
        assert batch.tolist() == [150 + index for index in attention.indices]
        attention.report(batch)
    assert attention.loss_of(0) == 150.0
    for outside in (SAMPLES, -1):
        with pytest.raises(IndexError, match="not one of the 22"):
            attention.loss_of(outside)


def test_every_batch_is_full_and_no_sample_falls_behind_where_the_batch_size_does_not_divide_the_data():
    attention = make(prune_probability=0.0, k=None)
    seen = Counter()
    for _ in range(11):
        for batch in run_epoch(attention, load(attention)):
            assert len(batch) == BATCH_SIZE
            seen.update(batch)
        assert max(seen.values()) - min(seen.get(index, 0) for index in range(SAMPLES)) <= 2
    assert sum(seen.values()) == 11 * 6 * BATCH_SIZE == 12 * SAMPLES
    assert {*seen.values()} == {12}


@pytest.mark.parametrize(
    ("sampler", "updates"),
    [
        (SubsetRandomSampler(range(10)), 3),
        (WeightedRandomSampler([1.0] * SAMPLES, 44), 11),
        (RandomSampler(range(SAMPLES)), 6),
        (range(5), 2),
    ],
)
def test_an_epoch_takes_as_many_updates_as_plain_training_in_the_sampler_s_order(sampler, updates):
    attention = make(sampler=sampler)
    assert len(attention) == updates == len(DataLoader(range(SAMPLES), BATCH_SIZE, sampler=sampler))
    assert len(run_epoch(attention)) == updates


class Endless:
    def __iter__(self):
        return itertools.cycle(range(SAMPLES))


class OfUnknownLength:
    def __iter__(self):
        return iter(range(SAMPLES))


@pytest.mark.parametrize(
    ("sampler", "named"),
    [
        ([0.5, 1.0], r"yields 0\.5; it must yield ints from 0 to 21"),
        (["0", "1"], "yields '0'"),
        ([[0, 1], [2, 3]], r"yields \[0, 1\]; it must yield ints"),
        ([None], "yields None"),
        (numpy.array([0.0, 1.0]), r"yields .*0\.0"),
        (torch.tensor([0.0, 1.0]), "yields tensor"),
    ],
)
def test_a_sampler_that_yields_no_indices_or_for_ever_is_refused(sampler, named):
    with pytest.raises(OptionError, match=named):
        next(iter(make(sampler=sampler).attend()))


@pytest.mark.parametrize("sampler", [numpy.arange(SAMPLES), torch.arange(SAMPLES), OfUnknownLength()])
def test_indices_of_any_library_are_plain_numbers(sampler):
    attention = make(sampler=sampler)
    assert [*itertools.chain(*run_epoch(attention))][:SAMPLES] == [*range(SAMPLES)]
    json.dumps(attention.state_dict())


@pytest.mark.parametrize("seed", [None, 1.5, "1", True, torch.tensor(1), object()])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(OptionError, match="seed is"):
        make(seed=seed)


def test_a_seed_may_be_any_whole_number():
    assert [make(seed=seed).options.seed for seed in (numpy.int64(7), -1, 2**70)] == [7, -1, 2**70]


# Loops -------------------------------------------------------------------------------------------------------


def test_a_loop_that_is_cut_short_goes_on_with_its_epoch_and_updates_says_how_long_one_is():
    attention = make(prune_probability=0.0, k=None, updates=6)
    parts = []
    for indices in itertools.islice(attention.attend(), 3):
        parts.append(indices)
        attention.report([1.0] * BATCH_SIZE)
    assert (attention.epoch, attention.updates) == (0, 3)
    parts += run_epoch(attention)
    assert attention.epoch == 1
    assert sorted(itertools.chain(*parts))[-1] == SAMPLES - 1
    assert len({*itertools.chain(*parts)}) == SAMPLES
    short = make(updates=2)
    assert [len(run_epoch(short)) for _ in range(3)] == [2, 2, 2]


def leaves_by_break(attention, loader):
    for number, batch in enumerate(attention.attend(loader)):
        yield batch
        if number + 1 == len(loader):
            break


LEAVINGS = {
    "range": lambda attention, loader: (
        batch for _, batch in zip(range(len(loader)), attention.attend(loader), strict=False)
    ),
    "islice": lambda attention, loader: itertools.islice(attention.attend(loader), len(loader)),
    "break": leaves_by_break,
}


@pytest.mark.parametrize("told", [{}, {"rank": 1, "world_size": 2}], ids=["one process", "ranks"])
@pytest.mark.parametrize("leave", LEAVINGS.values(), ids=LEAVINGS.keys())
def test_a_loop_that_counts_batches_by_itself_ends_its_epochs_too(leave, told):
    attentions = [make(**told, **({"ranks": TwoRanks()} if told else {})) for _ in range(2)]
    expected = [run_epoch(attentions[0], load(attentions[0])) for _ in range(3)]
    loader = load(attentions[1])
    for epoch in range(3):
        seen = []
        for batch in leave(attentions[1], loader):
            assert attentions[1].epoch == epoch
            seen.append(batch.tolist())
            attentions[1].report([0.2 + index % 3 for index in seen[-1]])
        assert seen == expected[epoch]
        assert (attentions[1].epoch, attentions[1].last_summary.epoch) == (epoch + 1, epoch)
    assert run_epoch(attentions[0]) == run_epoch(attentions[1])
    assert attentions[1].state_dict() == attentions[0].state_dict()


def test_what_attend_returns_can_be_made_once_and_stands_for_the_loader():
    attentions = [make() for _ in range(2)]
    expected = [run_epoch(attentions[0], load(attentions[0])) for _ in range(3)]
    loader = load(attentions[1])
    attended = attentions[1].attend(loader)
    assert (len(attended), attended.dataset, attended.batch_sampler) == (6, loader.dataset, attentions[1])
    seen = []
    for epoch in range(3):
        seen.append([])
        for batch in attended:
            seen[-1].append(batch.tolist())
            attentions[1].report([0.2 + index % 3 for index in batch.tolist()])
        assert attentions[1].epoch == epoch + 1
    assert seen == expected
    assert len(attentions[1].attend(LooksAhead(loader, 2))) == len(attentions[1].attend()) == 6
    with pytest.raises(ProtocolError, match="iterate over that itself"):
        attentions[1].attend(attended)


def test_a_summary_asked_for_after_a_loop_that_was_left_explains_itself():
    attention = make()
    for number, _ in enumerate(attention.attend()):
        if number == 2:
            break
        attention.report([1.0] * BATCH_SIZE)
    with pytest.raises(ProtocolError, match=r"2 of 6 updates.*left early does not end it.*resumes it"):
        attention.last_summary  # noqa: B018


class Threaded:
    """A thread of its own reads the loader ahead, as prefetch_generator's DataLoaderX does, and device prefetchers."""

    def __init__(self, loader, ahead):
        self.loader, self.ahead = loader, ahead

    def __iter__(self):
        ready, end = queue.Queue(self.ahead), object()

        def read():
            for batch in self.loader:
                ready.put(batch)
            ready.put(end)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        while (batch := ready.get()) is not end:
            yield batch
        thread.join()


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_thread_that_reads_the_loader_ahead_mixes_no_losses_up(ahead):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for seed in range(6):
            attention = SampleAttention(250, 2, k=0.9, updates=150, seed=seed)
            loader = DataLoader(range(250), batch_sampler=attention, collate_fn=list)
            for epoch in range(3):
                attended = attention.attend(Threaded(loader, ahead))
                for number, batch in enumerate(attended):
                    assert attention.indices == batch
                    attention.report([index * 256.0**epoch for index in batch])  # eight bits, so remembered exactly
                    assert attention.updates == (number + 1) % 150 or attention.epoch == epoch
                assert (attention.epoch, number) == (epoch + 1, 149)
            for index in range(250):
                loss = attention.loss_of(index)
                assert math.isnan(loss) or loss in [index * 256.0**epoch for epoch in range(3)]
    finally:
        sys.setswitchinterval(interval)


def test_an_iterator_that_is_kept_after_its_last_batch_ends_its_epoch_as_the_next_one_begins():
    attention, kept = make(), []
    for epoch in range(3):
        kept.append(iter(attention.attend()))
        for _ in range(len(attention)):
            indices = next(kept[-1])
            assert attention.epoch == epoch
            attention.report([0.2 + index % 3 for index in indices])
    assert (attention.epoch, attention.updates) == (2, len(attention))


def test_two_loaders_in_step_end_their_epochs_in_step():
    attentions = [make(seed=seed) for seed in range(2)]
    loaders = [load(attention) for attention in attentions]
    for epoch in range(3):
        batches = 0
        pairs = zip(
            *(attention.attend(loader) for attention, loader in zip(attentions, loaders, strict=True)), strict=False
        )
        for pair in pairs:
            batches += 1
            for attention, batch in zip(attentions, pair, strict=True):
                attention.report(batch)
        del pairs
        assert batches == 6
        assert [attention.epoch for attention in attentions] == [epoch + 1] * 2


def test_a_state_that_was_saved_at_the_last_batch_has_its_epoch_ended_by_a_loop_without_batches():
    attention = make()
    for indices in attention.attend():
        attention.report([0.2 + index % 3 for index in indices])
        state = attention.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.epoch == 0
    assert run_epoch(resumed) == []
    assert resumed.state_dict() == attention.state_dict()


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}])
def test_the_loader_may_be_evaluated_on_in_the_middle_of_an_epoch(options):
    expected, attention = run_epoch(make()), make()
    loader = load(attention, **options)
    seen = []
    for batch in attention.attend(loader):
        seen.append(batch.tolist())
        if len(seen) == 2:
            assert [index for other in loader for index in other.tolist()] == [*range(SAMPLES)]
            assert attention.indices == seen[-1]
        attention.report([0.2 + index % 3 for index in seen[-1]])
    assert seen == expected


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("when", ["before the report", "after the report"])
def test_a_loader_of_persistent_workers_is_not_evaluated_on_in_mid_epoch_in_silence(when, is_whole):
    attention = make(prune_probability=0.0, k=None)
    loader = load(attention, num_workers=1, persistent_workers=True)

    def evaluate():
        for _ in loader:
            if not is_whole:
                break

    def train():
        for _ in attention.attend(loader):
            if attention.updates == 2 and when == "before the report":
                evaluate()
            attention.report([1.0] * BATCH_SIZE)
            if attention.updates == 3:
                evaluate()

    with pytest.raises(ProtocolError, match="iterated over elsewhere"):
        train()
    # The batch that was current keeps its losses.
    assert len(run_epoch(attention, loader)) == 3
    assert attention.epoch == 1
    # Between two epochs it can be.
    assert len([*loader]) == len(run_epoch(attention, loader)) == 6


def test_a_wrapper_of_such_a_loader_is_found_out_by_the_end_of_the_epoch():
    attention = make(prune_probability=0.0, k=None)
    loader = load(attention, num_workers=1, persistent_workers=True)

    def train():
        for _ in attention.attend(LooksAhead(loader, 1)):
            attention.report([1.0] * BATCH_SIZE)
            if attention.updates == 3:
                next(iter(loader))

    with pytest.raises(ProtocolError, match=r"did not take|drops batches"):
        train()


def test_a_state_that_is_loaded_within_the_loop_ends_it():
    attention = make()
    run_epoch(attention)
    state = attention.state_dict()

    def train():
        for number, _ in enumerate(attention.attend(load(attention))):
            attention.report([1.0] * BATCH_SIZE)
            if number == 2:
                attention.load_state_dict(state)

    with pytest.raises(ProtocolError, match="a state was loaded"):
        train()
    assert attention.state_dict() == state
    twin = make()
    twin.load_state_dict(state)
    assert twin.last_summary == attention.last_summary
    assert run_epoch(twin) == run_epoch(attention)


def test_a_refused_state_leaves_the_loop_as_it_is():
    attention = make()
    seen = []
    for indices in attention.attend():
        seen.append(indices)
        with pytest.raises(StateError):
            attention.load_state_dict({})
        attention.report([0.2 + index % 3 for index in indices])
    assert seen == run_epoch(make())


def test_an_error_within_the_loop_leaves_the_batch_to_come_again():
    attention, rng = make(), random.Random(0)
    seen, tries = [], 0
    while attention.epoch == 0:
        tries += 1
        try:
            for indices in attention.attend():
                if rng.random() < 0.3:
                    raise MemoryError
                seen.append(indices)
                attention.report([0.2 + index % 3 for index in indices])
        except MemoryError:
            continue
    assert tries > 1
    assert seen == run_epoch(make())


# Ranks -------------------------------------------------------------------------------------------------------


class TwoRanks:
    """As ``MeanOverRanks``, of which both say the same."""

    ranks, rank = 2, 1

    def claim(self):
        pass

    def start(self, message):
        return lambda: [message, message]

    def gather(self, value):
        return [value, value]


def test_ranks_that_would_all_train_on_the_same_samples_are_refused():
    with pytest.raises(ProtocolError, match="on the same samples: give rank="):
        make(ranks=TwoRanks()).attend()
    with pytest.raises(ProtocolError, match="leave some samples out: give rank= and world_size=2"):
        make(ranks=TwoRanks(), rank=1, world_size=3).attend()
    for told in ({"world_size": 1}, {"rank": 1, "world_size": 2}):
        attention = make(ranks=TwoRanks(), **told)
        assert len(run_epoch(attention)) == len(attention)


# Loaders that are built in other ways -------------------------------------------------------------------------


class Shards:
    """As accelerate's, on two ranks."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size

    def __iter__(self):
        return itertools.islice(self.batch_sampler, 0, None, 2)

    def __len__(self):
        return len(self.batch_sampler) // 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda it: DataLoader(range(22), sampler=it, batch_size=None), "built with sampler=.*batch_sampler="),
        (lambda it: DataLoader(range(22), batch_sampler=Shards(it)), "a Shards around this SampleAttention.*rank="),
        (lambda it: DataLoader(range(22), batch_size=None), "does not batch"),
        (lambda it: DataLoader(range(22), batch_size=4), "another batch sampler, a BatchSampler"),
        (lambda it: DataLoader(range(22), batch_sampler=make()), "another batch sampler, a SampleAttention"),
    ],
)
def test_a_loader_that_is_not_built_on_this_is_told_what_it_is(build, words):
    attention = make()
    with pytest.raises(ProtocolError, match=f"the DataLoader .*{words}"):
        attention.attend(build(attention))


@pytest.mark.parametrize("wrap", [lambda loader: itertools.islice(loader, 3), enumerate, lambda it: (b for b in it)])
def test_what_began_to_iterate_before_the_epoch_is_told_so(wrap):
    attention = make()
    with pytest.raises(ProtocolError, match=r"did not take from this SampleAttention.*islice, enumerate, generators"):
        next(iter(attention.attend(wrap(load(attention)))))


def cycle(loader):
    while True:
        yield from loader


def test_a_loader_that_never_ends_and_one_that_is_used_up_are_told_so():
    attention = make()
    with pytest.raises(ProtocolError, match="never ends itself"):
        run_epoch(attention, cycle(load(attention)))
    attention = make()
    moved = (lambda loader: (yield from loader))(load(attention))
    run_epoch(attention, moved)
    with pytest.raises(ProtocolError, match=r"ended with 6 of 6 updates still to come.*only once"):
        run_epoch(attention, moved)


# What is said --------------------------------------------------------------------------------------------------


def test_a_summary_reads_well_whatever_the_numbers_are():
    attention = make(samples=4, k=None, prune_probability=0)
    assert str(attention.summary) == "epoch 0: 0 updates, 0 of them extra, 0 samples pruned, no finite loss"
    run_epoch(attention)
    assert str(attention.last_summary) == "epoch 0: 1 update, 0 of them extra, 0 samples pruned, mean loss 0.950"
    with pytest.warns(BatchAttentionWarning):
        run_epoch(attention, loss=lambda index: math.inf if index == 3 else 1.0)
    assert str(attention.last_summary).endswith(", mean loss 1.000, 1 loss not finite")
