"""Visits of runs that were stopped, rolled back, started again or made twice at once: one timeline, or words."""

import copy
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler, TensorDataset

from batch_sampler_attn import BatchAttentionSampler, BatchAttentionSchedule, Decision
from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders import (
    JsonLinesRecorder,
    MemoryRecorder,
    most_repeated,
    most_repeated_samples,
    read_visits,
    visit_counts,
)

BATCHES = 4


class Run:
    """A hand-written loop under a schedule that can be saved after any visit, with losses from a seed."""

    def __init__(self, recorders, seed):
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


@pytest.mark.parametrize("seed", range(30))
def test_a_run_that_was_stopped_and_rolled_back_is_recorded_as_the_run_that_came_of_it(tmp_path, seed):
    rng = random.Random(seed)
    path = tmp_path / "visits.jsonl"
    run = Run([JsonLinesRecorder(path), MemoryRecorder()], seed)
    made, states = [], [(run.save(), 0)]
    for _ in range(8):
        for _ in range(rng.randrange(12)):
            before = run.schedule.epoch, run.schedule.batches, run.schedule.visits + 1
            run.visit()
            made.append(before)
            if rng.random() < 0.3:
                states.append((run.save(), len(made)))
        state, length = rng.choice(states)
        if rng.random() < 0.5:  # in a new process
            run.schedule.epochs.recorders[0].close()
            memory = run.schedule.epochs.recorders[1]
            run = Run([JsonLinesRecorder(path), memory], seed=100)
            if rng.random() < 0.2:
                with path.open("a") as file:
                    file.write('{"epoch":0,"bat')
        run.load(state)
        del made[length:]
        states = [(saved, at) for saved, at in states if at <= length]
    run.visit()
    run.schedule.state_dict()
    in_file, in_memory = read_visits(path), run.schedule.epochs.recorders[1].visits
    assert [record[:3] for record in in_file[:-1]] == made
    assert in_memory == in_file
    run.schedule.epochs.recorders[0].close()


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


def test_a_state_that_is_older_than_an_abandoned_epoch_brings_its_visits_back(tmp_path):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as lines:
        memory = MemoryRecorder()
        run = Run([lines, memory], 0)
        for _ in range(7):
            run.visit()
        saved, kept = run.save(), list(memory.visits)
        run.visit()
        run.schedule.abandon_epoch()
        run.visit()
        run.load(saved)
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
import sys
from batch_sampler_attn import BatchAttentionSchedule
from batch_sampler_attn.errors import RecordError
from batch_sampler_attn.recorders import JsonLinesRecorder
recorder = JsonLinesRecorder(sys.argv[1])
schedule = BatchAttentionSchedule(recorders=[recorder])
for line in sys.stdin:
    try:
        schedule.decide(float(line))
    except RecordError as error:
        print(error, flush=True)
        break
    print("recorded", flush=True)
