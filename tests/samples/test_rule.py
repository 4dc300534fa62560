"""The rule of attention to samples, against an oracle that keeps the whole history."""

import json
import math
import random
from collections import Counter

import pytest

from batch_sampler_attn import SampleAttention
from batch_sampler_attn.errors import BatchAttentionWarning, OptionError, StateError
from batch_sampler_attn.samples import order
from tests.samples.oracle import SampleOracle
from tests.samples.runs import Backwards, LooksAhead

CHOICES = {
    "k": [None, 0.9, 1.2],
    "prune_probability": [0.0, 0.3, 0.5],
    "weighted": [False, True],
    "max_visits": [1, 2, 4],
    "floor": [0.0, 0.2, -1.0],
    "remember_loss": ["last", "base"],
    "select": ["loss", "loss", "random"],
}


def options_of(seed):
    rng = random.Random(seed)
    return {name: rng.choice(values) for name, values in CHOICES.items()} | {"seed": seed}


def loss_of(sample, visit, rng):
    if rng.random() < 0.03:
        return rng.choice([math.nan, math.inf, -math.inf])
    # Some samples are hard, and all get easier.
    return (1 + sample % 5) * rng.uniform(0.5, 1.5) / (1 + 0.1 * visit)


class Checked:
    """What goes out, checked against the oracle as it goes."""

    def __init__(self, attention, oracle):
        self.attention, self.oracle = attention, oracle

    def __iter__(self):
        for indices in self.attention:
            assert indices == self.oracle.hand_out()
            yield indices


NONFINITE_IS_FINE = pytest.mark.filterwarnings("ignore:a loss of .* is not finite")


@NONFINITE_IS_FINE
@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 120))])
def test_every_batch_weight_and_mean_is_the_oracles(seed, monkeypatch):
    rng = random.Random(seed)
    if seed % 3 == 0:
        monkeypatch.setattr(order, "numpy_or_none", lambda: None)
        order.stretch.cache_clear()
    options, ahead = options_of(seed), rng.choice([0, 1, 3, 7])
    # Above 1000 samples, the order is computed.
    sizes = (1100, 275, 5) if seed % 10 == 9 else rng.choice([(20, 4, 5), (23, 3, 11), (12, 6, 3), (17, 2, 4)])
    samples, batch_size, updates = sizes
    options |= rng.choice([{}, {"rank": 1, "world_size": 2}, {"sampler": Backwards(samples)}])
    full = rng.choice([None, 6])
    epochs = None if full is None else 8
    ours = SampleAttention(
        samples, batch_size, updates=updates, epochs=epochs, final_full_share=0.25, ranks=None, **options
    )
    oracle = SampleOracle(samples, batch_size, updates, first_full_epoch=full, **options)
    visits = Counter()
    for _ in range(8):
        for indices in ours.attend(LooksAhead(Checked(ours, oracle), ahead)):
            assert ours.weights == pytest.approx([weight for _, weight in oracle.out[0][1]], rel=1e-12)
            losses = [loss_of(sample, visits[sample], rng) for sample in indices]
            visits.update(indices)
            ours.report(losses)
            oracle.report(losses)
        assert oracle.hand_out() is None
        oracle.end_epoch()
        mean = ours.last_summary.mean_loss
        assert mean is None or mean == pytest.approx(oracle.mean(), rel=1e-12, abs=1e-12)
    assert oracle.pruned == sum(ours.doses["pruned"])
    averages, suspects = oracle.averages(), ours.suspects(samples)
    assert {suspect.sample: suspect.visits for suspect in suspects} == {i: made for i, (_, made) in averages.items()}
    for suspect in suspects:
        assert suspect.mean_loss == pytest.approx(averages[suspect.sample][0], rel=0.02)
    assert suspects == sorted(suspects, key=lambda suspect: (-suspect.mean_loss, suspect.sample))


def test_the_expected_gradient_is_that_of_all_data_and_is_not_without_weights():
    # A sample's gradient is a number that goes with its loss, so that leaving easy ones out would be seen.
    losses = [0.2] * 30 + [2.0] * 10
    gradients = [loss + index / 100 for index, loss in enumerate(losses)]
    of_all = sum(gradients) / len(gradients)

    def measured(weighted):
        attention = SampleAttention(40, 4, prune_probability=0.5, weighted=weighted, updates=200, seed=1)
        means = []
        for epoch in range(15):
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
    assert abs(mean - of_all) > 12 * error


def run(attention, epochs):
    """How often hard samples were seen, for one visit to an easy one."""
    seen = Counter()
    for _ in range(epochs):
        for indices in attention.attend():
            attention.report([3.0 if index < 12 else 0.5 for index in indices])
            seen.update(indices)
    return sum(seen[index] for index in range(12)) / 12 / (sum(seen[index] for index in range(12, 60)) / 48)


