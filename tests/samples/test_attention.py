"""Attention to samples in users' loops: what would go wrong silently is refused, warned of or made right."""

import itertools
import json
import math
import operator

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset, SubsetRandomSampler, WeightedRandomSampler

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import BatchAttentionWarning, LossError, OptionError, ProtocolError
from tests.distributed.threads import on_threads
from tests.loading.helpers import FORKING_IS_FINE
from tests.samples.runs import BATCH_SIZE, SAMPLES, LooksAhead, load, make, run_epoch

pytestmark = FORKING_IS_FINE


# Losses ------------------------------------------------------------------------------------------------------


class LikeJax(list):
    """As arrays of JAX are, which have a mean but take no list of weights."""

    shape = (BATCH_SIZE,)

    def mean(self):
        return sum(self) / len(self)


NO_LOSSES = [
    (torch.tensor(1.0), 'reduction="none"'),
    (1.0, 'reduction="none"'),
    (torch.ones(3), "3 losses for a batch of 4"),
    (numpy.ones(5), "5 losses for a batch of 4"),
    (torch.ones(4, 7), r"shape \(4, 7\).*flatten"),
    (numpy.ones((4, 1)), r"shape \(4, 1\)"),
    (torch.ones(4, dtype=torch.bool), "one real number"),
    (numpy.ma.array([1.0, 2.0, 3.0, 4.0], mask=[0, 1, 0, 0]), "masked.*NaN"),
    (["a"] * 4, "a loss is one real number"),
    (None, "NoneType"),
]
NO_WEIGHTED_LOSSES = [
    ([1.0] * 4, "type list"),
    (LikeJax([1.0] * 4), "type LikeJax"),
    (torch.ones(4, dtype=torch.int64), "int64.*weights that report"),
]


@pytest.mark.parametrize(
    ("method", "losses", "words"),
    [
        *(("report", *row) for row in NO_LOSSES),
        *(("weighted_mean", *row) for row in [*NO_LOSSES, *NO_WEIGHTED_LOSSES]),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_that_are_not_one_a_sample_are_refused_and_the_batch_stays_current(method, losses, words, weighted):
    attention = make(weighted=weighted)
    batches = iter(attention.attend())
    next(batches)
    with pytest.raises(LossError, match=words):
        getattr(attention, method)(losses)
    assert attention.updates == 0
    attention.weighted_mean(torch.ones(4))
    next(batches)
    assert attention.updates == 1


def test_a_mean_over_a_batch_of_one_is_not_the_loss_of_a_sample():
    attention = SampleAttention(3, 1)
    batches = iter(attention.attend())
    next(batches)
    with pytest.raises(LossError, match='reduction="none"'):
        attention.weighted_mean(nn.functional.cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, numpy.float32])
def test_the_weighted_mean_and_its_gradient_are_exact_and_what_is_remembered_are_the_losses(dtype, weighted):
    attention = make(weighted=weighted)
    most = 1.0
    for _ in range(3):
        for indices in attention.attend():
            values, weights = [0.5 + index % 4 for index in indices], attention.weights
            expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / BATCH_SIZE
            most = max(most, *weights)
            if dtype is numpy.float32:
                mean = attention.weighted_mean(numpy.array(values, dtype))
                assert isinstance(mean, numpy.floating)
            else:
                losses = torch.tensor(values, dtype=dtype, requires_grad=True)
                mean = attention.weighted_mean(losses)
                wide = torch.promote_types(dtype, torch.float32) if weighted else dtype
                assert mean.dtype == wide
                mean.backward()
                assert losses.grad.tolist() == pytest.approx([weight / BATCH_SIZE for weight in weights], rel=1e-2)
            assert mean.item() == pytest.approx(expected, rel=1e-2 if not weighted else 1e-6)
    assert (most > 1.1) == weighted
    assert all(attention.loss_of(index) == 0.5 + index % 4 for index in range(SAMPLES))


def test_a_weight_above_1_takes_no_loss_out_of_the_range_of_half_precision():
    attention = make(samples=8, k=None)
    for _ in range(4):
        for _ in attention.attend():
            largest = max(attention.weights)
            # One is large, where the weight is; the others are well fitted.
            losses = torch.ones(4, dtype=torch.float16)
            losses[attention.weights.index(largest)] = 60_000.0
            assert torch.isfinite(attention.weighted_mean(losses))
    assert largest > 1.1


def test_losses_that_are_not_finite_are_warned_of_once_an_epoch_and_counted_in_the_summary():
    attention = make(k=0.1)
    for epoch in range(2):
        with pytest.warns(BatchAttentionWarning, match=f"in epoch {epoch} is not finite") as said:
            run_epoch(attention, loss=lambda index: math.nan if index < 3 else 1.0)
        assert len(said) == 1
        assert said[0].filename.endswith("runs.py")
        number = attention.last_summary.nonfinite_losses
        assert number >= 2
        assert str(attention.last_summary).endswith(f", mean loss 1.000, {number} losses not finite")
    assert math.isnan(attention.loss_of(0))


def test_losses_too_large_to_be_added_up_leave_a_state_that_is_plain_json():
    attention, twin = (make(samples=8, prune_probability=0.0, k=None) for _ in range(2))
    with pytest.warns(BatchAttentionWarning, match="too large to be averaged"):
        run_epoch(attention, loss=lambda _: 1.2e308)
    assert (attention.last_summary.mean_loss, attention.last_summary.nonfinite_losses) == (1.2e308, 7)
    twin.load_state_dict(json.loads(json.dumps(attention.state_dict(), allow_nan=False)))


# Options -----------------------------------------------------------------------------------------------------


def test_a_seed_may_be_any_whole_number():
    assert [make(seed=seed).options.seed for seed in (numpy.int64(7), -1, 2**70)] == [7, -1, 2**70]


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"epochs": 2}, "final_full_share=0 prunes"),
        ({"epochs": 1}, "updates="),
        ({"epochs": 3, "final_full_share": 0.6}, "final_full_share=0 prunes"),
        ({"epochs": 2, "final_full_share": 0}, None),
        ({"epochs": 3}, None),
        ({"epochs": 3, "final_full_share": 0.5}, "final_full_share=0 prunes"),
        ({"epochs": 2, "prune_probability": 0.0, "k": None}, None),
    ],
)
def test_epochs_in_which_nothing_would_ever_be_pruned_are_warned_of_at_the_start(options, advice):
    if advice:
        with pytest.warns(BatchAttentionWarning, match=f"no epoch prunes or pools.*{advice}"):
            attention = make(**options)
    else:
        attention = make(**options)
    for _ in range(options["epochs"]):
        run_epoch(attention, loss=lambda index: 0.1 + index)
    is_plain = advice or options.get("prune_probability") == 0
    assert (sum(attention.doses["pruned"]) + sum(attention.doses["pooled"]) == 0) == bool(is_plain)


