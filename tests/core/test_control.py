"""The control at equal compute."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import EqualComputeControl
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from tests.core.helpers import loader_through_a_sampler

COUNTS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=8), min_size=1, max_size=4)


def run(control, epochs):
    seen = []
    for counts in epochs:
        seen.append([])
        for batch in control.attend(range(len(counts))):
            seen[-1].append(batch)
            control.decide(1.0)
    return seen


@given(epochs=COUNTS, seed=st.integers(0, 100))
def test_every_epoch_has_just_the_given_visit_counts_drawn_for_other_batches(epochs, seed):
    control = EqualComputeControl(epochs, seed=seed)
    for counts, seen in zip(epochs, run(control, epochs), strict=True):
        drawn = [seen.count(batch) for batch in range(len(counts))]
        assert sorted(drawn) == sorted(counts)
        assert seen == sorted(seen)


def test_repeats_follow_at_once_and_are_drawn_alike_for_the_same_seed():
    epochs = [[1, 4, 1, 2, 1, 1]] * 3
    first, again = run(EqualComputeControl(epochs, seed=1), epochs), run(EqualComputeControl(epochs, seed=1), epochs)
    assert first == again
    assert first != run(EqualComputeControl(epochs, seed=2), epochs)
    assert first[0] != first[1]


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_through_a_sampler_every_batch_has_the_visits_that_are_drawn_for_it_in_a_loop_by_hand(repeats):
    counts = [[1, 2, 3, 1], [2, 2, 1, 4]]
    control, by_hand = EqualComputeControl(counts), EqualComputeControl(counts)
    loader = loader_through_a_sampler(control, range(8), repeats, num_workers=1)
    for expected in run(by_hand, counts):
        seen = []
        for batch in control.attend(loader):
            seen.append(batch[0].item() // 2)
            control.decide(1.0)
        assert sorted(seen) == expected


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_losses_that_are_not_finite_take_no_visit_away():
    control = EqualComputeControl([[3]])
    decisions = [control.decide(loss).value for loss in (math.nan, math.inf, math.nan)]
    assert decisions == ["repeat", "repeat", "advance"]
    summary = control.end_epoch()
    assert (summary.visits, summary.nonfinite_losses, summary.most_visits) == (3, 3, 3)


@pytest.mark.parametrize(("counts", "seed"), [([[1, 3, 2]], 1), ([[1, 2, 3]], 0)])
def test_a_state_of_another_control_is_refused(counts, seed):
    control = EqualComputeControl([[1, 3, 2]])
    control.decide(1.0)
    with pytest.raises(StateError, match="saved"):
        EqualComputeControl(counts, seed=seed).load_state_dict(control.state_dict())


@pytest.mark.parametrize("counts", [[[]], [[1, 0]], [[1], [-1]], [[1.5]], [["1"]], [3]])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(OptionError, match="at least 1"):
        EqualComputeControl(counts)


@pytest.mark.parametrize(
    ("counts", "epochs", "said"),
    [
        ([[1, 1]], [[1]], r"after 1 batches, but visit_counts\[0\] has 2; use the data"),
        ([[1]], [[1, 1]], "more batches than the 1"),
        ([[1]], [[1], [1]], "epoch 1 began, but visit_counts has 1 epochs"),
    ],
)
def test_more_or_fewer_batches_or_epochs_than_were_counted_are_refused(counts, epochs, said):
    with pytest.raises(ProtocolError, match=said):
        run(EqualComputeControl(counts), epochs)


def test_a_control_does_not_warn_of_negative_losses():
    control = EqualComputeControl([[1, 2]] * 3)
    for _ in range(3):
        for _ in control.attend(range(2)):
            control.decide(-1.0)
    assert control.last_summary.mean_loss == -1.0
