"""Files of visits: runs that were stopped, resumed, rolled back, copied, or could not write."""

import copy
import gc
import json
import multiprocessing
import os
import pickle
import random
import resource
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import BatchAttentionWarning, OptionError, RecordError
from batch_sampler_attn.recorders import (
    JsonLinesRecorder,
    MemoryRecorder,
    Recorder,
    most_repeated,
    read_visits,
    visit_counts,
)

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


@pytest.mark.parametrize("seed", range(30))
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
            if rng.random() < 0.1:
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
    run.recorders[0].close()


def test_a_run_that_nothing_happened_to_is_written_as_its_visits_and_no_other_line(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        run = Run([recorder], 0)
        while run.schedule.epoch < 4:
            run.visit()
    assert all("visit" in json.loads(line) for line in path.read_text().splitlines())


def test_a_run_that_is_started_again_counts_alone(tmp_path):
    path = tmp_path / "visits.jsonl"
    for visits, seed in ((30, 0), (7, 1)):
        with JsonLinesRecorder(path) as recorder:
            memory = MemoryRecorder()
            run = Run([recorder, memory], seed)
            for _ in range(visits):
                run.visit()
    assert read_visits(path) == memory.visits
    assert len(memory.visits) == 7


def test_a_recorder_in_memory_forgets_what_was_rolled_back_at_once():
    memory = MemoryRecorder()
    run = Run([memory], 0)
    for _ in range(6):
        run.visit()
    saved = run.save()
    kept, summaries = list(memory.visits), list(memory.summaries)
    for _ in range(20):
        run.visit()
    assert len(memory.summaries) > len(summaries)
    run.load(saved)
    assert (memory.visits, memory.summaries) == (kept, summaries)


def test_a_state_from_before_an_abandoned_epoch_brings_its_visits_back(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as lines:
        memory = MemoryRecorder()
        run = Run([lines, memory], 0)
        for _ in range(7):
            run.visit()
        before, saved, kept = run.save(), run.save(), list(memory.visits)
        run.visit()
        run.schedule.abandon_epoch()
        run.load(before)
        run.load(saved)
        assert memory.visits == kept
        run.visit()
    assert memory.visits[:-1] == kept
    assert read_visits(path) == memory.visits


def test_a_state_that_another_one_replaces_before_any_visit_changes_nothing(tmp_path):
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
        run = Run([recorder], 0)
        states = [run.save()]
        for _ in range(9):
            run.visit()
        states.append(run.save())
        for saved in states:
            run.load(saved)
        run.visit()
    assert len(read_visits(recorder.path)) == 10


def test_batches_that_were_skipped_do_not_count_among_the_visits_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
        schedule.decide(1.0)
        schedule.end_epoch()
        schedule.skip()
        assert schedule.decide(2.0) is Decision.REPEAT
        schedule.skip()
        schedule.decide(0.5)
        saved = schedule.state_dict()
        schedule.decide(0.25)
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(1.0, recorders=[recorder])
        schedule.load_state_dict(saved)
        schedule.decide(0.125)
    assert [record.loss for record in read_visits(path)] == [1.0, 2.0, 0.5, 0.125]


@pytest.mark.parametrize("repeats", ["immediate", "deferred"])
def test_a_rolled_back_sampler_is_recorded_as_if_it_had_not_been(tmp_path, repeats):
    def make(recorder):
        schedule = BatchAttentionSchedule(1.0, max_visits=3, recorders=[recorder])
        sampler = BatchAttentionSampler(SequentialSampler(range(12)), 2, schedule=schedule, repeats=repeats)
        return schedule, sampler, DataLoader(TensorDataset(torch.arange(12.0)), batch_sampler=sampler)

    def train(schedule, loader, epochs, stop=None):
        while schedule.epoch < epochs:
            for (numbers,) in schedule.attend(loader):
                schedule.decide(numbers.mean() % 3 + schedule.visits * 0.1)
                stop = stop and stop - 1
                if stop == 0:
                    return

    path = tmp_path / "visits.jsonl"
    whole = MemoryRecorder()
    schedule, _, loader = make(whole)
    train(schedule, loader, 3)
    assert any(record.visit > 1 for record in whole.visits)
    with JsonLinesRecorder(path) as recorder:
        schedule, sampler, loader = make(recorder)
        train(schedule, loader, 3, stop=11)
        saved = sampler.state_dict()
        schedule.abandon_epoch()
        train(schedule, loader, 3)
    with JsonLinesRecorder(path) as recorder:
        schedule, sampler, loader = make(recorder)
        sampler.load_state_dict(saved)
        train(schedule, loader, 3)
    assert read_visits(path) == whole.visits


WRITE = """
import os, sys
from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.recorders import JsonLinesRecorder
schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(sys.argv[1])])
for loss in range(50):
    schedule.decide(loss)
if sys.argv[2] == "fork" and (child := os.fork()):
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("end", ["as it is", "fork"])
def test_lines_that_nobody_closed_are_in_the_file_once_after_the_process(tmp_path, end):
    path = tmp_path / "visits.jsonl"
    subprocess.run([sys.executable, "-c", WRITE, str(path), end], check=True)
    assert [record.loss for record in read_visits(path)] == list(range(50))


def test_two_recorders_of_one_file_are_found(tmp_path):
    path = tmp_path / "visits.jsonl"
    first, second = (JsonLinesRecorder(path) for _ in range(2))
    visit(first, 0, 0)
    first.flush()
    visit(second, 0, 0)
    second.flush()
    visit(first, 0, 1)
    with pytest.warns(BatchAttentionWarning, match="another recorder writes to the file too; give each run"):
        first.flush()
    visit(second, 0, 1)
    for recorder in (first, second):
        recorder.close()
    assert [record.batch for record in read_visits(path)] == [0, 1]


def test_a_recorder_that_is_replaced_in_a_notebook_leaves_the_file_to_its_successor(tmp_path):
    path = tmp_path / "visits.jsonl"
    schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    for _ in range(2):
        schedule.decide(1.0)
        schedule.end_epoch()
    schedule.decide(0.5)
    again = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    for loss in (4.0, 3.0):
        again.decide(loss)
        again.end_epoch()
    del schedule
    again.decide(2.0)
    del again
    assert [record.loss for record in read_visits(path)] == [4.0, 3.0, 2.0]


def visit_line(epoch, batch, visit, **more):
    return json.dumps({"epoch": epoch, "batch": batch, "visit": visit, "loss": 1.0, "decision": "advance", **more})


def test_a_visit_of_an_earlier_epoch_is_the_first_of_another_run(tmp_path):
    path, memory = tmp_path / "visits.jsonl", MemoryRecorder()
    with JsonLinesRecorder(path) as lines:
        for seed in range(3):
            run = Run([memory, lines], seed)
            for _ in range(12):
                run.visit()
    assert len(memory.visits) == 12
    assert read_visits(path) == memory.visits


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, cut):
    path = tmp_path / "visits.jsonl"
    text = visit_line(0, 0, 1) + "\n" + visit_line(0, 1, 1)
    path.write_text(text[:-cut])
    assert [record[:3] for record in read_visits(path)] == [(0, 0, 1)]
    path.write_text(text)  # only the line's end is missing
    assert len(read_visits(path)) == 2


def test_the_end_of_a_line_that_lacks_nothing_else_is_written_by_the_run_that_goes_on(tmp_path):
    path = tmp_path / "visits.jsonl"
    path.write_text(visit_line(0, 0, 1) + "\n" + visit_line(0, 1, 1))
    with JsonLinesRecorder(path) as recorder:
        recorder.on_state_loaded(0, 2)
        recorder.on_visit(0, 2, 1, 1.0, Decision.ADVANCE, None)
    assert [record.batch for record in read_visits(path)] == [0, 1, 2]
    path.write_bytes(path.read_bytes() + b"\0" * 100)  # as after a power cut
    with JsonLinesRecorder(path) as recorder:
        recorder.on_state_loaded(0, 3)
        recorder.on_visit(0, 3, 1, 1.0, Decision.ADVANCE, None)
    assert [record.batch for record in read_visits(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(("epoch", "visits"), [(0, 3), (2, 0), (1, 1), (5, 2)])
def test_a_run_that_goes_on_from_visits_that_are_not_there_is_refused(tmp_path, epoch, visits):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        for batch in range(2):
            recorder.on_visit(0, batch, 1, 1.0, Decision.ADVANCE, None)
        recorder.on_state_loaded(epoch, visits)
        recorder.on_visit(epoch, visits, 1, 1.0, Decision.ADVANCE, None)
    with pytest.raises(RecordError, match=r"line 3.*Give each run a file of its own"):
        read_visits(path)


def test_a_record_that_begins_in_mid_run_may_be_gone_on_with(tmp_path):
    path = tmp_path / "visits.jsonl"
    for made, batches in ((3, (3, 4, 5)), (4, (4, 5))):
        with JsonLinesRecorder(path) as recorder:
            recorder.on_state_loaded(2, made)
            for batch in batches:
                recorder.on_visit(2, batch, 1, float(made), Decision.ADVANCE, None)
    assert [(record.batch, record.loss) for record in read_visits(path)] == [(3, 3.0), (4, 4.0), (5, 4.0)]


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


def visit_many(recorder, batches):
    for batch in range(batches):
        visit(recorder, 0, batch)


def test_a_full_disk_is_not_tried_again_at_each_visit(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        with full_disk(0), pytest.warns(BatchAttentionWarning, match="training continues") as warned:
            visit_many(recorder, 5000)
        assert 2 < len(warned) < 10
    assert len(read_visits(path)) == 5000


def test_what_cannot_be_written_at_the_end_is_an_error(tmp_path):
    recorder = JsonLinesRecorder(tmp_path / "visits.jsonl")
    visit(recorder, 0, 0)
    with full_disk(0), pytest.raises(OSError, match="too large"):
        recorder.close()


class OnAFullDevice(Recorder):
    """As a logger that appends to a file."""

    def flush(self):
        with Path("/dev/full").open("a", encoding="utf-8") as file:
            file.write("visits")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_state_is_saved_though_a_recorder_cannot_write():
    schedule = BatchAttentionSchedule(recorders=[OnAFullDevice()])
    schedule.decide(1.0)
    with pytest.warns(BatchAttentionWarning, match=r"OnAFullDevice.*No space left on device"):
        state = schedule.state_dict()
    resumed = BatchAttentionSchedule()
    resumed.load_state_dict(state)
    assert resumed.batches == 1


@pytest.mark.parametrize("wrong", [MemoryRecorder, JsonLinesRecorder, Recorder])
def test_a_class_in_place_of_a_recorder_is_refused_at_once(wrong):
    with pytest.raises(OptionError, match=rf"recorders.*{wrong.__name__}"):
        BatchAttentionSchedule(recorders=[wrong])


# Whose file it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "first\nlast without an end",
        "first\nsecond\n",
        '{"epoch":0,"loss":1.5}\n',
        '{"epoch":0,"loss":1.5}',
        "[]\n",
        "\n",
        '{"epoch":0,"bat',
        "x" * 100,
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "notes.txt"
    path.write_text(text)
    if text == '{"epoch":0,"bat':  # the first line of a run that was cut off
        JsonLinesRecorder(path)
    else:
        with pytest.raises(RecordError, match="give the recorder a file of its own"):
            JsonLinesRecorder(path)
    assert path.read_text() == text


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, "/dev/null"):
        with pytest.raises(RecordError, match="is not a file of recorded visits"):
            JsonLinesRecorder(path)


def test_a_visit_after_the_end_is_written_too(tmp_path):
    recorder = JsonLinesRecorder(tmp_path / "visits.jsonl")
    recorder.close()
    visit(recorder, 0, 0)
    recorder.close()
    assert len(read_visits(recorder.path)) == 1


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with JsonLinesRecorder("visits.jsonl") as recorder:
        visit(recorder, 0, 0)
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(read_visits(tmp_path / "visits.jsonl")) == 1


# Copies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda recorder: pickle.loads(pickle.dumps(recorder))])
def test_a_copy_in_mid_run_continues_the_file(tmp_path, duplicate):
    path = tmp_path / "visits.jsonl"
    recorder = JsonLinesRecorder(path)
    visit(recorder, 0, 0)
    twin = duplicate(recorder)
    visit(twin, 0, 1)
    twin.close()
    recorder.close()
    assert [record.batch for record in read_visits(path)] == [0, 1]


def go_on(schedule):
    for _ in range(3):
        schedule.decide(1.0)
    schedule.state_dict()


def test_a_schedule_with_its_recorder_can_be_sent_to_a_spawned_process(tmp_path):
    path = tmp_path / "visits.jsonl"
    recorder = JsonLinesRecorder(path)
    schedule = BatchAttentionSchedule(recorders=[recorder])
    go_on(schedule)
    process = multiprocessing.get_context("spawn").Process(target=go_on, args=(schedule,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [record.batch for record in read_visits(path)] == list(range(6))


# Long epochs ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::batch_sampler_attn.errors.BatchAttentionWarning")
def test_memory_does_not_grow_in_an_endless_epoch(tmp_path):
    with JsonLinesRecorder(tmp_path / "visits.jsonl") as recorder:
        tracemalloc.start()
        for batch in range(20_000):
            visit(recorder, 0, batch)
            if batch == 5_000:
                recorder.flush()
                before = tracemalloc.get_traced_memory()[0]
        recorder.flush()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 50_000


def test_many_lines_reach_the_file_before_the_epoch_s_end(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        for batch in range(2000):
            visit(recorder, 0, batch)
        assert path.stat().st_size > 60_000


# What is recorded -------------------------------------------------------------------------------------


def test_keys_of_other_kinds_are_kept_in_memory():
    recorder = MemoryRecorder()
    visit(recorder, 0, 0, [(0, "left")])
    assert recorder.visits[0].indices == ((0, "left"),)


def test_a_state_of_visits_that_no_record_has_leaves_the_visits_that_there_are():
    recorder = MemoryRecorder()
    for batch in range(3):
        visit(recorder, 0, batch)
    recorder.on_state_loaded(0, 2)
    recorder.on_state_loaded(5, 1)
    assert [record.batch for record in recorder.visits] == [0, 1]


def test_an_epoch_that_is_abandoned_before_any_visit_is_in_the_file(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        visit(recorder, 0, 0)
    with JsonLinesRecorder(path) as recorder:
        recorder.on_epoch_abandoned(0)
        visit(recorder, 0, 0)
    assert len(read_visits(path)) == 1


def test_windows_longer_than_a_pass_are_recorded_whole(tmp_path):
    path, memory = tmp_path / "visits.jsonl", MemoryRecorder()
    with JsonLinesRecorder(path) as lines:
        schedule = BatchAttentionSchedule(epoch_length=5, recorders=[lines, memory])
        sampler = BatchAttentionSampler(SequentialSampler(range(6)), 2, schedule=schedule)
        loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_sampler=sampler)
        for _ in range(5):
            for _ in schedule.attend(loader):
                schedule.decide(1.0)
    assert len(memory.visits) == 15
    assert read_visits(path) == memory.visits
    with pytest.raises(RecordError, match="two first visits"):
        visit_counts(memory.visits)


class Numbered(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return float(index)


class Tensors:
    """As ``iter(torch.randperm(n))`` yields them."""

    def __iter__(self):
        return iter(torch.arange(8))

    def __len__(self):
        return 8


class Numpy:
    def __iter__(self):
        return iter(np.arange(8))

    def __len__(self):
        return 8


@pytest.mark.parametrize("sampler", [Tensors(), Numpy()])
def test_indices_are_recorded_as_plain_numbers(tmp_path, sampler):
    memory, lines = MemoryRecorder(), JsonLinesRecorder(tmp_path / "visits.jsonl")
    with lines:
        schedule = BatchAttentionSchedule(1.0, recorders=[memory, lines])
        batches = BatchAttentionSampler(sampler, 4, schedule=schedule)
        for _ in range(3):
            for numbers in schedule.attend(DataLoader(Numbered(), batch_sampler=batches)):
                schedule.decide(2.0 if numbers[0] == 4 and schedule.visits == 0 else 1.0)
    assert memory.visits[0].indices == (0, 1, 2, 3)
    assert all(type(index) is int for record in memory.visits for index in record.indices)
    assert read_visits(lines.path) == memory.visits
    assert [batch.repeats for batch in most_repeated(memory.visits)] == [2]


def test_at_an_epochs_end_every_line_is_in_the_file(tmp_path):
    path = tmp_path / "visits.jsonl"
    schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    for _ in schedule.attend(range(5)):
        schedule.decide(1.0)
    assert len(read_visits(path)) == 5


def test_a_forked_process_leaves_what_waits_to_its_parent(tmp_path, monkeypatch):
    path = tmp_path / "visits.jsonl"
    recorder = JsonLinesRecorder(path)
    visit(recorder, 0, 0)
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        del recorder
        gc.collect()
    assert path.read_bytes() == b""