def test_training_past_the_last_epoch_is_warned_of_once():
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
    attended = attention.attend(load(attention, grows))
    grows.append(0)
    with pytest.raises(ProtocolError, match="dataset has 23 samples"):
        next(iter(attended))


def test_samples_of_a_subset_are_numbered_as_in_the_subset():
    attention = make()
    for batch in attention.attend(load(attention, Subset(range(100, 200), [*range(50, 50 + SAMPLES)]))):
        assert batch == [150 + index for index in attention.indices]
        attention.report(batch)
    assert attention.loss_of(0) == 150.0
    for outside in (SAMPLES, -1):
        with pytest.raises(IndexError, match="not one of the 22"):
            attention.loss_of(outside)


@pytest.mark.parametrize(
    ("sampler", "updates"),
    [
        (SubsetRandomSampler(range(10)), 3),
        (WeightedRandomSampler([1.0] * SAMPLES, 44), 11),
        (RandomSampler(range(SAMPLES)), 6),
        (range(5), 2),
        (None, 6),
    ],
)
def test_an_epoch_takes_as_many_updates_as_plain_training_in_the_sampler_s_order(sampler, updates):
    attention = make(sampler=sampler)
    assert len(attention) == updates == len(DataLoader(range(SAMPLES), BATCH_SIZE, sampler=sampler))
    assert len(run_epoch(attention)) == updates


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ([0.5, 1.0], r"yields 0\.5; it must yield ints from 0 to 21"),
        ([[0, 1], [2, 3]], r"yields \[0, 1\]; it must yield ints"),
        ([None], "yields None"),
        (torch.tensor([0.0, 1.0]), "yields tensor"),
        ([0, SAMPLES], "yields 22"),
        ([-1, 2], "yields -1"),
        ([], "yields 0 indices, none of them for this rank"),
    ],
)
def test_a_sampler_that_yields_no_indices_of_the_data_is_refused(sampler, words):
    with pytest.raises(OptionError, match=words):
        next(iter(make(sampler=sampler).attend()))


class OfUnknownLength:
    def __iter__(self):
        return iter(range(SAMPLES))


@pytest.mark.parametrize("sampler", [numpy.arange(SAMPLES), torch.arange(SAMPLES), OfUnknownLength()])
def test_indices_of_any_library_are_plain_numbers(sampler):
    attention = make(sampler=sampler)
    assert [*itertools.chain(*run_epoch(attention))][:SAMPLES] == [*range(SAMPLES)]
    json.dumps(attention.state_dict())


def test_a_state_of_a_million_samples_takes_a_few_megabytes():
    attention = SampleAttention(1_281_167, 256)
    next(iter(attention.attend()))
    assert len(json.dumps(attention.state_dict())) < 25_000_000


