"""Files of visits: runs that were stopped, resumed, rolled back, copied, or could not write."""

import copy
import os
import random
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import BatchAttentionWarning, RecordError
from batch_sampler_attn.recorders import (
    JsonLinesRecorder,
    MemoryRecorder,
    Recorder,
    most_repeated,
    read_visits,
    visit_counts,
)
from tests.core.helpers import COPIES

BATCHES = 4


class Run:
    """A hand-written loop under a schedule that can be saved after any visit, with losses from a seed."""

    def __init__(self, recorders, seed):
        self.recorders = recorders
        self.schedule = BatchAttentionSchedule(1.0, max_visits=4, recorders=recorders)
        self.rng = random.Random(seed)

    def visit(self):
        self.schedule.decide(self.rng.uniform(0.5, 1.5))
        if self.schedule.batches == BATCHES and not self.schedule.visits:
            self.schedule.end_epoch()

    def save(self):
        return copy.deepcopy(self.schedule.state_dict()), self.rng.getstate()

    def load(self, saved):
        self.schedule.load_state_dict(saved[0])
        self.rng.setstate(saved[1])


def visit(recorder, epoch, batch, indices=None):
    recorder.on_visit(epoch, batch, 1, 1.0, Decision.ADVANCE, indices)


def visit_many(recorder, batches):
    for batch in range(batches):
        visit(recorder, 0, batch)


@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_was_stopped_and_rolled_back_is_recorded_as_the_run_that_came_of_it(tmp_path, seed):
    rng = random.Random(seed)
    path = tmp_path / "visits.jsonl"
    run = Run([JsonLinesRecorder(path), MemoryRecorder()], seed)
    made, at_last_visit, states = [], [], [(run.save(), [])]
    for _ in range(8):
        for _ in range(rng.randrange(12)):
            before = run.schedule.epoch, run.schedule.batches, run.schedule.visits + 1
            run.visit()
            made = at_last_visit = [*made, before]
            if rng.random() < 0.3:
                states.append((run.save(), made))
            if rng.random() < 0.3:
                run.schedule.abandon_epoch()
                made = [visit for visit in made if visit[0] < run.schedule.epoch]
        state, made = rng.choice([(saved, at) for saved, at in states if at == at_last_visit[: len(at)]])
        if rng.random() < 0.5:  # in a new process
            run.recorders[0].close()
            memory = run.recorders[1]
            run = Run([JsonLinesRecorder(path), memory], seed=100)
            if rng.random() < 0.2:
                with path.open("a") as file:
                    file.write('{"epoch":0,"bat')
        run.load(state)
        states = [(saved, at) for saved, at in states if at == made[: len(at)]]
    run.visit()
    run.schedule.state_dict()
    in_file, in_memory = read_visits(path), run.recorders[1].visits
    assert [record[:3] for record in in_file[:-1]] == made
    assert in_memory == in_file
    assert [summary.epoch for summary in run.recorders[1].summaries] == [*range(run.schedule.epoch)]
    run.recorders[0].close()


def test_a_run_that_is_started_again_counts_alone(tmp_path):
    path, again = tmp_path / "visits.jsonl", MemoryRecorder()
    for visits, seed in ((30, 0), (7, 1)):
        with JsonLinesRecorder(path) as recorder:
            memory = MemoryRecorder()
            run = Run([recorder, memory, again], seed)
            for _ in range(visits):
                run.visit()
    assert read_visits(path) == memory.visits == again.visits
    assert len(memory.visits) == 7


def test_a_run_resumes_behind_visits_alone_and_not_behind_skipped_batches(tmp_path):
    saved = None
    for losses in ([1.0, None, 2.0, None, 0.5], [0.25]):
        with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
            schedule = BatchAttentionSchedule(0.1, recorders=[recorder])
            if saved is not None:
                schedule.load_state_dict(saved)
            for loss in losses:
                schedule.skip() if loss is None else schedule.decide(loss)
                if loss == 2.0:
                    saved = schedule.state_dict()
    assert [record.loss for record in read_visits(recorder.path)] == [1.0, 2.0, 0.25]


WRITE = """
import sys
from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.recorders import JsonLinesRecorder
schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(sys.argv[1])])
for loss in range(50):
    schedule.decide(loss)
"""