"""


def test_two_processes_that_write_one_file_are_found_out(tmp_path):
    path = tmp_path / "visits.jsonl"
    command = [sys.executable, "-c", WRITE, str(path)]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    def report(rank, loss):
        ranks[rank].stdin.write(f"{loss}\n")
        ranks[rank].stdin.flush()
        return ranks[rank].stdout.readline()

    answers = [report(0, 1.0), report(1, 2.0), report(0, 3.0), report(1, 4.0), report(1, 5.0)]
    for rank in ranks:
        rank.communicate()
    assert "another process or recorder writes to it too" in answers[2]
    assert [answer for answer in answers if "recorded" not in answer] == [answers[2]]
    assert [record.loss for record in read_visits(path)] == [2.0, 4.0, 5.0]


def test_a_recorder_made_again_for_the_same_file_takes_it_over(tmp_path):
    path = tmp_path / "visits.jsonl"
    first = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    first.decide(1.0)
    second = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    second.decide(2.0)
    with pytest.raises(RecordError, match="a file of its own"):
        first.decide(3.0)
    del first, second  # what nobody closed is written as the last reference goes
    assert [record.loss for record in read_visits(path)] == [2.0]


def test_lines_that_nobody_closed_are_there_after_the_process(tmp_path):
    path = tmp_path / "visits.jsonl"
    losses = "".join(f"{loss}\n" for loss in range(50))
    subprocess.run([sys.executable, "-c", WRITE, str(path)], input=losses, text=True, check=True, capture_output=True)
    assert [record.loss for record in read_visits(path)] == list(range(50))


def visit_line(epoch, batch, visit, **more):
    return json.dumps({"epoch": epoch, "batch": batch, "visit": visit, "loss": 1.0, "decision": "advance", **more})


def write(path, keys, end="\n"):
    path.write_text("\n".join(visit_line(*key) for key in keys) + end)
    return [record[:3] for record in read_visits(path)]


def test_files_without_any_word_of_a_restart_are_read_as_one_timeline_too(tmp_path):
    path = tmp_path / "visits.jsonl"
    whole = [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 0, 2), (1, 1, 1), (2, 0, 1)]
    assert write(path, whole) == whole
    # Rolled back to the middle of epoch 1, in the repeats of a batch; and then to the begin of epoch 1.
    assert write(path, [*whole, (1, 0, 2), (1, 0, 3)]) == [*whole[:3], (1, 0, 2), (1, 0, 3)]
    assert write(path, [*whole, (1, 0, 1), (1, 1, 1)]) == [*whole[:2], (1, 0, 1), (1, 1, 1)]
    assert write(path, [*whole, (0, 0, 1)]) == [(0, 0, 1)]
    # Deferred repeats come out of order, which is no restart.
    deferred = [(1, 0, 1), (1, 1, 1), (1, 2, 1), (1, 0, 2), (1, 1, 2)]
    assert write(path, [*deferred, (1, 0, 2), (1, 1, 2), (2, 0, 1)]) == [*deferred, (2, 0, 1)]


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


def test_a_disk_that_is_full_for_a_while_costs_no_line_and_leaves_no_half_of_one(tmp_path, monkeypatch):
    path = tmp_path / "visits.jsonl"
    with JsonLinesRecorder(path) as recorder:
        schedule = BatchAttentionSchedule(recorders=[recorder])
        schedule.decide(1.0)
        whole = recorder._file._file

        class Full:
            truncate, fileno = whole.truncate, whole.fileno

            def write(self, data):
                whole.write(data[:7])
                raise OSError("No space left on device")

        recorder._file._file = Full()
        schedule.decide(2.0)
        with pytest.raises(OSError, match="No space"):
            schedule.state_dict()
        assert len(read_visits(path)) == 1
        recorder._file._file = whole
        schedule.decide(3.0)
    assert [record.loss for record in read_visits(path)] == [1.0, 2.0, 3.0]


def test_windows_longer_than_a_pass_are_recorded_whole(tmp_path):
    path, memory = tmp_path / "visits.jsonl", MemoryRecorder()
    with JsonLinesRecorder(path) as lines:
        schedule = BatchAttentionSchedule(window=5, recorders=[lines, memory])
        sampler = BatchAttentionSampler(SequentialSampler(range(6)), 2, schedule=schedule)
        loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_sampler=sampler)
        for _ in range(5):
            for _ in schedule.attend(loader):
                schedule.decide(1.0)
    assert len(memory.visits) == 15
    assert read_visits(path) == memory.visits
    with pytest.raises(RecordError, match="for the first time twice"):
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
    first, *_ = most_repeated_samples(memory.visits)
    assert (first.repeats, len(most_repeated_samples(memory.visits))) == (2, 4)
    assert [batch.repeats for batch in most_repeated(memory.visits)] == [2]


@pytest.mark.parametrize("numbers", [("0", 0, 1), (0, 1.0, 1), (0, 0, -1), (0, True, 1)])
def test_a_line_whose_numbers_are_none_is_named(tmp_path, numbers):
    path = tmp_path / "visits.jsonl"
    path.write_text(visit_line(0, 0, 1) + "\n" + visit_line(*numbers) + "\n")
    with pytest.raises(RecordError, match="line 2"):
        read_visits(path)


def test_at_an_epochs_end_every_line_is_in_the_file(tmp_path):
    path = tmp_path / "visits.jsonl"
    schedule = BatchAttentionSchedule(recorders=[JsonLinesRecorder(path)])
    for _ in schedule.attend(range(5)):
        schedule.decide(1.0)
    assert len(read_visits(path)) == 5