@pytest.mark.parametrize("select", ["loss", "random"])
def test_hard_samples_are_seen_more_often_unless_the_choice_is_random(select):
    attention = SampleAttention(60, 6, k=1.5, prune_probability=0.5, select=select, max_visits=3, seed=2)
    share = run(attention, 60)
    assert sum(attention.doses["pooled"]) > 120
    assert sum(attention.doses["pruned"]) > 500
    assert share > 3 if select == "loss" else 0.85 < share < 1.18


# At the edges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.7, 0.1, 1e300, 3e38, 1e-50])
def test_samples_that_all_have_the_same_loss_are_none_of_them_well_fitted(loss):
    attention = SampleAttention(1000, 10, prune_probability=0.9)
    for _ in range(3):
        for indices in attention.attend():
            attention.report([loss] * len(indices))
    assert sum(attention.doses["pruned"]) == 0


def test_a_pass_in_which_every_sample_would_be_pruned_keeps_its_last():
    attention = SampleAttention(3, 1, prune_probability=0.999, updates=6)
    for epoch in range(40):
        for number, indices in enumerate(attention.attend()):
            # The first pass of each epoch has high losses, and the second leaves all samples below the mean.
            attention.report([1.0 / (1 + epoch) if number < 3 else 0.5 / (1 + epoch)] * len(indices))
    assert {0, 2} <= {*attention.doses["pruned"]} <= {0, 1, 2}


def test_the_256th_visit_to_a_sample_is_still_counted_as_too_many():
    attention = SampleAttention(2, 1, k=0.5, prune_probability=0.0, max_visits=255, updates=900)
    for _ in range(2):
        seen = Counter()
        for indices in attention.attend():
            attention.report([5.0])
            seen.update(indices)
    # Both were pooled as often as allowed; then only the base order brings them, each as often.
    assert {*seen.values()} == {450}
    assert attention.last_summary.extra_updates < 900 - 2


# Controls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"updates": 1}, {"updates": 2}, {"updates": 10, "max_visits": 4}])
def test_the_random_control_pools_as_many_as_its_losses_would_select(options):
    attention = SampleAttention(60, 6, k=1.5, prune_probability=0.0, select="random", **options)
    wanted = 0
    for epoch in range(240 // options["updates"]):
        for indices in attention.attend():
            # Some batches have more hard samples than the next one can take.
            losses = [3.0 if index < 12 else 0.5 for index in indices]
            attention.report(losses)
            wanted += sum(loss > 1.0 for loss in losses) if epoch else 0
    assert sum(attention.doses["pooled"]) == pytest.approx(wanted, rel=0.15)
    assert attention.epoch == 240 // options["updates"]


def recorded(epochs, **options):
    """The doses of a run that prunes and pools by loss."""
    attention = SampleAttention(60, 6, k=1.5, seed=1, **options)
    run(attention, epochs)
    return json.loads(json.dumps(attention.doses))


def test_a_twin_prunes_and_pools_as_many_as_the_recorded_run_whichever_samples_those_are():
    options = {"max_visits": 3, "updates": 12}
    doses = recorded(20, prune_probability=0.5, **options)
    assert sum(doses["pruned"]) > 100 < sum(doses["pooled"])
    assert len(doses["pooled"]) == 20 * 12
    twin = SampleAttention(60, 6, select=doses, seed=2, **options)
    assert 0.8 < run(twin, 20) < 1.25
    # The last of both is still in progress.
    passes = min(len(doses["pruned"]), len(twin.doses["pruned"])) - 1
    assert twin.doses["pruned"][:passes] == doses["pruned"][:passes]
    assert passes > 0.9 * len(doses["pruned"])
    assert sum(twin.doses["pooled"]) == pytest.approx(sum(doses["pooled"]), rel=0.1)
    next(batches := iter(twin.attend()))
    assert twin.weights == [1.0] * 6
    batches.close()


def test_a_twin_is_resumed_with_the_same_doses_and_with_no_others():
    doses = recorded(6)
    twin, resumed = (SampleAttention(60, 6, k=1.5, select=doses, seed=2) for _ in range(2))
    run(twin, 3)
    resumed.load_state_dict(json.loads(json.dumps(twin.state_dict())))
    assert run(resumed, 3) == run(twin, 3)
    assert resumed.doses == twin.doses
    other = SampleAttention(60, 6, k=1.5, select={**doses, "pruned": [1]}, seed=2)
    with pytest.raises(StateError, match="other options: doses_crc32"):
        other.load_state_dict(twin.state_dict())


def test_doses_of_another_length_of_epoch_or_data_are_refused_and_too_few_are_warned_of():
    doses = recorded(3)
    for samples, updates in ((60, 5), (66, 11)):
        with pytest.raises(OptionError, match="60 samples and 10 updates"):
            SampleAttention(samples, 6, updates=updates, select=doses)
    with pytest.warns(BatchAttentionWarning, match="nothing is pruned from here on"):
        run(SampleAttention(60, 6, k=1.5, select=doses, seed=2), 6)
