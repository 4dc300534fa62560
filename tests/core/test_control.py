"""The control at equal compute."""

import math
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import EqualComputeControl
from batch_sampler_attn.errors import OptionError, ProtocolError, StateError
from batch_sampler_attn.recorders import MemoryRecorder, visit_counts
from batch_sampler_attn.schedule import passes_of
from tests.core.test_attend import loader_through_a_sampler

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


def test_losses_are_averaged_and_decide_nothing():
    control = EqualComputeControl([[2]])
    for loss in (1e9, 0.0):
        control.decide(loss)
    summary = control.end_epoch()
    assert (summary.repeats, summary.mean_loss, summary.threshold) == (1, 1e9, None)


def test_it_can_be_recorded_saved_and_resumed_like_a_schedule():
    epochs = [[1, 3, 2], [2, 2, 1]]
    whole = EqualComputeControl(epochs, seed=3)
    expected = run(whole, epochs)
    stopped = EqualComputeControl(epochs, seed=3)
    run(stopped, epochs[:1])
    resumed = EqualComputeControl(epochs, seed=3)
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed, epochs[1:]) == expected[1:]


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_through_a_sampler_every_batch_has_the_visits_that_were_drawn_for_it(repeats):
    counts = [[1, 2, 3, 1], [2, 2, 1, 4]]
    control = EqualComputeControl(counts)
    loader = loader_through_a_sampler(control, range(8), repeats, num_workers=1)
    for epoch, expected in enumerate(counts):
        seen = []
        for batch in control.attend(loader):
            seen.append(batch[0].item() // 2)
            control.decide(1.0)
        assert [seen.count(position) for position in range(4)] == passes_of(control).criterion.draw(epoch)
        assert sorted(passes_of(control).criterion.draw(epoch)) == sorted(expected)
        assert control.last_summary.epoch == epoch


def test_the_counts_of_a_recorded_run_fit_in():
    recorder = MemoryRecorder()
    control = EqualComputeControl([[1, 1], [1, 2]])
    passes_of(control).recorders = (recorder,)
    run(control, [[1, 1], [1, 2]])
    assert [sorted(counts) for counts in visit_counts(recorder.visits)] == [[1, 1], [1, 2]]


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


def test_an_epoch_with_fewer_batches_than_were_counted_is_refused():
    control = EqualComputeControl([[1, 1]])
    with pytest.raises(ProtocolError, match="after 1 batches"):
        run(control, [[1]])


@pytest.mark.parametrize("counts", [[[]], [[1, 0]], [[1], [-1]], [[1.5]], [["1"]], [3]])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(OptionError, match="at least 1"):
        EqualComputeControl(counts)


def test_more_epochs_or_batches_than_were_counted_are_refused():
    control = EqualComputeControl([[1]])
    with pytest.raises(ProtocolError, match="more batches"):
        run(control, [[1, 1]])
    control = EqualComputeControl([[1]])
    with pytest.raises(ProtocolError, match="has 1 epochs"):
        run(control, [[1], [1]])


def test_negative_losses_are_no_matter_to_a_control():
    control = EqualComputeControl([[1, 2]] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for _ in control.attend(range(2)):
                control.decide(-1.0)
    assert control.last_summary.mean_loss == -1.0
