"""Which runs there are, and in which order."""

import pytest

from benchmarks.cifar.plan import Queue, needs, plan_runs
from benchmarks.errors import PlanError


def test_runs_that_others_are_made_from_come_first_and_are_never_left_out():
    runs = plan_runs(["longer", "random"], ["first", "all"], [0, 3], [5])
    for place, run in enumerate(runs):
        assert set(needs(run)) <= set(runs[:place])
    assert len(runs) == len(set(runs)) == 2 * (1 + 2 * 3)


def test_the_queue_hands_out_a_run_only_when_its_needs_are_met():
    runs = plan_runs(["random"], ["first"], [0], [0, 1])
    waiting = Queue(runs, finished=[])
    first, second = waiting.take(), waiting.take()
    assert (first.arm, second.arm) == ("attention", "attention")
    assert waiting.take() is None
    waiting.finish(second)
    assert waiting.take() == second._replace(arm="random")
    assert waiting.take() is None


def test_a_run_is_wanted_as_long_as_one_that_is_not_finished_is_made_from_it():
    runs = plan_runs(["longer"], ["first"], [0], [0])
    waiting = Queue(runs, finished=[])
    for expected in runs:
        assert waiting.wants(runs[0])
        assert waiting.take() == expected
        # A run that is being made may still have to go on from it.
        assert waiting.wants(runs[0])
        waiting.finish(expected)
    assert not any(map(waiting.wants, runs))


@pytest.mark.parametrize("empty", [{"arms": []}, {"seeds": []}, {"epoch_losses": []}, {"label_noises": []}])
def test_a_plan_of_nothing_is_refused(empty):
    asked = {"arms": ["baseline"], "epoch_losses": ["first"], "label_noises": [0], "seeds": [0]} | empty
    with pytest.raises(PlanError, match="at least one"):
        plan_runs(**asked)
