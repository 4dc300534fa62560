"""Recorders, and what can be asked of what they wrote."""

import json
import math

import pytest

from batch_sampler_attn import BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders import (
    JsonLinesRecorder,
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


def test_every_visit_is_recorded_in_order():
    recorder = MemoryRecorder()
    train([recorder])
    assert recorder.visits[3:] == [
        VisitRecord(1, 0, 1, 2.0, "repeat"),
        VisitRecord(1, 0, 2, 0.5, "advance"),
        VisitRecord(1, 1, 1, 1.0, "advance"),
        VisitRecord(1, 2, 1, 3.0, "repeat"),
        VisitRecord(1, 2, 2, 2.0, "repeat"),
        VisitRecord(1, 2, 3, 1.0, "advance"),
    ]
    assert [summary.repeats for summary in recorder.summaries] == [0, 3]


def test_json_lines_say_the_same_as_memory(tmp_path):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    with lines:
        train([memory, lines])
    assert read_visits(lines.path) == memory.visits
    assert json.loads(lines.path.read_text().splitlines()[0]) == {
        "epoch": 0,
        "batch": 0,
        "visit": 1,
        "loss": 1.0,
        "decision": "advance",
    }


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_losses_that_json_has_no_number_for_are_read_back(tmp_path):
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
        train([recorder], [[math.nan, math.inf, -math.inf]])
    for line in recorder.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    losses = [record.loss for record in read_visits(recorder.path)]
    assert str(losses) == "[nan, inf, -inf]"


def test_an_abandoned_epoch_leaves_no_visits(tmp_path):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    schedule = train([memory, lines], EPOCHS[:1])
    for _ in schedule.attend("abc"):
        schedule.decide(7.0)
        break
    for _ in schedule.attend("abc"):
        schedule.decide(0.5)
    lines.close()
    assert read_visits(lines.path) == memory.visits
    assert [record.loss for record in memory.visits if record.epoch == 1] == [0.5, 0.5, 0.5]


def test_indices_may_be_strings(tmp_path):
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
        recorder.on_visit(0, 0, 1, 1.0, Decision.ADVANCE, ["a", "b"])
    assert read_visits(recorder.path)[0].indices == ("a", "b")


def test_a_saved_state_puts_all_lines_on_disk(tmp_path):
    recorder = JsonLinesRecorder(tmp_path / "visits.jsonl")
    schedule = BatchAttentionSchedule(recorders=[recorder])
    schedule.decide(1.0)
    schedule.state_dict()
    assert len(read_visits(recorder.path)) == 1
    recorder.close()


def test_a_run_that_goes_on_appends_and_visits_made_again_count_once(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(recorders=[recorder])
        schedule.decide(1.0)
        saved = schedule.state_dict()
        schedule.decide(2.0)
    with path.open("a") as file:
        file.write('{"epoch":0,"bat')
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(recorders=[recorder])
        schedule.load_state_dict(saved)
        schedule.decide(2.0)
        schedule.decide(3.0)
    assert [(record.batch, record.loss) for record in read_visits(path)] == [(0, 1.0), (1, 2.0), (2, 3.0)]


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
    train([recorder])
    assert visit_counts(recorder.visits) == [[1, 1, 1], [2, 1, 3]]


@pytest.mark.parametrize(
    "kept", [lambda record: record.epoch != 0, lambda record: (record.epoch, record.batch) != (1, 1)]
)
def test_visit_counts_of_half_a_record_are_refused(kept):
    recorder = MemoryRecorder()
    train([recorder])
    with pytest.raises(RecordError, match="recorded"):
        visit_counts(filter(kept, recorder.visits))


def test_tensorboard_gets_a_point_an_epoch(tmp_path):
    pytest.importorskip("torch")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    schedule = train([TensorBoardRecorder(writer)])
    schedule.state_dict()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    overheads = [(event.step, event.value) for event in events.Scalars("batch_attention/overhead")]
    assert overheads == [(0, 0.0), (1, 1.0)]
    assert [event.step for event in events.Scalars("batch_attention/threshold")] == [1]


def test_a_hand_written_loop_is_recorded_too():
    recorder = MemoryRecorder()
    schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
    schedule.decide(1.0)
    schedule.end_epoch()
    for loss in (2.0, 1.0):
        decision = schedule.decide(loss)
    assert decision is Decision.ADVANCE
    assert visit_counts(recorder.visits) == [[1], [2]]
