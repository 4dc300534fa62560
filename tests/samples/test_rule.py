"""The rule of attention to samples, against an oracle that keeps the whole history."""

import json
import math
import random
from collections import Counter

import pytest

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.agreement import Agreement
from batch_sampler_attn.samples.epoch import SampleEpochs
from batch_sampler_attn.shards import Shard
from tests.samples.oracle import SampleOracle

CHOICES = {
    "k": [None, 0.9, 1.2],
    "leave_out": [0.0, 0.3, 0.5],
    "weighted": [False, True],
    "max_visits": [1, 2, 4],
    "floor": [0.0, 0.2, -1.0],
    "remember": ["last", "base"],
}


def options_of(seed):
    rng = random.Random(seed)
    return {name: rng.choice(values) for name, values in CHOICES.items()} | {"seed": seed}


def loss_of(sample, visit, rng):
    if rng.random() < 0.03:
        return rng.choice([math.nan, math.inf, -math.inf])
    # Some samples are hard, and all get easier.
    return (1 + sample % 5) * rng.uniform(0.5, 1.5) / (1 + 0.1 * visit)


def epochs_of(samples, batch_size, updates, epochs=None, **options):
    attention = SampleAttention(samples, batch_size, updates=updates, epochs=epochs, plain_share=0.25, **options)
    return SampleEpochs(attention.options, None, Shard(), Agreement(None))


@pytest.mark.filterwarnings("ignore:a loss of .* is not finite:batch_sampler_attn.errors.BatchAttentionWarning")
@pytest.mark.parametrize("seed", range(40))
def test_every_batch_weight_and_mean_is_the_oracles(seed):
    rng = random.Random(seed)
    options, ahead = options_of(seed), rng.choice([0, 1, 3, 7])
    samples, batch_size, updates = rng.choice([(20, 4, 5), (23, 3, 11), (12, 12, 3), (17, 2, 4)])
    plain = rng.choice([None, 6])
    ours = epochs_of(samples, batch_size, updates, epochs=None if plain is None else 8, **options)
    oracle = SampleOracle(samples, batch_size, updates, first_plain_epoch=plain, **options)
    visits = Counter()
    for _ in range(8):
        handed = 0
        while not ours.is_over:
            while handed < updates and len(ours.flight) <= ahead:
                assert ours.hand_out().indices == oracle.hand_out()
                handed += 1
            batch = ours.flight[0]
            assert batch.weights == pytest.approx([weight for _, weight in oracle.out[0][1]], rel=1e-12)
            losses = [loss_of(sample, visits[sample], rng) for sample in batch.indices]
            visits.update(batch.indices)
            ours.settle(losses)
            oracle.report(losses)
        assert ours.hand_out() is oracle.hand_out() is None
        ours.end()
        oracle.end_epoch()
        assert ours.mean_loss == (None if oracle.mean() is None else pytest.approx(oracle.mean(), rel=1e-12, abs=1e-12))


@pytest.mark.filterwarnings("ignore:a loss of .* is not finite:batch_sampler_attn.errors.BatchAttentionWarning")
@pytest.mark.parametrize("seed", range(15))
def test_a_run_saved_anywhere_goes_on_to_the_very_same_end(seed):
    rng = random.Random(seed)
    options, ahead = options_of(seed), rng.choice([0, 2, 5])
    stop, total = rng.randrange(0, 55), 60

    def run(epochs, begin, end):
        seen = []
        for number in range(begin, end):
            if epochs.is_over:
                epochs.end()
            while len(epochs.flight) <= ahead and epochs.hand_out() is not None:
                pass
            batch = epochs.flight[0]
            losses_rng = random.Random(f"{seed} {number}")
            losses = [loss_of(sample, number / 5, losses_rng) for sample in batch.indices]
            seen.append((batch.indices, batch.weights))
            epochs.settle(losses)
        return seen

    whole, stopped = (epochs_of(23, 3, 8, epochs=7, **options) for _ in range(2))
    expected = run(whole, 0, total)
    run(stopped, 0, stop)
    packed = json.loads(json.dumps(stopped.pack(), allow_nan=False))
    resumed = epochs_of(23, 3, 8, epochs=7, **options)
    resumed.place = resumed.unpack(packed)
    assert run(resumed, stop, total) == expected[stop:]
    assert resumed.pack() == whole.pack()


