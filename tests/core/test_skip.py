"""Skipped batches: no visit, in no mean, and never taken for a repeat of another."""

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision, EqualComputeControl
from batch_sampler_attn.errors import EmptyEpochError, LossError
from batch_sampler_attn.recorders import MemoryRecorder
from tests.core.helpers import SKIP, run_epoch, schedule_with_threshold


def test_a_skipped_batch_is_no_visit_and_in_no_mean_and_keeps_its_index():
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
    assert run_epoch(schedule, "abcd", [1.0, SKIP, 3.0, SKIP]) == list("abcd")
    summary = schedule.last_summary
    assert (summary.batches, summary.visits, summary.repeats, summary.mean_loss) == (2, 2, 0, 2.0)
    assert schedule.threshold == 2.0
    assert [(record.batch, record.loss) for record in recorder.visits] == [(0, 1.0), (2, 3.0)]


@pytest.mark.parametrize(
    ("epoch_loss", "mean"), [("first", (5.0 + 1.0) / 2), ("last", 1.0), ("all", (5.0 + 4.0 + 1.0) / 3)]
)
def test_a_batch_skipped_in_mid_repeat_is_finished_with_the_visits_it_had(epoch_loss, mean):
    schedule = schedule_with_threshold(epoch_loss=epoch_loss)
    assert run_epoch(schedule, "abc", [5.0, 4.0, SKIP, 1.0, SKIP]) == list("aaabc")
    summary = schedule.last_summary
    assert (summary.batches, summary.visits, summary.repeats, summary.most_visits) == (2, 3, 1, 2)
    assert (summary.overhead, summary.mean_loss) == (0.5, mean)


def test_a_loop_by_hand_that_runs_out_of_memory_in_mid_repeat_continues_after_skip():
    schedule = schedule_with_threshold()
    assert [schedule.decide(loss) for loss in (1.0, 2.0)] == [Decision.ADVANCE, Decision.REPEAT]
    for _ in range(2):  # the batch after that one is too large at its first visit
        schedule.skip()
        assert schedule.visits == 0
    schedule.decide(3.0)
    schedule.decide(1.0)
    summary = schedule.end_epoch()
    assert (summary.batches, summary.visits, summary.repeats, summary.mean_loss) == (3, 4, 1, 2.0)


def test_an_epoch_of_skipped_batches_alone_is_refused_and_skip_is_advised_where_there_is_no_loss():
    schedule = BatchAttentionSchedule()
    with pytest.raises(EmptyEpochError, match="skipped"):
        run_epoch(schedule, "a", [SKIP])
    with pytest.raises(LossError, match=r"schedule\.skip\(\)"):
        schedule.decide(None)


def test_an_epoch_of_fixed_length_counts_batches_that_were_trained_on_and_may_end_with_one_skipped_in_mid_repeat():
    schedule = BatchAttentionSchedule(1.0, epoch_length=2)
    run_epoch(schedule, "abc", [1.0, SKIP, 2.0])
    assert (schedule.epoch, schedule.batches, schedule.threshold) == (1, 0, 1.5)
    run_epoch(schedule, "abcd", [2.0, SKIP, 1.0, SKIP, 1.0])
    assert (schedule.epoch, schedule.last_summary.visits, schedule.last_summary.batches) == (2, 2, 2)
    run_epoch(schedule, "e", [2.0, SKIP])
    assert (schedule.epoch, schedule.batches, schedule.last_summary.visits) == (3, 0, 2)


def test_a_control_keeps_its_counts_where_batches_are_skipped_in_both_runs_or_in_its_own():
    both = EqualComputeControl([[1, 3, 2]], seed=1)
    seen = run_epoch(both, "abcd", [1.0, SKIP, *[1.0] * 5])
    assert sorted(seen.count(batch) for batch in "acd") == [1, 2, 3]
    own = EqualComputeControl([[2, 2, 2]], seed=1)
    run_epoch(own, "abc", [SKIP, *[1.0] * 4])
    assert own.last_summary.batches == 2


def test_skipped_batches_give_a_budget_nothing_to_spend():
    schedule = schedule_with_threshold(budget=0.5)
    for _ in range(9):
        schedule.skip()
    assert [schedule.decide(loss) for loss in (2.0, 2.0)] == [Decision.ADVANCE, Decision.REPEAT]
    schedule.decide(1.0)
    assert schedule.end_epoch().repeats == 1