def test_lines_that_nobody_closed_are_in_the_file_after_the_process(tmp_path):
    path = tmp_path / "visits.jsonl"
    subprocess.run([sys.executable, "-c", WRITE, str(path)], check=True)
    assert [record.loss for record in read_visits(path)] == list(range(50))


def test_two_recorders_of_one_file_are_found(tmp_path):
    first, second = (JsonLinesRecorder(tmp_path / "visits.jsonl") for _ in range(2))
    for recorder in (first, second):
        visit(recorder, 0, 0)
        recorder.flush()
    visit(first, 0, 1)
    with pytest.warns(BatchAttentionWarning, match="another recorder writes to the file too; give each run"):
        first.flush()
    visit(second, 0, 1)
    second.close()
    assert [record.batch for record in read_visits(first.path)] == [0, 1]


def test_a_recorder_that_is_replaced_in_a_notebook_leaves_the_file_to_its_successor(tmp_path):
    schedule = None
    for losses in ([1.0, 1.0, 0.5], [4.0, 3.0, 2.0]):
        again = BatchAttentionSchedule(recorders=[JsonLinesRecorder(tmp_path / "visits.jsonl")])
        for loss in losses:
            again.decide(loss)
            if loss not in (0.5, 2.0):  # left in the third epoch
                again.end_epoch()
        if schedule is None:
            schedule = again
    del schedule, again
    assert [record.loss for record in read_visits(tmp_path / "visits.jsonl")] == [4.0, 3.0, 2.0]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_last_line_that_was_cut_off_is_left_out_and_one_without_its_end_is_ended_by_the_next_run(tmp_path, cut):
    path = tmp_path / "visits.jsonl"
    line = '{"epoch":0,"batch":0,"visit":1,"loss":1.0,"decision":"advance"}'
    text = line + "\n" + line.replace('"batch":0', '"batch":1')
    path.write_text(text[: len(text) - cut])
    batches = [0] if cut else [0, 1]
    assert [record.batch for record in read_visits(path)] == batches
    for _ in range(2):
        with JsonLinesRecorder(path) as recorder:
            recorder.on_state_loaded(0, len(batches))
            visit(recorder, 0, len(batches))
        batches.append(len(batches))
        assert [record.batch for record in read_visits(path)] == batches
        path.write_bytes(path.read_bytes() + b"\0" * 100)  # as after a power cut


@pytest.mark.parametrize(("epoch", "visits"), [(0, 3), (2, 0), (1, 1)])
def test_a_run_that_resumes_from_visits_that_are_not_there_is_refused(tmp_path, epoch, visits):
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
        visit_many(recorder, 2)
        recorder.on_state_loaded(epoch, visits)
        visit(recorder, epoch, visits)
    with pytest.raises(RecordError, match=r"line 3.*Give each run a file of its own"):
        read_visits(recorder.path)


def test_a_record_that_begins_in_mid_run_may_be_continued(tmp_path):
    for made in (3, 4):
        with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
            recorder.on_state_loaded(2, made)
            for batch in range(made, 6):
                visit(recorder, 2, batch)
    assert [record.batch for record in read_visits(recorder.path)] == [3, 4, 5]


# A file that cannot be written ------------------------------------------------------------------------