def test_the_expected_gradient_is_that_of_all_data_and_is_not_without_weights():
    # A sample's gradient is a number that goes with its loss, so that leaving easy ones out would be seen.
    losses = [0.2] * 30 + [2.0] * 10
    gradients = [loss + index / 100 for index, loss in enumerate(losses)]
    of_all = sum(gradients) / len(gradients)

    def measured(weighted):
        attention = SampleAttention(40, 4, leave_out=0.5, weighted=weighted, updates=200, seed=1)
        means = []
        for epoch in range(40):
            for indices in attention.attend():
                weights = attention.report([losses[index] for index in indices])
                if epoch:
                    means.append(
                        sum(weight * gradients[index] for weight, index in zip(weights, indices, strict=True)) / 4
                    )
        mean = sum(means) / len(means)
        error = math.sqrt(sum((value - mean) ** 2 for value in means) / len(means) / len(means))
        return mean, error

    mean, error = measured(weighted=True)
    assert abs(mean - of_all) < 4 * error
    mean, error = measured(weighted=False)
    assert abs(mean - of_all) > 20 * error


@pytest.mark.parametrize("choose", ["loss", "random"])
def test_hard_samples_are_seen_more_often_unless_the_choice_is_random(choose):
    attention = SampleAttention(60, 6, k=1.5, leave_out=0.5, choose=choose, max_visits=3, seed=2)
    seen = Counter()
    extra = left_out = 0
    for _ in range(60):
        for indices in attention.attend():
            attention.report([3.0 if index < 12 else 0.5 for index in indices])
            seen.update(indices)
        extra += attention.last_summary.extra_updates
        left_out += attention.last_summary.left_out
        assert attention.last_summary.updates == 10
    hard, easy = sum(seen[index] for index in range(12)) / 12, sum(seen[index] for index in range(12, 60)) / 48
    assert extra > 20
    assert left_out > 500
    assert hard / easy > 3 if choose == "loss" else 0.85 < hard / easy < 1.18


def test_no_sample_is_forgotten_however_well_it_is_fitted():
    attention = SampleAttention(50, 5, leave_out=0.9, seed=3)
    last_seen = dict.fromkeys(range(50), 0)
    longest = 0
    for epoch in range(80):
        for indices in attention.attend():
            attention.report([0.1 if index else 50.0 for index in indices])
            for index in indices:
                longest = max(longest, epoch - last_seen[index])
                last_seen[index] = epoch
    assert longest < 40


def test_the_last_share_of_training_sees_every_sample_just_once_an_epoch():
    attention = SampleAttention(20, 4, k=0.5, leave_out=0.5, epochs=10, plain_share=0.3)
    for epoch in range(10):
        seen = Counter()
        for indices in attention.attend():
            attention.report([float(index % 3) for index in indices])
            seen.update(indices)
        assert attention.last_summary.is_plain == (epoch >= 7)
        if epoch >= 7:
            assert seen == Counter(range(20))


@pytest.mark.filterwarnings("ignore:a loss of .* is not finite:batch_sampler_attn.errors.BatchAttentionWarning")
def test_losses_that_are_not_finite_are_counted_and_never_pooled_or_remembered():
    attention = SampleAttention(8, 4, k=0.1, leave_out=0.0, max_visits=9)
    for _ in range(3):
        for indices in attention.attend():
            attention.report([math.nan if index == 0 else math.inf if index == 1 else 1.0 for index in indices])
    assert math.isnan(attention.loss_of(0))
    assert math.isnan(attention.loss_of(1))
    assert attention.loss_of(2) == 1.0
    # All of its updates were of pooled samples, so that the mean stays that of the epoch before.
    assert (attention.last_summary.extra_updates, attention.threshold) == (2, 0.1)