# Loops -------------------------------------------------------------------------------------------------------


def test_calls_out_of_turn_are_refused():
    attention = make()
    for out_of_turn in (lambda: attention.report([1.0] * 4), lambda: attention.weights, lambda: attention.indices):
        with pytest.raises(ProtocolError, match=r"with no current batch of attention\.attend"):
            out_of_turn()
    next(iter(load(attention)))
    with pytest.raises(ProtocolError, match="with no current batch"):
        attention.weighted_mean(torch.ones(4))
    for _ in attention.attend():
        attention.report([1.0] * 4)
        with pytest.raises(ProtocolError, match="or after its losses arrived"):
            attention.report([1.0] * 4)


@pytest.mark.parametrize("reports", [0, 5])
def test_a_report_that_is_left_out_is_refused_also_on_the_last_batch(reports):
    attention = make()

    def train():
        for _ in attention.attend(load(attention)):
            if attention.updates < reports:
                attention.report([1.0] * BATCH_SIZE)

    with pytest.raises(ProtocolError, match="the next batch was requested before"):
        train()
    assert (attention.epoch, attention.updates, len(attention)) == (0, reports, 6)


def test_a_summary_asked_for_after_a_loop_that_was_left_explains_itself():
    attention = make()
    for _ in attention.attend():
        attention.report([1.0] * BATCH_SIZE)
        break
    with pytest.raises(ProtocolError, match=r"1 of 6 updates.*left early does not end it.*resumes it"):
        attention.last_summary  # noqa: B018


def by_break(attention, loader):
    for number, batch in enumerate(attention.attend(loader)):
        yield batch
        if number + 1 == len(loader):
            break


LEAVINGS = {
    "zip": lambda attention, loader: map(operator.itemgetter(1), zip(range(6), attention.attend(loader), strict=False)),
    "islice": lambda attention, loader: itertools.islice(attention.attend(loader), len(loader)),
    "break": by_break,
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("leave", LEAVINGS.values(), ids=LEAVINGS.keys())
def test_a_loop_that_counts_batches_by_itself_ends_its_epochs_too(leave, ranks):
    def on_rank(rank, transport):
        attention, whole = (make(rank=rank, world_size=ranks, ranks=transport) for _ in range(2))
        expected = [run_epoch(whole) for _ in range(3)]
        loader = load(attention)
        for epoch in range(3):
            seen = []
            for batch in leave(attention, loader):
                assert attention.epoch == epoch
                seen.append(batch)
                attention.report([0.2 + index % 3 for index in batch])
            assert seen == expected[epoch]
            assert (attention.epoch, attention.last_summary.epoch) == (epoch + 1, epoch)
        assert run_epoch(attention) == run_epoch(whole)
        return attention.state_dict() == whole.state_dict()

    assert on_threads(ranks, on_rank) == [True] * ranks


def test_an_iterator_that_is_kept_after_its_last_batch_ends_its_epoch_as_the_next_one_begins():
    attention, kept = make(), []
    for epoch in range(3):
        kept.append(iter(attention.attend()))
        for _ in range(len(attention)):
            indices = next(kept[-1])
            assert attention.epoch == epoch
            attention.report([0.2 + index % 3 for index in indices])
    assert (attention.epoch, attention.updates) == (2, len(attention))


def test_what_attend_returns_can_be_made_once_and_stands_for_the_loader():
    attention, whole = make(), make()
    loader = load(attention)
    attended, seen = attention.attend(loader), []
    assert (len(attended), attended.dataset, attended.batch_sampler) == (6, loader.dataset, attention)
    for _ in range(3):
        for batch in attended:
            seen.append(batch)
            attention.report([0.2 + index % 3 for index in batch])
    assert seen == [batch for _ in range(3) for batch in run_epoch(whole)]
    assert len(attention.attend(LooksAhead(loader, 2))) == len(attention.attend()) == 6


def test_a_state_that_was_saved_at_the_last_batch_has_its_epoch_ended_by_a_loop_without_batches():
    attention, resumed = make(), make()
    for indices in attention.attend():
        attention.report([0.2 + index % 3 for index in indices])
        state = attention.state_dict()
    resumed.load_state_dict(state)
    assert resumed.epoch == 0
    assert run_epoch(resumed) == []
    assert resumed.state_dict() == attention.state_dict()


def test_a_list_of_indices_that_a_loop_changes_gives_no_loss_to_another_sample():
    attention = make(prune_probability=0.0)
    for indices in attention.attend():
        losses = [float(index) for index in indices]
        indices.sort(reverse=True)
        attention.report(losses)
    assert [attention.loss_of(sample) for sample in range(SAMPLES)] == [float(sample) for sample in range(SAMPLES)]