@contextmanager
def full_disk(size):
    """Let no file grow beyond ``size`` bytes; the write that would is cut off there, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_for_a_while_costs_no_visit_and_leaves_no_half_line(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(recorders=[recorder])
        schedule.decide(1.0)
        schedule.state_dict()
        size = path.stat().st_size
        with full_disk(size + 7):
            schedule.decide(2.0)
            with pytest.warns(BatchAttentionWarning, match=r"visits cannot be written to .*, and training continues"):
                state = schedule.state_dict()
            with pytest.warns(BatchAttentionWarning, match="training continues"):
                schedule.end_epoch()
            assert path.stat().st_size == size
        schedule.decide(3.0)
    assert [record.loss for record in read_visits(path)] == [1.0, 2.0, 3.0]
    resumed = BatchAttentionSchedule()
    resumed.load_state_dict(state)
    assert resumed.batches == 2


def test_a_full_disk_is_not_tried_again_at_each_visit_and_is_an_error_at_the_end(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        with full_disk(0), pytest.warns(BatchAttentionWarning, match="training continues") as warned:
            visit_many(recorder, 5000)
        assert 2 < len(warned) < 10
    assert len(read_visits(path)) == 5000
    visit(recorder, 0, 5000)
    with full_disk(0), pytest.raises(OSError, match="too large"):
        recorder.close()  # nothing is left to warn of it later


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("No space left: closed file")])
def test_a_state_is_saved_though_a_recorder_cannot_write(error):
    class FullDisk(Recorder):
        def flush(self):
            raise error

    schedule = BatchAttentionSchedule(recorders=[FullDisk()])
    schedule.decide(1.0)
    with pytest.warns(BatchAttentionWarning, match="FullDisk could not write.*No space left"):
        state = schedule.state_dict()
    BatchAttentionSchedule().load_state_dict(state)


# Whose file it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["first\nlast without an end", '{"epoch":0,"loss":1.5}\n', '{"epoch":0,"loss":1.5}', "[]\n", "\n", "x" * 100],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text('{"epoch":0,"bat')
    JsonLinesRecorder(path)  # the first line of a run, cut off
    path.write_text(text)
    with pytest.raises(RecordError, match="give the recorder a file of its own"):
        JsonLinesRecorder(path)
    assert path.read_text() == text


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/null"):
        with pytest.raises(RecordError, match="is not a file of recorded visits"):
            JsonLinesRecorder(path)


def test_a_recorder_that_was_closed_writes_on_to_the_same_file_wherever_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    recorder = JsonLinesRecorder("visits.jsonl")
    recorder.close()
    monkeypatch.chdir(tmp_path / "elsewhere")
    visit(recorder, 0, 0)
    recorder.close()
    assert len(read_visits(tmp_path / "visits.jsonl")) == 1


# Copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_in_mid_run_continues_the_file(tmp_path, copied):
    path = tmp_path / "visits.jsonl"
    schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    schedule.decide(1.0)
    twin = copied(schedule)
    twin.decide(1.0)
    twin.state_dict()
    assert [record.batch for record in read_visits(path)] == [0, 1]


# What is recorded -------------------------------------------------------------------------------------


def test_an_epoch_that_is_abandoned_before_any_visit_is_in_the_file(tmp_path):
    for _ in range(2):
        with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
            recorder.on_epoch_abandoned(0)
            visit(recorder, 0, 0)
    assert len(read_visits(recorder.path)) == 1


def test_epochs_longer_than_a_pass_are_recorded_whole(tmp_path):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    schedule = BatchAttentionSchedule(epoch_length=5, recorders=[lines, memory])
    sampler = BatchAttentionSampler(SequentialSampler(range(6)), 2, schedule=schedule)
    for _ in range(5):
        for _ in schedule.attend(DataLoader(range(6), batch_sampler=sampler)):
            schedule.decide(1.0)
    assert len(memory.visits) == 15
    assert read_visits(lines.path) == memory.visits
    with pytest.raises(RecordError, match="two first visits"):
        visit_counts(memory.visits)


@pytest.mark.parametrize("indices", [[*torch.arange(8)], [*np.arange(8)]], ids=["tensors", "numpy"])
def test_indices_are_recorded_as_plain_numbers(tmp_path, indices):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    with lines:
        schedule = BatchAttentionSchedule(1.0, recorders=[memory, lines])
        batches = BatchAttentionSampler(indices, 4, schedule=schedule)
        for _ in range(3):
            for numbers in schedule.attend(DataLoader(range(8), batch_sampler=batches)):
                schedule.decide(2.0 if numbers[0] == 4 and schedule.visits == 0 else 1.0)
    assert memory.visits[0].indices == (0, 1, 2, 3)
    assert all(type(index) is int for record in memory.visits for index in record.indices)
    assert read_visits(lines.path) == memory.visits
    assert [batch.repeats for batch in most_repeated(memory.visits)] == [2]
    visit(memory, 9, 0, [(0, "left")])  # any other kind is kept as it is
    assert memory.visits[-1].indices == ((0, "left"),)


def test_a_forked_process_leaves_what_waits_to_its_parent(tmp_path, monkeypatch):
    recorder = JsonLinesRecorder(tmp_path / "visits.jsonl")
    visit(recorder, 0, 0)
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        del recorder
    assert (tmp_path / "visits.jsonl").read_bytes() == b""
