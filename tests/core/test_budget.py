"""A budget for repeats, a floor under losses, and warnings of too many repeats or none."""

import math
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import BatchAttentionWarning
from batch_sampler_attn.options import label_smoothing_floor

BUDGETS = st.floats(0.01, 1.0)
TRACES = st.lists(st.floats(0, 10) | st.sampled_from([math.nan, math.inf]), min_size=1, max_size=200)


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
@given(budget=BUDGETS, losses=TRACES, k=st.floats(0.2, 2.0), per_epoch=st.integers(1, 30))
def test_the_budget_is_never_exceeded_at_any_point_of_an_epoch(budget, losses, k, per_epoch):
    schedule = BatchAttentionSchedule(k, budget=budget, max_visits=None)
    for loss in losses:
        schedule.decide(loss)
        summary = schedule.summary
        begun = summary.batches + (schedule.visits > 0)
        assert summary.repeats <= budget * begun
        if not schedule.visits and schedule.batches == per_epoch:
            schedule.end_epoch()


def test_the_budget_goes_to_the_worst_batches_and_is_used_up():
    rng = random.Random(1)
    plain, budgeted = BatchAttentionSchedule(1.2), BatchAttentionSchedule(1.2, budget=0.1)
    repeated = {plain: [], budgeted: []}
    for schedule, losses_repeated in repeated.items():
        for _ in range(8):
            for _ in range(500):
                loss = rng.lognormvariate(0, 0.5)
                while schedule.decide(loss) is Decision.REPEAT:
                    losses_repeated.append(loss)
                    loss *= 0.8
            schedule.end_epoch()
    assert plain.last_summary.overhead > 0.5
    assert 0.09 < budgeted.last_summary.overhead <= 0.1
    worst, all_repeated = sorted(repeated[budgeted]), sorted(repeated[plain])
    assert worst[len(worst) // 2] > 1.3 * all_repeated[len(all_repeated) // 2]


@pytest.mark.parametrize(("options", "loss"), [({"floor": 1.0}, 0.5), ({}, -1.0)])
def test_a_mean_below_the_floor_is_warned_of(options, loss):
    schedule = BatchAttentionSchedule(**options)
    schedule.decide(loss)
    with pytest.warns(BatchAttentionWarning, match=r"below floor=.*below the mean"):
        schedule.end_epoch()


@pytest.mark.parametrize(("smoothing", "classes"), [(0.0, 10), (0.1, 10), (0.2, 100), (1.0, 4), (0.3, 2)])
def test_the_floor_under_label_smoothing_is_the_loss_of_a_perfect_fit(smoothing, classes):
    torch = pytest.importorskip("torch")
    target = torch.full((classes,), smoothing / classes, dtype=torch.float64)
    target[1] += 1 - smoothing
    logits = target.log().clamp(min=-1e3).reshape(1, -1)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1]), label_smoothing=smoothing)
    assert label_smoothing_floor(smoothing, classes) == pytest.approx(loss.item(), abs=1e-9)


def train(schedule, epochs, losses):
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(epochs):
            for loss in losses:
                while schedule.decide(loss) is Decision.REPEAT:
                    pass
            schedule.end_epoch()
            said += [(epoch, str(warning.message)) for warning in caught]
            assert all(warning.filename == __file__ for warning in caught)
            caught.clear()
    return said


@pytest.mark.parametrize(
    ("options", "advice"), [({}, "Use a lower k, or wait"), ({"budget": 0.01}, "Raise the budget, or shuffle the data")]
)
def test_five_epochs_without_a_repeat_are_warned_of_once_with_the_way_out(options, advice):
    ((epoch, text),) = train(BatchAttentionSchedule(1.2, **options), 12, [1.0] * 15 + [1.1] * 3 + [0.7] * 6)
    assert epoch == 5
    assert "k=1.2 has repeated nothing in 5 epochs" in text
    assert advice in text


def test_repeats_that_stop_later_are_not_warned_of():
    schedule = BatchAttentionSchedule(1.2, max_visits=2)
    assert not train(schedule, 1, [1.0] * 20)
    assert not train(schedule, 1, [1.0] * 20 + [1.3])
    assert not train(schedule, 12, [1.0] * 20)


@pytest.mark.parametrize("options", [{"max_visits": 1}, {"k": 1.02, "max_visits": 2}])
def test_what_can_never_repeat_or_does_is_not_warned_of(options):
    assert not train(BatchAttentionSchedule(**options), 12, [1.0] * 29 + [1.1])


def test_an_epoch_of_more_than_twice_the_updates_is_warned_of_once_with_the_way_out():
    said = train(BatchAttentionSchedule(0.5, max_visits=4), 5, [1.0] * 30)
    assert len(said) == 1
    assert "budget=0.2" in said[0][1]
    assert "300%" in said[0][1]
    assert not train(BatchAttentionSchedule(0.5, max_visits=4, budget=0.2), 5, [1.0] * 30)
