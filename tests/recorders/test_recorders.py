"""Recorders, and what can be asked of what they wrote."""

import json
import math
from types import SimpleNamespace

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders import (
    JsonLinesRecorder,
    LogRecorder,
    MemoryRecorder,
    TensorBoardRecorder,
    VisitRecord,
    most_repeated,
    read_visits,
    visit_counts,
)

EPOCHS = [[1.0, 1.0, 1.0], [2.0, 0.5, 1.0, 3.0, 2.0, 1.0]]


def train(recorders, epochs=EPOCHS):
    schedule = BatchAttentionSchedule(1.0, recorders=recorders)
    for losses in epochs:
        remaining = iter(losses)
        for _ in schedule.attend("abc"):
            schedule.decide(next(remaining))
    return schedule


def test_every_visit_is_recorded_in_order_in_memory_and_as_json_lines(tmp_path):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    train([memory, lines])
    assert memory.visits[3:] == [
        VisitRecord(1, 0, 1, 2.0, "repeat"),
        VisitRecord(1, 0, 2, 0.5, "advance"),
        VisitRecord(1, 1, 1, 1.0, "advance"),
        VisitRecord(1, 2, 1, 3.0, "repeat"),
        VisitRecord(1, 2, 2, 2.0, "repeat"),
        VisitRecord(1, 2, 3, 1.0, "advance"),
    ]
    assert [summary.repeats for summary in memory.summaries] == [0, 3]
    assert read_visits(lines.path) == memory.visits
    first = {"epoch": 0, "batch": 0, "visit": 1, "loss": 1.0, "decision": "advance"}
    assert json.loads(lines.path.read_text().splitlines()[0]) == first


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_losses_that_json_has_no_number_for_and_indices_that_are_strings_are_read_back(tmp_path):
    recorder = JsonLinesRecorder(tmp_path / "visits.jsonl")
    train([recorder], [[math.nan, math.inf, -math.inf]])
    recorder.on_visit(1, 0, 1, 1.0, Decision.ADVANCE, ["a", "b"])
    recorder.flush()
    for line in recorder.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    visits = read_visits(recorder.path)
    assert str([record.loss for record in visits]) == "[nan, inf, -inf, 1.0]"
    assert visits[-1].indices == ("a", "b")


def test_a_recorder_of_the_user_s_may_lack_on_state_loaded():
    visits, summaries = [], []
    recorder = SimpleNamespace(on_visit=lambda *visit: visits.append(visit), on_epoch_end=summaries.append)
    schedule = BatchAttentionSchedule(recorders=[recorder])
    schedule.load_state_dict(BatchAttentionSchedule().state_dict())
    schedule.decide(1.0)
    assert [schedule.end_epoch()] == summaries
    assert visits == [(0, 0, 1, 1.0, Decision.ADVANCE, None)]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"epoch":0}', '{"epoch":0,"batch":0,"visit":1,"loss":1,"decision":"?"}']
)
def test_a_line_that_is_no_visit_is_named(tmp_path, line):
    path = tmp_path / "visits.jsonl"
    path.write_text(f'{{"epoch":0,"batch":0,"visit":1,"loss":1.0,"decision":"advance"}}\n{line}\n')
    with pytest.raises(RecordError, match="line 2"):
        read_visits(path)


def test_the_batches_most_often_repeated_can_be_asked_for():
    recorder = MemoryRecorder()
    train([recorder], [*EPOCHS, [1.0, 0.5, 9.0, 0.5]])
    first, second = most_repeated(recorder.visits)
    assert (first.batch, first.repeats, first.epochs) == (2, 3, (1, 2))
    assert (second.batch, second.repeats, second.epochs) == (0, 1, (1,))
    assert most_repeated(recorder.visits, 1) == [first]


def test_batches_with_the_same_indices_are_the_same_batch_wherever_they_come():
    visits = [
        VisitRecord(1, 4, 2, 1.0, "advance", (3, 1)),
        VisitRecord(2, 0, 2, 1.0, "advance", (1, 3)),
        VisitRecord(2, 4, 2, 1.0, "advance", (5, 6)),
    ]
    first, second = most_repeated(visits)
    assert (first.repeats, first.indices, first.epochs) == (2, (3, 1), (1, 2))
    assert second.indices == (5, 6)


def test_visit_counts_are_one_number_a_batch():
    recorder = MemoryRecorder()
    schedule = train([recorder])
    for loss in (0.5, 3.0, 1.0):  # an epoch by hand
        schedule.decide(loss)
    assert visit_counts(recorder.visits) == [[1, 1, 1], [2, 1, 3], [1, 2]]


@pytest.mark.parametrize(
    "kept", [lambda record: record.epoch != 0, lambda record: (record.epoch, record.batch) != (1, 1)]
)
def test_visit_counts_of_half_a_record_are_refused(kept):
    recorder = MemoryRecorder()
    train([recorder])
    with pytest.raises(RecordError, match="recorded"):
        visit_counts(filter(kept, recorder.visits))


def test_a_logger_gets_each_epoch_as_numbers_by_name_and_tensorboard_as_points_and_both_are_flushed_with_each_state():
    logged, points, flushed = [], [], []
    recorder = LogRecorder(lambda numbers, step: logged.append((step, numbers)), lambda: flushed.append("log"))
    writer = SimpleNamespace(add_scalar=lambda *point: points.append(point), flush=lambda: flushed.append("points"))
    train([recorder, LogRecorder(lambda *_, **__: None), TensorBoardRecorder(writer)]).state_dict()
    assert [step for step, _ in logged] == [0, 1]
    assert "batch_attention/threshold" not in logged[0][1]
    assert logged[1][1]["batch_attention/threshold"] == logged[1][1]["batch_attention/epoch"] == 1
    assert [(step, value) for name, value, step in points if name.endswith("/overhead")] == [(0, 0.0), (1, 1.0)]
    assert [step for name, _, step in points if name.endswith("/threshold")] == [1]
    assert not any(name.endswith("/epoch") for name, *_ in points)
    assert flushed == ["log", "points"]
